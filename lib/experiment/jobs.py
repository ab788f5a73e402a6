"""Jobs done here or in several processes, each after the job that makes its teacher, with their progress shown."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError
from lib.evaluate import AttackSpec
from lib.experiment import runs
from lib.experiment.checked import Check
from lib.experiment.processes import pool
from lib.experiment.progress import Progress
from lib.experiment.runs import Network, Workspace
from lib.experiment.spec import DataSpec, RunSpec
from lib.files import write_atomically


@dataclass(frozen=True)
class Job:
    """A network and the columns it is measured under; its teacher's job comes first."""

    label: str
    network: Network
    data: DataSpec
    columns: tuple[AttackSpec, ...]
    checkpoint: str = "best"
    surrogates: tuple[RunSpec, ...] = ()

    @property
    def digest(self) -> str:
        """What its results are kept under."""
        return runs.network_digest(self.network, self.data)

    @property
    def waits_for(self) -> set[str]:
        """The digests of the jobs that have to be done before this one: its teacher's and its surrogates'."""
        teacher = self.network.teacher if isinstance(self.network, RunSpec) else None
        return {runs.network_digest(net, self.data) for net in (teacher, *self.surrogates) if net is not None}

    def do(self, workspace: Workspace, notify: Callable[[float], None]) -> str:
        """Train and measure what is not in the store; returns what to say of it."""
        if isinstance(self.network, RunSpec):
            runs.make(self.network, workspace, notify)
        rows = runs.measure(self.network, self.data, workspace, self.columns, self.checkpoint, self.surrogates)
        return self.label + ": " + ", ".join(f"{row.column.name} {row.percent:.1f}" for row in rows)


Work = Job | Check


def run_jobs(jobs: Sequence[Work], seconds: Sequence[float], workspace: Workspace, workers: int) -> None:
    """Do every job, `workers` at once; `seconds` is what each is expected to take and weighs it in the progress.

    Raises:
        UserError: a worker process died; what was finished is kept.
    """
    progress = Progress(len(jobs))
    tally = Tally(jobs, seconds, progress)
    try:
        if workers == 1 or len(jobs) == 1:
            _run_here(jobs, workspace, tally)
        else:
            _run_in_processes(jobs, workspace, workers, tally)
    finally:
        progress.close()


def cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Tally:
    """Progress in the plan's own seconds, so that a job of hours counts for more than one of minutes."""

    def __init__(self, jobs: Sequence[Work], seconds: Sequence[float], progress: Progress) -> None:
        self.seconds = dict(zip(map(id, jobs), seconds, strict=True))
        self.progress, self.finished, self.done, self.said = progress, 0, 0.0, "starting"

    def finish(self, job: Work, said: str) -> None:
        """One job is done."""
        self.finished, self.said = self.finished + 1, said
        self.done += self.seconds[id(job)]

    def show(self, shares: Mapping[int, float]) -> None:
        """Show the state, with the shares of the jobs that are running."""
        running = sum(self.seconds[job] * share for job, share in shares.items())
        total = sum(self.seconds.values())
        self.progress.show((self.done + running) / total if total else 1.0, self.finished, self.said)


def _run_here(jobs: Sequence[Work], workspace: Workspace, tally: Tally) -> None:
    for job in jobs:

        def notify(share: float, key: int = id(job)) -> None:
            tally.show({key: 0.9 * share})

        tally.finish(job, job.do(workspace, notify))
        tally.show({})


def _run_in_processes(jobs: Sequence[Work], workspace: Workspace, workers: int, tally: Tally) -> None:
    """Jobs in processes of one thread each, every job after its teacher's."""
    waiting = list(jobs)
    open_jobs = {job.digest for job in waiting}
    running: dict[Future[str], Work] = {}
    try:
        with pool(workers) as executor:
            while waiting or running:
                ready = [job for job in waiting if not job.waits_for & open_jobs]
                for job in ready[: workers - len(running)]:
                    waiting.remove(job)
                    running[executor.submit(_work_in_process, job, workspace)] = job
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    tally.finish(job, future.result())
                    open_jobs.discard(job.digest)
                tally.show({id(job): 0.9 * _share(job, workspace) for job in running.values()})
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (out of memory?); what was finished is kept: call again, with fewer workers"
        ) from error


def _work_in_process(job: Work, workspace: Workspace) -> str:
    note = _share_file(job, workspace)
    try:
        return job.do(workspace, lambda share: write_atomically(note, str(share)))
    finally:
        note.unlink(missing_ok=True)


def _share_file(job: Work, workspace: Workspace) -> Path:
    return workspace.store.partial / f"{job.digest}.share"


def _share(job: Work, workspace: Workspace) -> float:
    try:
        return float(_share_file(job, workspace).read_text())
    except (OSError, ValueError):
        return 0.0
