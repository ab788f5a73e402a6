"""Kept evidence: outputs/reference/<scale>/ has a scale's finished runs and accuracies, committed with the code.

It is a run store that is only read: the same specs find the same runs, whether the data is here or not. Weights are in
half precision, those of the first runs up to 25 MB, and every file has its SHA-256 in its run's manifest.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file

from lib.errors import UserError, choose
from lib.experiment.jobs import Check, Job
from lib.experiment.networks import Network, Workspace
from lib.experiment.parameters import load_scale
from lib.experiment.planning import Result, result
from lib.experiment.reference import FORM, REFERENCE, SCALES, index
from lib.experiment.spec import DataSpec, RunSpec
from lib.experiment.store import Store
from lib.experiment.table import Cell, Table
from lib.files import write_atomically
from lib.models.checkpoints import as_safetensors

WEIGHTS, MOST = "best.safetensors", 25_000_000  # bytes that weights may take; further runs are kept without theirs


@dataclass(frozen=True)
class Kept(Workspace):
    """The kept evidence of a scale as a workspace; the data is described as it was there."""

    @property
    def store(self) -> Store:
        """The kept runs."""
        return Store(self.outputs)

    def describe(self, name: str, train_images: int, held_out: int) -> DataSpec:
        """The spec of the data that the evidence was made on."""
        facts = choose("data set with kept evidence", name, index(self.outputs)["data"])
        return DataSpec(name, facts["sha256"], train_images, held_out)

    def counts(self, spec: DataSpec) -> tuple[int, int]:
        """How many classes that data had and how many test images."""
        facts = index(self.outputs)["data"][spec.name]
        return facts["classes"], facts["test_images"]

    def weights(self, spec: Network, checkpoint: str) -> str:
        """Not known: the accuracies are of the weights before they were halved."""
        return ""


def keep(job: Job, table: Table, reference: Path = REFERENCE) -> None:
    """Put a finished job's run and accuracies under `reference`/<scale>, and what is needed to find them again.

    Raises UserError where the folder holds evidence of other code.
    """
    folder, own = reference / table.scale_name, table.workspace.store
    facts = index(folder) if (folder / "index.json").exists() else {"data": {}, "seeds": [], "weights": {}}
    digest, kept, given = job.run, Store(folder).prepared(), table.parameters
    if isinstance(job.network, RunSpec) and not kept.has(digest):
        with kept.publishing(digest) as run:
            for name in ("spec", "history", "provenance"):
                (run / f"{name}.json").write_text((own.folder(digest) / f"{name}.json").read_text())
            weights = load_file(own.folder(digest) / WEIGHTS).items()
            halves = as_safetensors({name: w.half() if w.is_floating_point() else w for name, w in weights})
            if sum(file.stat().st_size for file in folder.rglob(WEIGHTS)) + len(halves) <= MOST:
                (run / WEIGHTS).write_bytes(halves)
    if isinstance(job.network, RunSpec):
        one, other = (store.folder(digest) / "provenance.json" for store in (own, kept))
        if one.read_text() != other.read_text():
            raise UserError(f"the run kept in {other.parent} is another training's: delete that folder to keep this")
    for file in (own.evaluations / digest).glob("*.json"):
        if job.read_rows(table.workspace, file.stem) is not None:
            (kept.evaluations / digest).mkdir(exist_ok=True)
            write_atomically(kept.evaluations / digest / file.name, file.read_text())
    classes, images = table.workspace.counts(job.data)
    facts["data"][job.data.name] = {"sha256": job.data.sha256, "classes": classes, "test_images": images}
    facts |= {"form": FORM, "settings": given.settings, "seeds": sorted({*facts["seeds"], *given.seeds})}
    if isinstance(job.network, RunSpec) and not isinstance(job, Check) and (kept.folder(digest) / WEIGHTS).exists():
        name = job.row.row if isinstance(job, Cell) else job.label
        name += f", seed {job.network.seed}" if job.network.seed else ""
        named = {"run": digest, "model": job.network.model, "data": job.data.name}
        if facts["weights"].setdefault(name, named) != named:  # another table's row of this name
            facts["weights"][f"{name} ({table.name})"] = named
    write_atomically(folder / "index.json", json.dumps(facts, indent=1))
    index.cache_clear()


def table_of(table: Table, scale: str, reference: Path = REFERENCE) -> Table | None:
    """The same table over the kept evidence of a scale, with its settings and seeds; None where nothing is kept."""
    folder = reference / scale
    if not (folder / "index.json").exists():
        return None
    facts, given, file = index(folder), table.parameters, table.file
    parameters = replace(given, scale=scale, seeds=facts["seeds"], settings=facts["settings"], teacher_files={})
    settings = load_scale(parameters)
    known = {name for name, own in settings.datasets.items() if own in facts["data"]}
    students = [name for name in table.students if (file.block(name).dataset or file.dataset) in known]
    rows = [row for row in table.rows if {row.dataset or file.dataset} <= known]
    rows = [row for row in rows if not row.only_students or {*row.only_students} & {*students}]
    if not students or not rows:
        return None
    parameters = replace(parameters, students=students, rows=[row.row for row in rows])
    return Table(table.name, file, parameters, settings, Kept(folder, folder), {})


def results(table: Table, reference: Path = REFERENCE) -> list[Result]:
    """The kept accuracies of the table's cells, each from the largest scale that has it."""
    found, taken_from = list[Result](), dict[tuple[str, str, str], str]()
    for scale in SCALES:
        kept = table_of(table, scale, reference)
        for one in made(kept, scale) if kept else []:
            if taken_from.setdefault((one.student, one.teacher, one.row), scale) == scale:
                found.append(one)
    return found


def made(table: Table, role: str) -> list[Result]:
    """What the table's store has of its cells, without making any."""
    found = (result(role, cell, table, cell.stored(table.workspace)) for cell in table.cells)
    return [one for one in found if one.accuracies]
