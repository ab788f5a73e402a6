"""Jobs on a Ray cluster. What a job needs goes to a machine as files, and what it makes comes back as files.

The run store stays where the notebook runs. The other machines need this checkout and its environment; they need no
shared folder and no data. Ray itself runs in a process of its own here, so that its loss ends no notebook.
"""

import logging
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from lib import ROOT, data
from lib.errors import UserError
from lib.experiment.jobs import Job, do, refuse_in_worker
from lib.experiment.networks import Workspace
from lib.experiment.progress import Progress
from lib.experiment.spec import GivenWeights, digest_of
from lib.experiment.store import Store
from lib.files import begin_worker, disk_errors, file_digest, write_atomically

Files = dict[str, bytes]  # contents by path below an outputs folder
INTERVAL = 1.0  # seconds between two looks at what a job has made so far
LOG = "cluster.log"  # in the outputs folder
LOSSES = 3  # times that a job's worker may be lost without having got further


@dataclass(frozen=True)
class Cluster:
    """Where a Ray cluster is, and what every run takes of it; with a share of a GPU, runs are made on GPUs."""

    address: str = "auto"
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0


@dataclass(frozen=True)
class Visit(Workspace):
    """A workspace on a machine of the cluster, whose data came with the job."""

    data_sets: Mapping[str, data.Dataset] = field(default_factory=dict, hash=False)

    def whole(self, name: str) -> data.Dataset:
        """The data set called `name`, as it came."""
        return self.data_sets[name]


def run_on_cluster(seconds: Mapping[Job, float], workspace: Workspace, cluster: Cluster) -> None:
    """Do every job on the cluster, each after those that it waits for; `seconds` weighs them in the progress."""
    refuse_in_worker()
    spawn, progress = multiprocessing.get_context("spawn"), Progress([*seconds.values()])
    here, there = spawn.Pipe(duplex=False)
    driver = spawn.Process(target=_drive, args=(there, list(seconds), workspace, cluster))
    driver.start()
    there.close()
    shares = dict.fromkeys(seconds, 0.0)
    try:
        with progress.bar:
            for job, share, text in _messages(here, seconds):
                shares[job] = share
                if text:
                    progress.finish(seconds[job], text)
                    del shares[job]
                else:
                    progress.show(sum(seconds[other] * part for other, part in shares.items()), trained=1.0)
    finally:
        driver.kill()  # what came so far is kept: files are written whole
        driver.join()


def _messages(here: Connection, jobs: Mapping[Job, float]) -> Iterator[tuple[Job, float, str]]:
    """What the driver sends until every job is done: a job, its share done, and its result in a line, or ""."""
    waited_for = {*jobs}
    while waited_for:
        try:
            message = here.recv()
        except EOFError:
            raise UserError(
                "the connection to the Ray cluster was lost; what was finished is kept: call again when it is there"
            ) from None
        if isinstance(message, Exception):
            raise message
        job, _, text = message
        waited_for -= {job} if text else set()
        yield message


def _drive(there: Connection, jobs: list[Job], workspace: Workspace, cluster: Cluster) -> None:
    """The driver's process: an error of a job, or of the connection, is its last message."""
    begin_worker()
    with (workspace.outputs / LOG).open("ab") as log:  # Ray's own words, and its warnings' stacks
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # as on every machine of the cluster
    try:
        import ray

        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        needed = {"CPU": cluster.cpus_per_run, "GPU": cluster.gpus_per_run}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(there.get(name, 0) >= count for name, count in needed.items()) for there in machines):
            raise UserError(f"no machine at {cluster.address} has what a run takes, {needed}: change gpus_per_run")
        Driver(there, jobs, workspace, cluster).run()
    except ImportError:
        there.send(UserError("executor ray wants Ray: pip install -e '.[cluster]'"))
    except ConnectionError as error:
        there.send(UserError(f"there is no Ray cluster at {cluster.address}: {' '.join(str(error).split())[:200]}"))
    except UserError as error:
        there.send(error)
    except Exception as error:
        there.send(RuntimeError(str(error)))  # with the other machine's traceback


class Driver:
    """Hands jobs to Ray as they get free, and takes into the store what they send."""

    def __init__(self, there: Connection, jobs: list[Job], workspace: Workspace, cluster: Cluster) -> None:
        import ray

        self.ray, self.there, self.workspace, self.waiting = ray, there, workspace, jobs
        self.running: dict[Any, tuple[Job, ExitStack]] = {}
        self.losses, self.handed = Counter[Job](), dict[object, Any]()
        self.task: Any = ray.remote(work).options(
            num_cpus=cluster.cpus_per_run, num_gpus=cluster.gpus_per_run, max_retries=0, scheduling_strategy="SPREAD"
        )
        scratch = Path(f"dynamic-at-{digest_of([platform.node(), str(workspace.outputs)])}")
        device = "cuda" if cluster.gpus_per_run else "cpu"
        self.visit = Visit(scratch, Path(), device=device, execution=workspace.execution)

    def run(self) -> None:
        """Until all is done: a job whose worker was lost is handed out again, with what it had sent."""
        while self.waiting or self.running:
            self.submit()
            if not self.running:  # another notebook makes what this one waits for
                time.sleep(1.0)
            for stream in self.ray.wait([*self.running], timeout=1.0)[0] if self.running else ():
                self.take(stream)

    def take(self, stream: Any) -> None:
        """The next of what a job sends."""
        job, held = self.running[stream]
        try:
            share, text, files = self.ray.get(next(stream))
            receive(self.workspace.store, files)
            self.losses[job] = 0
            if text:
                del self.running[stream]
                held.close()
            self.there.send((job, share, text))
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except self.ray.exceptions.RayError as error:
            del self.running[stream]
            held.close()
            self.losses[job] += 1
            if self.losses[job] == LOSSES:
                why = str(error).split(". ")[0][:200]
                raise UserError(f"{job.label} lost its worker {LOSSES} times without getting further: {why}") from None
            self.waiting.insert(0, job)

    def submit(self) -> None:
        """Hand out every job that waits for none, and that no other process is at."""
        unfinished = {job.digest for job in (*self.waiting, *(job for job, _ in self.running.values()))}
        for job in [job for job in self.waiting if not job.waits_for & unfinished]:
            held = self.workspace.store.claim_now(*job.claims)
            if held is None:
                continue
            self.waiting.remove(job)
            if job.state(self.workspace) == "complete":  # another process made it
                held.close()
                self.there.send((job, 1.0, job.do(self.workspace)))
                continue
            self.running[self.hand_out(job)] = job, held

    def hand_out(self, job: Job) -> Any:
        """The stream of what a job will send, which begins with what there is of it and of the runs it needs."""
        print(f"{job.label} ({job.digest}), {job.state(self.workspace)}, is handed out", flush=True)
        store, names = self.workspace.store, tuple(sorted(job.data_names))
        data_sets = self.once(names, lambda: {name: self.workspace.whole(name) for name in names})
        own = self.ray.put(files_of(store, job.run) | given_weights(job, self.workspace))
        lent = [self.once(digest, partial(files_of, store, digest)) for digest in job.waits_for - {job.run}]
        return self.task.remote(job, self.visit, code_digest(), INTERVAL, data_sets, own, *lent)

    def once(self, name: object, make: Callable[[], Any]) -> Any:
        """What `make` gives, handed to Ray once, which brings it to every machine once."""
        if name not in self.handed:
            self.handed[name] = self.ray.put(make())
        return self.handed[name]


def work(
    job: Job, visit: Visit, code: str, interval: float, data_sets: Mapping[str, data.Dataset], *parts: Files
) -> Iterator[tuple[float, str, Files]]:
    """Do a job in a folder that begins as `parts`; yields its share done, its result at last, and what files changed.

    It runs on a machine of the cluster, and leaves nothing there.
    """
    if code != code_digest():
        raise UserError(f"{platform.node()} has another lib than the notebook's machine: bring both to one commit")
    folder = Path(tempfile.gettempdir()) / f"{visit.outputs}-{job.digest}"
    shutil.rmtree(folder, ignore_errors=True)  # of a try that was killed
    given = {name.removeprefix("weights/"): folder / name for part in parts for name in part if "weights/" in name}
    place = replace(visit, outputs=folder, weights_files=given, data_sets=data_sets)
    for part in parts:
        receive(place.store, part)
    sent, shares = dict[str, int](), [0.0]
    files_of(place.store, job.run, sent)
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            result = pool.submit(do, job, place, shares.append)
            while wait([result], timeout=interval).not_done:
                yield shares[-1], "", files_of(place.store, job.run, sent)
        yield 1.0, result.result(), files_of(place.store, job.run, sent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def files_of(store: Store, digest: str, sent: dict[str, int] | None = None) -> Files:
    """All there is of a run: itself, its checkpoint, its evaluations; only what changed since it was in `sent`."""
    patterns = f"runs/{digest}/*", f"evaluations/{digest}/*", f"partial/{digest}.pt", f"partial/{digest}-*/*/*"
    found, sent = Files(), {} if sent is None else sent
    for path in sorted(path for pattern in patterns for path in store.outputs.glob(pattern)):
        with suppress(FileNotFoundError):  # a checkpoint whose run was published just now
            name, changed = str(path.relative_to(store.outputs)), path.stat().st_mtime_ns
            if not path.name.startswith(".") and sent.get(name) != changed:
                found[name], sent[name] = path.read_bytes(), changed
    return found


def receive(store: Store, files: Files) -> None:
    """Take in what `files_of` gave: a run whole and as its manifest has it, everything else file by file."""
    runs = dict[str, dict[str, bytes]]()
    for name, content in files.items():
        kind, folder, *rest = name.split("/")
        if kind == "runs":
            runs.setdefault(folder, {})[rest[0]] = content
            continue
        with disk_errors(store.outputs):
            (store.outputs / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(store.outputs / name, content)
    for digest, contents in runs.items():
        if not store.has(digest):
            store.publish(digest, contents)


def given_weights(job: Job, workspace: Workspace) -> Files:
    """The files of the weights that were given for networks that the job uses."""
    given = [net.sha256 for net in (job.network, *job.needs) if isinstance(net, GivenWeights)]
    return {f"weights/{sha256}": workspace.weights_files[sha256].read_bytes() for sha256 in given}


@cache
def code_digest() -> str:
    """The SHA-256 of lib's code: what every machine must have the same of."""
    files = sorted((ROOT / "lib").rglob("*.py"))
    return sha256("".join(f"{file.relative_to(ROOT)} {file_digest(file)}\n" for file in files).encode()).hexdigest()
