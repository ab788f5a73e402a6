"""From a table to its results: what is cached, what will run and for how long; then the runs, one worker or several."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lib import cost, runs
from lib.errors import UserError
from lib.evaluate import Accuracy, Column
from lib.parameters import Parameters, check
from lib.progress import Progress, clock
from lib.runs import Network, Place
from lib.spec import DataSpec, GivenWeights, RunSpec
from lib.store import write_atomically
from lib.table import Cell, Table, open_table

__all__ = ["Parameters", "Plan", "Result", "check", "open_table", "plan", "run"]


@dataclass(frozen=True)
class Job:
    """A network and the columns it is measured under; its teacher's job comes first."""

    label: str
    network: Network
    data: DataSpec
    columns: tuple[Column, ...]
    checkpoint: str

    @property
    def digest(self) -> str:
        """What its results are kept under."""
        return runs.network_digest(self.network, self.data)

    @property
    def waits_for(self) -> str | None:
        """The digest of the job that has to be done before this one."""
        teacher = self.network.teacher if isinstance(self.network, RunSpec) else None
        return runs.network_digest(teacher, self.data) if teacher else None


@dataclass(frozen=True, repr=False)
class Plan:
    """What a table will cost before anything is trained: one line per job that is not complete in the store."""

    table: Table
    jobs: tuple[Job, ...]
    todo: tuple[Job, ...]
    frame: pd.DataFrame

    @property
    def workers(self) -> int:
        """How many runs are made at once: as asked for, else one per core on a CPU and one on an accelerator."""
        if self.table.workers:
            return self.table.workers
        return _cores() if self.table.place.device == "cpu" else 1

    def summary(self) -> str:
        """The plan in a sentence or two."""
        cached = f"{len(self.jobs) - len(self.todo)} of {len(self.jobs)} networks are trained and measured"
        if not self.todo:
            return cached + "; nothing will be trained."
        seconds = float(self.frame["seconds"].sum()) / min(self.workers, len(self.todo))
        text = (
            f"{cached}; {len(self.todo)} will run, about {clock(seconds)} on this machine with {self.workers} workers"
        )
        if "GPU-hours" in self.frame:
            text += (
                f", or {self.frame['GPU-hours'].sum():,.1f} GPU-hours where "
                f"{self.table.scale.sustained_tflops:g} TFLOP/s are sustained"
            )
        return text + "."

    def _repr_markdown_(self) -> str:
        lines = [f"**Plan.** {self.summary()}"]
        if self.todo:
            lines += ["", "| network | state | about |" + (" GPU-hours |" if "GPU-hours" in self.frame else "")]
            lines += ["|---|---|---|" + ("---|" if "GPU-hours" in self.frame else "")]
            for row in self.frame.to_dict("records"):
                hours = f" {row['GPU-hours']:.2f} |" if "GPU-hours" in row else ""
                lines.append(f"| {row['network']} | {row['state']} | {clock(row['seconds'])} |{hours}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Plan. {self.summary()}"


@dataclass(frozen=True)
class Result:
    """A cell's accuracies in the order of the table's columns, and what they and the network were made with."""

    student: str
    teacher: str
    row: str
    seed: int
    digest: str
    accuracies: tuple[Accuracy, ...]
    made: tuple[dict[str, Any], ...] = ()


def plan(table: Table) -> Plan:
    """What is cached, what will run, and roughly how long it takes here, from a few steps of each method."""
    jobs = _jobs(table)
    todo = tuple(job for job in jobs if not _complete(job, table.place))
    known: dict[tuple[object, ...], cost.Cost] = {}
    records = []
    gpu_hours = table.scale.sustained_tflops > 0
    for job in todo:
        state = _state(job, table.place)
        estimate = _estimate(job, table, state.startswith(("begun", "to be")), gpu_hours, known)
        record = {"network": job.label, "state": state, "seconds": estimate.seconds}
        if gpu_hours:
            record["GPU-hours"] = estimate.flops / (table.scale.sustained_tflops * 1e12) / 3600
        records.append(record)
    return Plan(table, jobs, todo, pd.DataFrame(records, columns=None if records else ["network", "state", "seconds"]))


def _estimate(
    job: Job, table: Table, train: bool, flops: bool, known: dict[tuple[object, ...], cost.Cost]
) -> cost.Cost:
    """The job's cost; jobs of one kind are probed once."""
    net = job.network
    measuring, total = (net.model, job.columns), cost.Cost()
    if measuring not in known:
        known[measuring] = cost.evaluation(net.model, job.data, table.place, job.columns, flops)
    if train and isinstance(net, RunSpec):
        kind = (net.model, net.method, net.teacher and net.teacher.model, net.schedule)
        if kind not in known:
            known[kind] = cost.training(net, table.place, flops)
        total = known[kind]
    return total + known[measuring]


def run(planned: Plan) -> list[Result]:
    """Make everything the plan names and return all of the table's results: cells, then controls, then teachers.

    Raises:
        UserError: a worker process died; what was finished is kept.
    """
    table = planned.table
    if planned.todo:
        progress = Progress(len(planned.todo))
        try:
            one_by_one = planned.workers == 1 or len(planned.todo) == 1
            (_run_here if one_by_one else _run_in_processes)(planned, _Tally(planned, progress))
        finally:
            progress.close()
    cells = [_cell_result(cell, table, _all_columns(table)) for cell in table.cells]
    controls = [_cell_result(cell, table, table.control_columns) for cell in table.controls]
    teachers = [
        _result(name, "", "teacher", 0, spec, table, table.columns, "best") for name, spec in table.teachers.items()
    ]
    return cells + controls + teachers


def _jobs(table: Table) -> tuple[Job, ...]:
    """One job per distinct network, teachers first."""
    both = _all_columns(table)
    jobs = [Job(f"teacher {name}", spec, table.data, table.columns, "best") for name, spec in table.teachers.items()]
    jobs += [Job(_label(cell, table), cell.spec, table.data, both, cell.row.checkpoint) for cell in table.cells]
    controls = [
        Job(_label(cell, table), cell.spec, table.data, table.control_columns, cell.row.checkpoint)
        for cell in table.controls
    ]
    distinct: dict[tuple[str, str], Job] = {}
    for job in jobs + controls:
        key = (job.digest, job.checkpoint)
        earlier = distinct.get(key, job)
        distinct[key] = replace(earlier, columns=tuple(dict.fromkeys(earlier.columns + job.columns)))
    return tuple(distinct.values())


def _all_columns(table: Table) -> tuple[Column, ...]:
    return tuple(dict.fromkeys(table.columns + table.control_columns))


def _label(cell: Cell, table: Table) -> str:
    taught = f" ← {cell.teacher}" if cell.teacher else ""
    seed = f", seed {cell.seed}" if len({c.seed for c in table.cells}) > 1 else ""
    return f"{cell.row.row}, {cell.student}{taught}{seed}"


def _complete(job: Job, place: Place) -> bool:
    made = isinstance(job.network, GivenWeights) or place.store.has(job.network.digest)
    return made and runs.measured(job.network, job.data, place, job.columns, job.checkpoint)


def _state(job: Job, place: Place) -> str:
    if isinstance(job.network, GivenWeights):
        return "given, to be measured"
    if place.store.has(job.network.digest):
        return "trained, to be measured"
    return "begun, goes on" if place.store.has_checkpoint(job.network.digest) else "to be trained"


def _work(job: Job, place: Place, notify: Callable[[float], None]) -> str:
    """Do one job; returns what to say of it."""
    if isinstance(job.network, RunSpec):
        runs.make(job.network, place, notify)
    rows = runs.measure(job.network, job.data, place, job.columns, job.checkpoint)
    return job.label + ": " + ", ".join(f"{row.column.name} {row.percent:.1f}" for row in rows)


class _Tally:
    """Progress in the plan's own seconds, so that a job of hours counts for more than one of minutes."""

    def __init__(self, planned: Plan, progress: Progress) -> None:
        seconds = planned.frame["seconds"].tolist()
        self.seconds = dict(zip((id(job) for job in planned.todo), seconds, strict=True))
        self.progress, self.finished, self.done, self.said = progress, 0, 0.0, "starting"

    def finish(self, job: Job, said: str) -> None:
        """One job is done."""
        self.finished, self.said = self.finished + 1, said
        self.done += self.seconds[id(job)]

    def show(self, shares: Mapping[int, float]) -> None:
        """Show the state, with the shares of the jobs that are running."""
        running = sum(self.seconds[job] * share for job, share in shares.items())
        total = sum(self.seconds.values())
        self.progress.show((self.done + running) / total if total else 1.0, self.finished, self.said)


def _run_here(planned: Plan, tally: _Tally) -> None:
    for job in planned.todo:

        def notify(share: float, key: int = id(job)) -> None:
            tally.show({key: 0.9 * share})

        tally.finish(job, _work(job, planned.table.place, notify))
        tally.show({})


def _run_in_processes(planned: Plan, tally: _Tally) -> None:
    """Jobs in processes of one thread each, every job after its teacher's."""
    waiting, place = list(planned.todo), planned.table.place
    open_jobs = {job.digest for job in waiting}
    running: dict[Future[str], Job] = {}
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(planned.workers, context, initializer=_init_worker) as pool:
        try:
            while waiting or running:
                ready = [job for job in waiting if job.waits_for not in open_jobs]
                for job in ready[: planned.workers - len(running)]:
                    waiting.remove(job)
                    running[pool.submit(_work_in_process, job, place)] = job
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    tally.finish(job, future.result())
                    open_jobs.discard(job.digest)
                tally.show({id(job): 0.9 * _share(job, place) for job in running.values()})
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died (out of memory?); what was finished is kept: call again, with fewer workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _work_in_process(job: Job, place: Place) -> str:
    note = _share_file(job, place)
    try:
        return _work(job, place, lambda share: write_atomically(note, str(share)))
    finally:
        note.unlink(missing_ok=True)


def _share_file(job: Job, place: Place) -> Path:
    return place.store.partial / f"{job.digest}.share"


def _share(job: Job, place: Place) -> float:
    try:
        return float(_share_file(job, place).read_text())
    except (OSError, ValueError):
        return 0.0


def _init_worker() -> None:
    """One thread, and an end when the parent ends."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside the block get one OpenMP thread each."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        os.environ |= {"OMP_NUM_THREADS": before} if before else {}


def _cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cell_result(cell: Cell, table: Table, columns: tuple[Column, ...]) -> Result:
    row = cell.row
    return _result(cell.student, cell.teacher, row.row, cell.seed, cell.spec, table, columns, row.checkpoint)


def _result(
    student: str,
    teacher: str,
    row: str,
    seed: int,
    network: Network,
    table: Table,
    columns: tuple[Column, ...],
    checkpoint: str,
) -> Result:
    accuracies = tuple(runs.measure(network, table.data, table.place, columns, checkpoint))
    made = tuple(runs.made_with(network, table.data, table.place))
    return Result(student, teacher, row, seed, runs.network_digest(network, table.data), accuracies, made)
