"""A job on another machine: what it needs comes as files, and what it makes goes back as files."""

import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import torch
from filelock import FileLock, Timeout

from lib import ROOT, data
from lib.errors import UserError
from lib.experiment.jobs import Job, do
from lib.experiment.networks import PACKAGES, Workspace
from lib.experiment.spec import GivenWeights
from lib.experiment.store import Store
from lib.files import disk_errors, file_digest, write_atomically

Files = dict[str, bytes]  # contents by path below an outputs folder
KINDS = ("runs", "evaluations", "partial", "weights")  # its folders that travel
SCRATCH = "dynamic-at-"  # begins the name of a job's folder in the machine's temporary one


@dataclass(frozen=True)
class Visit(Workspace):
    """A workspace on a machine of the cluster, whose data came with the job."""

    data_sets: Mapping[str, data.Dataset] = field(default_factory=dict, hash=False)

    def whole(self, name: str) -> data.Dataset:
        """The data set called `name`, as it came."""
        return self.data_sets[name]


def work(
    job: Job, visit: Visit, code: str, interval: float, data_sets: Mapping[str, data.Dataset], *parts: Files
) -> Iterator[tuple[float, str, Files]]:
    """Do a job in a folder that begins as `parts`; yields its share done, its result at last, and what files changed.

    Raises UserError where the code or the packages are others than `code` says, and with the machine's name.
    """
    with scratch() as folder:
        try:
            if code != code_digest():
                raise UserError("lib or torch are others than the notebook's: bring both to one commit and environment")
            names = [name for part in parts for name in part if "weights/" in name]
            given = {name.removeprefix("weights/"): folder / name for name in names}
            workspace = replace(visit, outputs=folder, weights_files=given, data_sets=data_sets)
            for part in parts:
                receive(workspace.store, part)
            files_of(workspace.store, job.run, sent := dict[str, int]())
            shares = [0.0]
            with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                result = pool.submit(do, job, workspace, shares.append)
                while wait([result], timeout=interval).not_done:
                    share, files = shares[-1], files_of(workspace.store, job.run, sent)
                    if files:
                        yield share, "", files
            yield shares[-1], "", files_of(workspace.store, job.run, sent)
            yield 1.0, result.result(), {}
        except UserError as error:
            raise UserError(f"on {platform.node()}: {error}") from error


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a job, locked until it goes; those of jobs that were killed, whose locks are free, go first."""
    parent = Path(tempfile.gettempdir())
    for lock in parent.glob(f"{SCRATCH}*.lock"):
        with suppress(Timeout, OSError), FileLock(lock).acquire(blocking=False):  # OSError: another user's
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
    folder = parent / f"{SCRATCH}{uuid4().hex}"
    lock = folder.with_suffix(".lock")
    with disk_errors(parent):
        held = FileLock(lock).acquire()
        folder.mkdir(mode=0o700)
    with held:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


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
    """Take in what `files_of` gave: a run whole and as its manifest has it, everything else file by file.

    Raises UserError for a name that leads elsewhere.
    """
    runs = dict[str, dict[str, bytes]]()
    for name, content in files.items():
        kind, folder, *rest = name.split("/")
        if kind not in KINDS or {"", ".", ".."} & {folder, *rest}:
            raise UserError(f"a file called {name} came, which belongs nowhere in {store.outputs}")
        if kind == "runs":
            runs.setdefault(folder, {})["/".join(rest)] = content
            continue
        with disk_errors(store.outputs):
            (store.outputs / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(store.outputs / name, content)
    for digest, contents in runs.items():
        if not store.has(digest):
            store.publish(digest, contents)
        store.checkpoint(digest).unlink(missing_ok=True)


def given_weights(job: Job, workspace: Workspace) -> Files:
    """The files of the weights that were given for networks that the job uses."""
    given = [net.sha256 for net in (job.network, *job.needs) if isinstance(net, GivenWeights)]
    return {f"weights/{sha256}": workspace.weights_files[sha256].read_bytes() for sha256 in given}


@cache
def code_digest() -> str:
    """What decides a run's bits beside its spec: the SHA-256 of lib's code, and the packages' versions."""
    files = [f"{file.relative_to(ROOT)} {file_digest(file)}" for file in sorted((ROOT / "lib").rglob("*.py"))]
    return sha256("\n".join(files + [f"{name} {version(name)}" for name in PACKAGES]).encode()).hexdigest()
