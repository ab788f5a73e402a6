"""From a table to its results: what is finished, what will run and for how long; then the runs."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import pandas as pd

from lib.evaluate import Accuracy, Finding
from lib.experiment import cost, runs
from lib.experiment.cluster import run_on_cluster
from lib.experiment.jobs import Check, Job, run_jobs
from lib.experiment.progress import clock
from lib.experiment.spec import RunSpec
from lib.experiment.table import Cell, Table


@dataclass(frozen=True, repr=False)
class Plan:
    """The cost of tables before anything is trained; `frame` has a line per job of `todo`, which are not complete."""

    table: Table  # the first, where there are several
    jobs: tuple[Job, ...]
    todo: tuple[Job, ...]
    frame: pd.DataFrame
    edited: tuple[str, ...]  # finished runs whose method's code is another now

    @property
    def workers(self) -> int:
        """How many runs are made at once: the parameter, else one per core on a CPU and one on an accelerator."""
        if self.table.parameters.executor == "ray":
            return 1  # how many the cluster makes at once shows when it is there
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.table.parameters.workers or (own if self.table.workspace.device == "cpu" else 1)

    @property
    def seconds(self) -> float:
        """The expected time: the work shared by the workers, and never less than the longest chain of jobs."""
        ends: dict[str, float] = {}
        for job, own in zip(self.todo, self.frame["seconds"], strict=True):
            ends[job.digest] = own + max((ends.get(digest, 0.0) for digest in job.waits_for), default=0.0)
        shared = self.frame["seconds"].sum() / max(1, min(self.workers, len(self.todo)))
        return float(max(shared, *ends.values(), 0.0))

    def summary(self) -> str:
        """The plan in a sentence or two."""
        networks = sum(not isinstance(job, Check) for job in self.todo)
        text = f"{len(self.jobs) - networks} of {len(self.jobs)} networks are trained and measured"
        if self.edited:
            text = (
                f"The method's code was edited since these were trained: {', '.join(self.edited)}. A digest knows "
                f"settings and not code, so they are kept; another `outputs` trains them anew. {text}"
            )
        if not self.todo:
            return text + "; nothing will be trained."
        counts = {"will run": networks, "will have their sanity checked": len(self.todo) - networks}
        text += "; " + ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        text += f", about {clock(self.seconds)} on this machine with {workers}"
        if self.table.parameters.executor == "ray":
            text += f" (the Ray cluster at {self.table.parameters.address} divides it among its machines)"
        if rate := self.table.scale.sustained_tflops:
            hours = self.frame["GPU-hours"].sum()
            text += f", or {hours:,.1f} GPU-hours where {rate:g} TFLOP/s are sustained"
        return text + "."

    def _repr_html_(self) -> str:
        lines = self.frame.loc[[not isinstance(job, Check) for job in self.todo]]
        lines = lines.assign(seconds=lines["seconds"].map(clock)).rename(columns={"seconds": "about"})
        text = f"<p><b>Plan.</b> {escape(self._sentences())}</p>"
        listed = lines.to_html(index=False, float_format="{:.2f}".format)
        return text + (f"<details><summary>Which networks</summary>{listed}</details>" if len(lines) else "")

    def __repr__(self) -> str:
        return f"Plan. {self._sentences()}"

    def _sentences(self) -> str:
        return f"Scale {self.table.scale_name}: {self.table.scale.title}. {self.summary()}"


@dataclass(frozen=True)
class Result:
    """A network's accuracies in the order of the table's columns, and what they and the network were made with.

    `role` is where it stands: a "cell" of the table, a "control", or a "teacher" (whose name is `student`).
    """

    student: str
    teacher: str
    row: str
    seed: int
    digest: str
    accuracies: tuple[Accuracy, ...]
    made: tuple[dict[str, Any], ...] = ()
    findings: tuple[Finding, ...] = ()  # of the sanity checks, where these were made
    role: str = "cell"


def plan(table: Table, *more: Table) -> Plan:
    """What is finished, what will run, and roughly how long it takes here, as logged or from a step of each method.

    Several tables, of equal parameters, are one plan: what two of them ask for is made once.
    """
    workspace, rate, jobs = table.workspace, table.scale.sustained_tflops * 1e12, jobs_of(table, *more)
    cells = [(cell, one) for one in (table, *more) if one.scale.sanity_images for cell in one.cells + one.controls]
    checks = [_check(cell, one) for cell, one in cells]
    states = {job: job.state(workspace) for job in [*jobs, *{check.digest: check for check in checks}.values()]}
    todo = tuple(job for job, state in states.items() if state != "complete")
    frame = pd.DataFrame({"network": [job.label for job in todo], "state": [states[job] for job in todo]})
    logs = cost.logged(workspace)
    costs = pd.DataFrame([cost.of(job, workspace, logs, rate > 0) for job in todo], columns=["seconds", "flops"])
    frame["seconds"] = costs["seconds"]
    if rate:
        frame["GPU-hours"] = costs["flops"] / rate / 3600
    made = [(job.label, job.network) for job in jobs if isinstance(job.network, RunSpec)]
    return Plan(table, jobs, todo, frame, tuple(label for label, spec in made if runs.edited(spec, workspace)))


def make(planned: Plan) -> None:
    """Make everything the plan names, in its order where nothing has to wait for another."""
    table = planned.table
    if planned.todo:
        seconds, parameters = dict(zip(planned.todo, planned.frame["seconds"], strict=True)), table.parameters
        if parameters.executor == "ray":
            run_on_cluster(seconds, table.workspace, parameters)
        else:
            run_jobs(seconds, table.workspace, planned.workers)
    for digest in dict.fromkeys(job.run for job in planned.jobs):
        table.workspace.store.tidy(digest)


def run(planned: Plan) -> list[Result]:
    """Make everything the plan names and return all of the table's results: cells, then controls, then teachers."""
    make(planned)
    table = planned.table
    jobs: dict[str, Sequence[Job]] = {"cell": table.cells, "control": table.controls, "teacher": _teachers(table)}
    return [result(role, job, table, job.measure(table.workspace)) for role, each in jobs.items() for job in each]


def result(role: str, job: Job, table: Table, accuracies: Iterable[Accuracy | None]) -> Result:
    """A job's result in its role; a check's findings beside it, where they were made."""
    workspace, found = table.workspace, tuple(one for one in accuracies if one is not None)
    made = tuple(job.made_with(workspace)) if found else ()
    if not isinstance(job, Cell):
        return Result(job.label, "", "", 0, job.digest, found, made, role=role)
    findings = _check(job, table).findings(workspace) if table.scale.sanity_images else ()
    return Result(job.student, job.teacher, job.row.row, job.seed, job.digest, found, made, findings or (), role)


def jobs_of(*tables: Table) -> tuple[Job, ...]:
    """One job per distinct network: teachers and surrogates first, a column that two cells have only once."""
    every, distinct = list[Job](), dict[tuple[str, str], Job]()
    for table in tables:
        every += [replace(job, label=f"teacher {job.label}") for job in _teachers(table)]
        every += [Job(f"surrogate {name}", spec, table.data) for name, spec in table.surrogates.items()]
        every += [*table.cells, *table.controls]
    for job in every:
        earlier = distinct.get(key := (job.digest, job.checkpoint), job)
        columns = tuple(dict.fromkeys(earlier.columns + job.columns))
        both = tuple(dict.fromkeys(earlier.surrogates + job.surrogates))
        distinct[key] = replace(earlier, columns=columns, surrogates=both)
    return tuple(distinct.values())


def _teachers(table: Table) -> list[Job]:
    columns = () if table.surrogates else table.columns  # in a table of transfers they only teach
    return [Job(name, spec, table.data, columns) for name, spec in table.teachers.items()]


def _check(cell: Cell, table: Table) -> Check:
    """A cell's sanity checks; transfers come from the first other network on its data."""
    others = (other.network for other in table.cells + table.controls if other.data == cell.data)
    unrelated = tuple(net for net in others if isinstance(net, RunSpec) and net != cell.network)[:1]
    images = min(table.scale.sanity_images, table.workspace.counts(cell.data)[1])
    given = (cell.label, cell.network, cell.data, (), cell.checkpoint, unrelated)
    return Check(*given, images=images, epsilon=table.scale.epsilon_255 / 255)
