"""From a table to its results: what is cached, what will run and for how long; then the runs."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lib.evaluate import Accuracy, Finding
from lib.experiment import cost, runs
from lib.experiment.checked import Check
from lib.experiment.jobs import Job, cores, run_jobs
from lib.experiment.opening import open_table
from lib.experiment.parameters import Parameters
from lib.experiment.progress import clock
from lib.experiment.runs import Workspace
from lib.experiment.spec import GivenWeights, RunSpec
from lib.experiment.table import Cell, Table

__all__ = ["Parameters", "Plan", "Result", "open_table", "plan", "run"]


@dataclass(frozen=True, repr=False)
class Plan:
    """What a table will cost before anything is trained: one line per job that is not complete in the store.

    `checks` are the sanity checks that are not there yet, with the seconds that they will take.
    """

    table: Table
    jobs: tuple[Job, ...]
    todo: tuple[Job, ...]
    frame: pd.DataFrame
    checks: tuple[tuple[Check, float], ...]
    edited: tuple[str, ...] = ()  # finished runs whose method's code is another now

    @property
    def workers(self) -> int:
        """How many runs are made at once: as asked for, else one per core on a CPU and one on an accelerator."""
        if self.table.workers:
            return self.table.workers
        return cores() if self.table.workspace.device == "cpu" else 1

    def summary(self) -> str:
        """The plan in a sentence or two."""
        cached = self._cached()
        if self.edited:
            cached = (
                f"The method's code was edited since these were trained: {', '.join(self.edited)}. A digest knows "
                f"settings and not code, so they are kept; another `outputs` trains them anew. {self._cached()}"
            )
        if not self.todo and not self.checks:
            return cached + "; nothing will be trained."
        work = float(self.frame["seconds"].sum()) + sum(seconds for _, seconds in self.checks)
        seconds = max(work / min(self.workers, len(self.todo) + len(self.checks)), self._longest_wait())
        will = [f"{len(self.todo)} will run"] if self.todo else []
        will += [f"{len(self.checks)} will have their sanity checked"] if self.checks else []
        text = f"{cached}; {', '.join(will)}, about {clock(seconds)} on this machine with {self.workers} workers"
        if "GPU-hours" in self.frame:
            text += (
                f", or {self.frame['GPU-hours'].sum():,.1f} GPU-hours where "
                f"{self.table.scale.sustained_tflops:g} TFLOP/s are sustained"
            )
        return text + "."

    def _cached(self) -> str:
        return f"{len(self.jobs) - len(self.todo)} of {len(self.jobs)} networks are trained and measured"

    def _longest_wait(self) -> float:
        """Seconds of the longest job, with the one that it has to wait for."""
        own = dict(zip((job.digest for job in self.todo), self.frame["seconds"], strict=True))
        chains = (own[job.digest] + max((own.get(d, 0.0) for d in job.waits_for), default=0.0) for job in self.todo)
        return max(chains, default=0.0)

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
    findings: tuple[Finding, ...] = ()  # of the sanity checks, where these were made


def plan(table: Table) -> Plan:
    """What is cached, what will run, and roughly how long it takes here, from a few steps of each method."""
    jobs = _jobs(table)
    todo = tuple(job for job in jobs if not _complete(job, table.workspace))
    known: dict[tuple[object, ...], cost.Cost] = {}
    records = []
    gpu_hours = table.scale.sustained_tflops > 0
    for job in todo:
        state = _state(job, table.workspace)
        estimate = _estimate(job, table, state.startswith(("begun", "to be")), gpu_hours, known)
        record = {"network": job.label, "state": state, "seconds": estimate.seconds}
        if gpu_hours:
            record["GPU-hours"] = estimate.flops / (table.scale.sustained_tflops * 1e12) / 3600
        records.append(record)
    frame = pd.DataFrame(records, columns=None if records else ["network", "state", "seconds"])
    missing = {check.digest: check for check in _checks(table) if check.stored(table.workspace) is None}
    checks = tuple((check, _check_seconds(check, table, known)) for check in missing.values())
    edited = tuple(job.label for job in jobs if runs.edited(job.network, table.workspace))
    return Plan(table, jobs, todo, frame, checks, edited)


def _check_seconds(check: Check, table: Table, known: dict[tuple[object, ...], cost.Cost]) -> float:
    kind = ("checks", check.network.model)
    if kind not in known:
        known[kind] = cost.checks(check.network.model, check.data, table.workspace, check.images)
    return known[kind].seconds


def _estimate(
    job: Job, table: Table, train: bool, flops: bool, known: dict[tuple[object, ...], cost.Cost]
) -> cost.Cost:
    """The job's cost; jobs of one kind are probed once."""
    net = job.network
    measuring, total = (net.model, job.columns), cost.Cost()
    if measuring not in known:
        known[measuring] = cost.evaluation(net.model, job.data, table.workspace, job.columns, flops)
    if train and isinstance(net, RunSpec):
        kind = (net.teacher and net.teacher.model, replace(net, teacher=None, seed=0, weights=()))
        if kind not in known:
            known[kind] = _training(net, table, flops)
        total = known[kind]
    return total + known[measuring]


def _training(net: RunSpec, table: Table, flops: bool) -> cost.Cost:
    """The cost of a training: as runs of its kind logged it here, and else from a few of its own steps."""
    seconds = cost.logged(net, table.workspace)
    if seconds is not None and not flops:
        return cost.Cost(seconds)
    probed = cost.training(net, table.workspace, flops)
    return probed if seconds is None else replace(probed, seconds=seconds)


def run(planned: Plan) -> list[Result]:
    """Make everything the plan names and return all of the table's results: cells, then controls, then teachers.

    Raises:
        UserError: a worker process died; what was finished is kept.
    """
    table = planned.table
    work: list[Job | Check] = [*planned.todo, *(check for check, _ in planned.checks)]
    seconds = [*planned.frame["seconds"].tolist(), *(seconds for _, seconds in planned.checks)]
    if work:
        run_jobs(work, seconds, table.workspace, planned.workers)
    found = [check.findings(table.workspace) for check in _checks(table)] or [()] * len(table.cells + table.controls)
    cells = [
        replace(
            _result((cell.student, cell.teacher, cell.row.row, cell.seed), _job(cell, ""), table.workspace), findings=f
        )
        for cell, f in zip(table.cells + table.controls, found, strict=True)
    ]
    return cells + [_result((job.label, "", "teacher", 0), job, table.workspace) for job in _teacher_jobs(table)]


def _jobs(table: Table) -> tuple[Job, ...]:
    """One job per distinct network: teachers and surrogates first, columns asked for twice only once."""
    surrogates = [Job(f"surrogate {name}", spec, table.data, ()) for name, spec in table.surrogates.items()]
    teachers = [replace(job, label=f"teacher {job.label}") for job in _teacher_jobs(table)]
    several = len({cell.seed for cell in table.cells}) > 1
    cells = [_job(cell, f", seed {cell.seed}" if several else "") for cell in table.cells + table.controls]
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


def _job(cell: Cell, seed: str) -> Job:
    taught = f" ← {cell.teacher}" if cell.teacher else ""
    surrogates = (cell.surrogate,) if cell.surrogate else ()
    label = f"{cell.row.row}, {cell.student}{taught}{seed}"
    return Job(label, cell.network, cell.data, cell.columns, cell.row.checkpoint, surrogates)


def _checks(table: Table) -> list[Check]:
    """The sanity checks, one for each cell and control; transfers come from the first other network on its data."""
    cells, images = table.cells + table.controls, table.scale.sanity_images
    made = [(cell.data, cell.network) for cell in cells if isinstance(cell.network, RunSpec)]
    found = []
    for cell in cells if images else ():
        unrelated = next((spec for data, spec in made if data == cell.data and spec != cell.network), None)
        count = min(images, len(table.workspace.dataset(cell.data).test.labels))
        radius, checkpoint = table.scale.epsilon / 255, cell.row.checkpoint
        found.append(Check(_job(cell, "").label, cell.network, cell.data, count, radius, checkpoint, unrelated))
    return found


def _complete(job: Job, workspace: Workspace) -> bool:
    made = isinstance(job.network, GivenWeights) or workspace.store.has(job.network.digest)
    return made and runs.measured(job.network, job.data, workspace, job.columns, job.checkpoint)


def _state(job: Job, workspace: Workspace) -> str:
    if isinstance(job.network, GivenWeights):
        return "given, to be measured"
    if workspace.store.has(job.network.digest):
        return "trained, to be measured"
    return "begun, goes on" if workspace.store.has_checkpoint(job.network.digest) else "to be trained"


def _result(where: tuple[str, str, str, int], job: Job, workspace: Workspace) -> Result:
    accuracies = tuple(runs.measure(job.network, job.data, workspace, job.columns, job.checkpoint, job.surrogates))
    return Result(*where, job.digest, accuracies, tuple(runs.made_with(job.network, job.data, workspace)))
