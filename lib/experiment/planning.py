"""From a table to its results: what is finished, what will run and for how long; then the runs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from html import escape
from typing import Any

import pandas as pd

from lib.evaluate import Accuracy, Finding
from lib.experiment import cost, measuring, runs
from lib.experiment.cost import Cost
from lib.experiment.jobs import Job, cores, run_jobs
from lib.experiment.measuring import Sanity
from lib.experiment.networks import network_digest
from lib.experiment.progress import clock
from lib.experiment.spec import GivenWeights, RunSpec
from lib.experiment.table import Cell, Table


@dataclass(frozen=True, repr=False)
class Plan:
    """The cost of a table before anything is trained: one line per job that is not complete in the store.

    `checks` are the sanity checks that are not there yet, with the seconds that they will take.
    """

    table: Table
    jobs: tuple[Job, ...]
    todo: tuple[Job, ...]
    frame: pd.DataFrame
    checks: tuple[tuple[Job, float], ...]
    edited: tuple[str, ...] = ()  # finished runs whose method's code is another now

    @property
    def workers(self) -> int:
        """How many runs are made at once: the parameter, else one per core on a CPU and one on an accelerator."""
        if self.table.parameters.workers:
            return self.table.parameters.workers
        return cores() if self.table.workspace.device == "cpu" else 1

    @property
    def seconds(self) -> float:
        """The expected time: the work shared by the workers, and never less than the longest chain of jobs."""
        work = float(self.frame["seconds"].sum()) + sum(seconds for _, seconds in self.checks)
        own = dict(zip((job.digest for job in self.todo), self.frame["seconds"], strict=True))
        chains = (own[job.digest] + max((own.get(d, 0.0) for d in job.waits_for), default=0.0) for job in self.todo)
        return max(work / min(self.workers, max(1, len(self.todo) + len(self.checks))), *chains, 0.0)

    def summary(self) -> str:
        """The plan in a sentence or two."""
        text = f"{len(self.jobs) - len(self.todo)} of {len(self.jobs)} networks are trained and measured"
        if self.edited:
            text = (
                f"The method's code was edited since these were trained: {', '.join(self.edited)}. A digest knows "
                f"settings and not code, so they are kept; another `outputs` trains them anew. {text}"
            )
        if not self.todo and not self.checks:
            return text + "; nothing will be trained."
        will = [f"{len(self.todo)} will run"] if self.todo else []
        will += [f"{len(self.checks)} will have their sanity checked"] if self.checks else []
        text += f"; {', '.join(will)}, about {clock(self.seconds)} on this machine with {self.workers} workers"
        if "GPU-hours" in self.frame:
            rate = f"{self.table.scale.sustained_tflops:g} TFLOP/s are sustained"
            text += f", or {self.frame['GPU-hours'].sum():,.1f} GPU-hours where {rate}"
        return text + "."

    def _repr_html_(self) -> str:
        lines = self.frame.assign(seconds=self.frame["seconds"].map(clock)).rename(columns={"seconds": "about"})
        text = f"<p><b>Plan.</b> {escape(self.summary())}</p>"
        return text + (lines.to_html(index=False, float_format="{:.2f}".format) if self.todo else "")

    def __repr__(self) -> str:
        return f"Plan. {self.summary()}"


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


def plan(table: Table) -> Plan:
    """What is finished, what will run, and roughly how long it takes here, as logged or from a step of each method."""
    jobs, place, rate = _jobs(table), table.workspace, table.scale.sustained_tflops * 1e12
    todo = tuple(job for job in jobs if not job.complete(place))
    training, evaluation = cache(partial(_training, table)), cache(partial(cost.evaluation, workspace=place))
    records = []
    for job in todo:
        state = _state(job, table)
        total = evaluation(job.network.model, job.data, columns=job.columns, flops=rate > 0)
        if isinstance(job.network, RunSpec) and not place.store.has(job.network.digest):
            teacher = job.network.teacher and GivenWeights(job.network.teacher.model, "")
            total += training(replace(job.network, seed=0, weights=(), teacher=teacher))
        record: dict[str, Any] = {"network": job.label, "state": state, "seconds": total.seconds}
        records.append(record | ({"GPU-hours": total.flops / rate / 3600} if rate else {}))
    frame = pd.DataFrame(records, columns=None if records else ["network", "state", "seconds"])
    missing = {job.digest: job for job in _checks(table) if not job.complete(place)}
    checks = []
    for job in missing.values():
        assert job.sanity is not None
        columns = (replace(cost.SANITY, images=job.sanity.images),)
        checks.append((job, evaluation(job.network.model, job.data, columns=columns, flops=False).seconds))
    edited = tuple(job.label for job in jobs if runs.edited(job.network, place))
    return Plan(table, jobs, todo, frame, tuple(checks), edited)


def _training(table: Table, spec: RunSpec) -> Cost:
    """The cost of a training: as runs of its kind logged it here, and else from its own steps."""
    flops, seconds = table.scale.sustained_tflops > 0, cost.logged(spec, table.workspace)
    if seconds is not None and not flops:
        return Cost(seconds)
    counted = cost.training(spec, table.workspace, flops)
    return counted if seconds is None else replace(counted, seconds=seconds)


def run(planned: Plan) -> list[Result]:
    """Make everything the plan names and return all of the table's results: cells, then controls, then teachers.

    Raises:
        UserError: a worker process died; what was finished is kept.
    """
    table = planned.table
    work = [*zip(planned.todo, planned.frame["seconds"], strict=True), *planned.checks]
    if work:
        run_jobs([job for job, _ in work], [seconds for _, seconds in work], table.workspace, planned.workers)
    cells = [(cell, "cell") for cell in table.cells] + [(cell, "control") for cell in table.controls]
    checks: Iterable[Job | None] = _checks(table) or [None] * len(cells)
    results = []
    for (cell, role), check in zip(cells, checks, strict=True):
        findings = check and check.sanity and check.sanity.read(cell.network, cell.data, table.workspace)
        where = (cell.student, cell.teacher, cell.row.row, cell.seed)
        results.append(replace(_result(where, _job(cell), table), findings=findings or (), role=role))
    teachers = [replace(_result((job.label, "", "", 0), job, table), role="teacher") for job in _teacher_jobs(table)]
    return results + teachers


def _result(where: tuple[str, str, str, int], job: Job, table: Table) -> Result:
    given = (job.network, job.data, table.workspace)
    accuracies = tuple(measuring.measure(*given, job.columns, job.checkpoint, job.surrogates))
    return Result(*where, network_digest(job.network, job.data), accuracies, tuple(measuring.made_with(*given)))


def _jobs(table: Table) -> tuple[Job, ...]:
    """One job per distinct network: teachers and surrogates first, a column that two cells have only once."""
    surrogates = [Job(f"surrogate {name}", spec, table.data) for name, spec in table.surrogates.items()]
    teachers = [replace(job, label=f"teacher {job.label}") for job in _teacher_jobs(table)]
    several = len({cell.seed for cell in table.cells}) > 1
    cells = [_job(cell, several) for cell in table.cells + table.controls]
    distinct: dict[tuple[str, str], Job] = {}
    for job in teachers + surrogates + cells:
        earlier = distinct.get(key := (job.digest, job.checkpoint), job)
        columns = tuple(dict.fromkeys(earlier.columns + job.columns))
        both = tuple(dict.fromkeys(earlier.surrogates + job.surrogates))
        distinct[key] = replace(earlier, columns=columns, surrogates=both)
    return tuple(distinct.values())


def _teacher_jobs(table: Table) -> list[Job]:
    columns = () if table.surrogates else table.columns  # in a table of transfers they only teach
    return [Job(name, spec, table.data, columns) for name, spec in table.teachers.items()]


def _job(cell: Cell, several_seeds: bool = False) -> Job:
    taught = f" ← {cell.teacher}" if cell.teacher else ""
    label = f"{cell.row.row}, {cell.student}{taught}" + (f", seed {cell.seed}" if several_seeds else "")
    surrogates = (cell.surrogate,) if cell.surrogate else ()
    return Job(label, cell.network, cell.data, cell.columns, cell.row.checkpoint, surrogates)


def _checks(table: Table) -> list[Job]:
    """The sanity checks, one for each cell and control; transfers come from the first other network on its data."""
    cells, images = table.cells + table.controls, table.scale.sanity_images
    made = [(cell.data, cell.network) for cell in cells if isinstance(cell.network, RunSpec)]
    checks = []
    for cell in cells if images else ():
        unrelated = next((spec for data, spec in made if data == cell.data and spec != cell.network), None)
        count = min(images, len(table.workspace.dataset(cell.data).test.labels))
        sanity = Sanity(count, table.scale.epsilon_255 / 255, cell.row.checkpoint, unrelated)
        checks.append(Job(_job(cell).label, cell.network, cell.data, sanity=sanity))
    return checks


def _state(job: Job, table: Table) -> str:
    if isinstance(job.network, GivenWeights):
        return "given, to be measured"
    if table.workspace.store.has(job.network.digest):
        return "trained, to be measured"
    return "begun, goes on" if table.workspace.store.has_checkpoint(job.network.digest) else "to be trained"
