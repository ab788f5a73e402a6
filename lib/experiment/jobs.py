"""Jobs done here or in several processes, each after the jobs that make the networks it uses, with their progress."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lib.errors import UserError
from lib.evaluate import AttackSpec
from lib.experiment import measuring, runs
from lib.experiment.measuring import Sanity
from lib.experiment.networks import Network, Workspace, network_digest
from lib.experiment.progress import Progress
from lib.experiment.spec import DataSpec, RunSpec
from lib.files import write_atomically


@dataclass(frozen=True)
class Job:
    """A network to be trained and measured under `columns`; with `sanity`, a made one whose evaluation is checked.

    `surrogates` are the other networks that it needs, beside its teacher.
    """

    label: str
    network: Network
    data: DataSpec
    columns: tuple[AttackSpec, ...] = ()
    checkpoint: str = "best"
    surrogates: tuple[RunSpec, ...] = ()
    sanity: Sanity | None = None

    @property
    def digest(self) -> str:
        """What its results are kept under, and that tells a check from the job that makes its network."""
        return network_digest(self.network, self.data) + (f"-{self.sanity.key}" if self.sanity else "")

    @property
    def waits_for(self) -> set[str]:
        """The digests of the jobs that have to be done before this one."""
        if self.sanity is not None:
            needed: tuple[Network | None, ...] = (self.network, self.sanity.unrelated)
        else:
            needed = (self.network.teacher if isinstance(self.network, RunSpec) else None, *self.surrogates)
        return {network_digest(net, self.data) for net in needed if net is not None}

    def complete(self, workspace: Workspace) -> bool:
        """Whether nothing is left to do."""
        if self.sanity is not None:
            return self.sanity.read(self.network, self.data, workspace) is not None
        made = not isinstance(self.network, RunSpec) or workspace.store.has(self.network.digest)
        return made and measuring.measured(self.network, self.data, workspace, self.columns, self.checkpoint)

    def do(self, workspace: Workspace, notify: Callable[[float], None]) -> str:
        """Make what is not in the store; returns it in a line."""
        if self.sanity is not None:
            self.sanity.make(self.network, self.data, workspace)
            findings = self.sanity.read(self.network, self.data, workspace) or ()
            fired = ", ".join(finding.check for finding in findings if finding.fired)
            return f"{self.label}: {fired + ' fired' if fired else 'sound'}"
        if isinstance(self.network, RunSpec):
            runs.make(self.network, workspace, notify)
        rows = measuring.measure(self.network, self.data, workspace, self.columns, self.checkpoint, self.surrogates)
        return f"{self.label}: " + ", ".join(f"{row.column.name} {row.percent:.1f}" for row in rows)


def cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], seconds: Sequence[float], workspace: Workspace, workers: int) -> None:
    """Do every job, `workers` at once; `seconds` is what each is expected to take and weighs it in the progress.

    Raises:
        UserError: a worker process died; what was finished is kept.
    """
    progress = Progress(dict(zip(jobs, seconds, strict=True)))
    try:
        if workers == 1 or len(jobs) == 1:
            for job in jobs:
                progress.finish(job, job.do(workspace, partial(progress.show_one, job)))
        else:
            _run_in_processes(jobs, workspace, workers, progress)
    finally:
        progress.close()


def _run_in_processes(jobs: Sequence[Job], workspace: Workspace, workers: int, progress: Progress) -> None:
    """Jobs in processes of one thread each, every job after those that it waits for."""
    waiting, unfinished = list(jobs), {job.digest for job in jobs}
    running: dict[Future[str], Job] = {}
    notes = {job: workspace.store.partial / f"{job.digest}.share" for job in jobs}
    try:
        with pool(workers) as executor:
            while waiting or running:
                ready = [job for job in waiting if not job.waits_for & unfinished]
                for job in ready[: workers - len(running)]:
                    waiting.remove(job)
                    running[executor.submit(_work_in_process, job, workspace, notes[job])] = job
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    unfinished.discard(job.digest)
                    progress.finish(job, future.result())
                progress.show({job: _read_share(notes[job]) for job in running.values()})
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (out of memory?); what was finished is kept: call again, with fewer workers"
        ) from error


def _work_in_process(job: Job, workspace: Workspace, note: Path) -> str:
    try:
        return job.do(workspace, lambda share: write_atomically(note, str(share)))
    finally:
        note.unlink(missing_ok=True)


def _read_share(note: Path) -> float:
    try:
        return float(note.read_text())
    except (OSError, ValueError):
        return 0.0


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """An executor of `workers` fresh processes of one thread each, which end with their parent; an error ends them."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            own = set(multiprocessing.active_children()) - others
            for process in own:
                process.terminate()
            for process in own:
                process.join()
            raise


def _begin() -> None:
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
