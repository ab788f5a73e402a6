"""Kept evidence: outputs/reference/<scale>/ has a scale's finished runs and accuracies, committed with the code.

It is a run store that is only read: the same specs find the same runs, whether the data is here or not. Weights are in
half precision, and every file has its SHA-256 in its run's manifest.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lib import ROOT
from lib.errors import UserError, choose
from lib.evaluate import VERSION
from lib.experiment.jobs import Check, Job
from lib.experiment.networks import Workspace, made_with, network_digest, stored
from lib.experiment.parameters import load_scale
from lib.experiment.planning import Result
from lib.experiment.spec import RECIPE, DataSpec, RunSpec
from lib.experiment.store import Store
from lib.experiment.table import Table
from lib.files import write_atomically
from lib.models.checkpoints import as_safetensors

REFERENCE = ROOT / "outputs" / "reference"
SCALES = ("paper", "gpu", "small")  # the largest first
FORM = [RECIPE, VERSION]  # evidence of other code is not shown


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


def keep(job: Job, table: Table, reference: Path = REFERENCE) -> None:
    """Put a finished job's run and accuracies under `reference`/<scale>, and what is needed to find them again."""
    folder, own = reference / table.scale_name, table.workspace.store
    digest = network_digest(job.network, job.data)
    kept = Store(folder).prepared()
    if isinstance(job.network, RunSpec) and not kept.has(job.network.digest):
        with kept.publishing(digest) as run:
            for name in ("spec", "history", "provenance"):
                (run / f"{name}.json").write_text((own.folder(digest) / f"{name}.json").read_text())
            weights = load_file(own.folder(digest) / "best.safetensors")
            halves = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
            (run / "best.safetensors").write_bytes(as_safetensors(halves))
    for file in (own.evaluations / digest).glob("*.json"):
        (kept.evaluations / digest).mkdir(exist_ok=True)
        write_atomically(kept.evaluations / digest / file.name, file.read_text())
    _note(folder, job, table)


def _note(folder: Path, job: Job, table: Table) -> None:
    facts = index(folder) if (folder / "index.json").exists() else {"data": {}, "seeds": [], "weights": {}}
    classes, images = table.workspace.counts(job.data)
    facts["data"][job.data.name] = {"sha256": job.data.sha256, "classes": classes, "test_images": images}
    facts["seeds"] = sorted({*facts["seeds"], *table.parameters.seeds})
    facts |= {"form": FORM, "settings": table.parameters.settings}
    if isinstance(job.network, RunSpec) and not isinstance(job, Check):
        name = job.label.partition(",")[0] + (f", seed {job.network.seed}" if job.network.seed else "")
        facts["weights"].setdefault(name, {"run": job.digest, "model": job.network.model, "data": job.data.name})
    write_atomically(folder / "index.json", json.dumps(facts, indent=1))
    index.cache_clear()


@cache
def index(folder: Path) -> dict[str, Any]:
    """What the evidence in `folder` was made with: data, seeds, settings, and the runs behind its names."""
    try:
        facts: dict[str, Any] = json.loads((folder / "index.json").read_text())
        form = facts["form"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the kept evidence in {folder} has no index that can be read; nothing is shown from it"
        ) from error
    if form != FORM:
        raise UserError(
            f"the kept evidence in {folder} was made by other code (form {form}, not {FORM}); it is not shown"
        )
    return facts


def table_of(table: Table, scale: str, reference: Path = REFERENCE) -> Table | None:
    """The same table over the kept evidence of a scale, with its settings and seeds; None where nothing is kept."""
    folder = reference / scale
    if not (folder / "index.json").exists():
        return None
    facts, given = index(folder), table.parameters
    parameters = replace(given, scale=scale, seeds=facts["seeds"], settings=facts["settings"], teacher_files={})
    return Table(table.name, table.file, parameters, load_scale(parameters), Kept(folder, folder), {})


def results(table: Table, reference: Path = REFERENCE) -> list[Result]:
    """The kept accuracies of the table's cells, each from the largest scale that has it."""
    found: dict[tuple[str, str, str], list[Result]] = {}
    for scale in SCALES:
        kept = table_of(table, scale, reference)
        here: dict[tuple[str, str, str], list[Result]] = {}
        for cell in kept.cells if kept and _described(kept) else ():
            assert kept is not None
            accuracies = stored(cell.network, cell.data, kept.workspace, cell.columns, cell.checkpoint)
            if known := tuple(one for one in accuracies if one is not None):
                made = tuple(made_with(cell.network, cell.data, kept.workspace))
                line = (cell.student, cell.teacher, cell.row.row)
                result = Result(*line, cell.seed, cell.digest, known, made, role=scale)
                here.setdefault(line, []).append(result)
        found = here | found
    return [result for each in found.values() for result in each]


def _described(table: Table) -> bool:
    names = {table.scale.datasets.get(row.dataset or table.file.dataset) for row in table.rows}
    return names <= {*index(table.workspace.outputs)["data"]}


def weights_of(name: str, reference: Path = REFERENCE) -> tuple[Path, dict[str, Any]]:
    """The weights file behind kept/<name> and its facts (model, data, run), checked against its digest."""
    for scale in SCALES:
        if (reference / scale / "index.json").exists():
            known = index(reference / scale)["weights"]
            facts, store = choose("kept network", name, known), Store(reference / scale)
            if store.has(facts["run"]):
                return store.folder(facts["run"]) / "best.safetensors", facts
    raise UserError(f"no evidence is kept in {reference}, so there is no kept/{name}")
