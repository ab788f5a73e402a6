"""Jobs on a Ray cluster: the run store stays where the notebook runs, and the notebook is the same.

The other machines need this checkout and its environment; they need no shared folder and no data. Ray itself runs in a
process of its own here (the driver), so that its loss ends no notebook.
"""

import logging
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.experiment.jobs import UNGUARDED, Job, refuse_in_worker
from lib.experiment.networks import Workspace
from lib.experiment.parameters import Parameters
from lib.experiment.progress import Progress
from lib.experiment.remote import Visit, code_digest, files_of, given_weights, receive, work
from lib.files import begin_worker

INTERVAL = 1.0  # seconds between two looks at what a job has made so far
LOG = "cluster.log"  # in the outputs folder: what Ray says, and what was handed out
LOSSES = 3  # times that a job's worker may be lost without having got further


def room(machines: list[dict[str, Any]], given: Parameters) -> int:
    """How many runs the machines that are there can make at once; with a share of a GPU, runs are made on GPUs."""
    taken = {"CPU": given.cpus_per_run, "GPU": given.gpus_per_run}
    alive = [machine["Resources"] for machine in machines if machine["Alive"]]
    each = [min(own.get(name, 0) / share for name, share in taken.items() if share) for own in alive]
    return sum(int(runs + 1e-9) for runs in each)


def run_on_cluster(seconds: Mapping[Job, float], workspace: Workspace, given: Parameters) -> None:
    """Do every job on the cluster, each after those that it waits for; `seconds` weighs them in the progress."""
    refuse_in_worker()
    spawn, progress = multiprocessing.get_context("spawn"), Progress([*seconds.values()])
    here, there = spawn.Pipe(duplex=False)
    driver = spawn.Process(target=_drive, args=(there, list(seconds), workspace, given))
    driver.start()
    there.close()
    try:
        here.recv()
    except EOFError:
        raise UserError(f"the process that speaks with Ray did not start; a script is run in it, {UNGUARDED}") from None
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
    except EOFError:
        driver.join()
        memory = driver.exitcode == -signal.SIGKILL
        why = "the process that speaks with Ray was killed, as the system does where memory is short"
        why = why if memory else "the connection to the Ray cluster was lost"
        raise UserError(f"{why}; what was finished is kept: call again") from None
    finally:
        driver.kill()  # what came so far is kept: files are written whole
        driver.join()


def _messages(here: Connection, jobs: Mapping[Job, float]) -> Iterator[tuple[Job, float, str]]:
    """What the driver sends until every job is done: a job, its share done, and its result in a line, or ""."""
    waited_for = {*jobs}
    while waited_for:
        message = here.recv()
        if isinstance(message, Exception):
            raise message
        if isinstance(message, str):
            print(message, flush=True)
            continue
        job, _, text = message
        waited_for -= {job} if text else set()
        yield message


def _drive(there: Connection, jobs: list[Job], workspace: Workspace, given: Parameters) -> None:
    """The driver's process: an error of a job, or of the connection, is its last message."""
    begin_worker()
    there.send("begun")
    try:
        with (workspace.outputs / LOG).open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        Driver(_connected(given), there, jobs, workspace, given).run()
    except UserError as error:
        there.send(error)
    except Exception as error:
        traceback.print_exc()
        there.send(RuntimeError(f"{type(error).__name__}: {error}"))  # with the other machine's traceback


def _connected(given: Parameters) -> Any:
    """Ray, as part of the cluster; UserError where that cannot be."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # as on every machine of the cluster
    try:
        import ray
    except ImportError as error:
        raise UserError("executor ray wants Ray: pip install -e '.[cluster]'") from error
    try:
        host, _, port = given.address.rpartition(":")
        if host:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself tries for minutes
        ray.init(given.address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, ray.exceptions.RayError) as error:
        why = "no cluster, another token in ~/.ray/auth_token, or this machine is no part of it (ray start --address)"
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"the Ray cluster at {given.address} cannot be reached: {why}. Ray says: {reason}") from error
    if not room(ray.nodes(), given):
        taken = f"{given.cpus_per_run:g} CPUs and {given.gpus_per_run:g} GPUs"
        raise UserError(f"no machine at {given.address} has the {taken} that a run takes: change gpus_per_run")
    return ray


class Driver:
    """Hands jobs to Ray in their order, as they get free and machines have room, and takes in what they send."""

    def __init__(self, ray: Any, there: Connection, jobs: list[Job], workspace: Workspace, given: Parameters) -> None:
        self.ray, self.there, self.given, self.workspace, self.waiting = ray, there, given, workspace, jobs
        self.running: dict[Any, tuple[Job, ExitStack]] = {}
        self.losses, self.handed, self.last = Counter[Job](), dict[object, Any](), ""
        self.task: Any = ray.remote(work).options(
            num_cpus=given.cpus_per_run,
            num_gpus=given.gpus_per_run,
            max_retries=0,
            scheduling_strategy="SPREAD",
            _generator_backpressure_num_objects=2,
        )
        device = "cuda" if given.gpus_per_run else "cpu"
        self.visit = Visit(Path(), Path(), device=device, execution=workspace.execution)

    def run(self) -> None:
        """Until all is done: a job whose worker was lost is handed out again, with what it had sent."""
        while self.waiting or self.running:
            self.submit()
            if self.running:
                for stream in self.ray.wait([*self.running], timeout=1.0)[0]:
                    self.take(stream)
            elif self.waiting:
                fits = room(self.ray.nodes(), self.given)
                self.notify("waiting for runs that another process makes" if fits else "no machine has room any more")
                time.sleep(1.0)

    def notify(self, text: str) -> None:
        """Send a sentence for the notebook, unless it was the last."""
        if text != self.last:
            self.there.send(text)
        self.last = text

    def take(self, stream: Any) -> None:
        """The next of what a job sends."""
        job, held = self.running[stream]
        try:
            share, text, files = self.ray.get(next(stream))
            receive(self.workspace.store, files)
            if files:
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
        """Hand out the first jobs that wait for none, and that no other process is at, as many as there is room for."""
        unfinished = {job.digest for job in (*self.waiting, *(job for job, _ in self.running.values()))}
        free = [job for job in self.waiting if not job.waits_for & unfinished]
        most = room(self.ray.nodes(), self.given) if free else 0
        for job in free:
            if len(self.running) >= most:
                return
            held = self.workspace.store.claim_now(*job.claims)
            if held is None:
                continue
            self.waiting.remove(job)
            if (state := job.state(self.workspace)) == "complete":  # another process made it
                held.close()
                self.there.send((job, 1.0, job.do(self.workspace)))
                continue
            print(f"{job.label} ({job.digest}), {state}, is handed out", flush=True)
            self.running[self.hand_out(job)] = job, held

    def hand_out(self, job: Job) -> Any:
        """The stream of what a job will send, which begins with what there is of it and of the runs it needs."""
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
