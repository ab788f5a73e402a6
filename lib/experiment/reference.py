"""Where the kept evidence is, what it was made with, and its networks by name."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from lib import ROOT
from lib.errors import UserError, choose
from lib.evaluate import VERSION
from lib.experiment.spec import RECIPE
from lib.experiment.store import Store
from lib.files import from_root

REFERENCE = ROOT / "outputs" / "reference"
SCALES = ("paper", "gpu", "small")  # the largest first
FORM = [RECIPE, VERSION]  # evidence of other code is not shown
KEPT = "kept/"  # begins the name of a kept network where a weights file is asked for


@cache
def index(folder: Path) -> dict[str, Any]:
    """What the evidence in `folder` was made with: data, seeds, settings, and the runs behind its names."""
    try:
        facts: dict[str, Any] = json.loads((folder / "index.json").read_text())
        form = facts["form"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the kept evidence in {folder} has no readable index; nothing is shown from it") from error
    if form != FORM:
        raise UserError(f"the kept evidence in {folder} was made by other code (form {form}, not {FORM}); not shown")
    return facts


def weights_of(name: str, reference: Path = REFERENCE) -> tuple[Path, dict[str, Any]]:
    """The weights file behind kept/<name>, of the largest scale that has it, and its facts: model, data, run.

    Raises UserError for an unknown name, and where a file of the run is not what its manifest says.
    """
    folders = [reference / scale for scale in reversed(SCALES) if (reference / scale / "index.json").exists()]
    if not folders:
        raise UserError(f"no evidence is kept in {reference}, so there is no kept/{name}")
    known = {own: (folder, facts) for folder in folders for own, facts in index(folder)["weights"].items()}
    folder, facts = choose("kept network", name, known)
    if not (store := Store(folder)).has(facts["run"]):
        raise UserError(f"the run {facts['run']} of kept/{name} is not in {store.runs}")
    return store.folder(facts["run"]) / "best.safetensors", facts


def weights_path(name: str) -> Path:
    """The file that is meant by a path from the checkout, or by kept/<row>."""
    return weights_of(name.removeprefix(KEPT))[0] if name.startswith(KEPT) else from_root(name)
