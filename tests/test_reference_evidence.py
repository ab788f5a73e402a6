"""What is committed under outputs/reference is what the present code would make, and what its weights give."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lib import ROOT
from lib.data import Split
from lib.data.core import fixed_order
from lib.evaluate import Accuracy, AttackSpec, accuracy
from lib.experiment.kept import MOST, WEIGHTS, table_of
from lib.experiment.networks import Workspace
from lib.experiment.parameters import PARAMS, Parameters, load_scale
from lib.experiment.reference import REFERENCE, index, weights_of
from lib.experiment.spec import RunSpec, digest_of
from lib.experiment.store import Store
from lib.experiment.table import Table
from lib.experiment.table_file import read_table
from lib.models import build
from lib.models.checkpoints import load_weights

SCALES = [path.parent for path in sorted(REFERENCE.glob("*/index.json"))]
RUNS = [path.parent for folder in SCALES for path in sorted((folder / "runs").glob("*/spec.json"))]
JPEG = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def as_kept(name: str, folder: Path) -> Table:
    """A table's rows, its further ones too, at the scale of the kept evidence in `folder`."""
    file = read_table(name)
    rows = [row["row"] for row in file.rows + file.more_rows]
    given = Parameters(scale=folder.name, rows=rows)
    table = table_of(
        Table(name, file, given, load_scale(given), Workspace(folder, folder), {}), folder.name, folder.parent
    )
    assert table is not None
    return table


@pytest.mark.parametrize("folder", SCALES, ids=lambda path: path.name)
def test_every_kept_run_is_one_that_the_present_code_would_make(folder):
    entries = yaml.safe_load((PARAMS / "evidence.yaml").read_text())["runs"]
    specs: set[RunSpec] = set()
    for name in dict.fromkeys(entry["table"] for entry in entries):
        table = as_kept(name, folder)
        nets = [cell.network for cell in (*table.cells, *table.controls)] + list(table.teachers.values())
        specs |= {net for net in nets if isinstance(net, RunSpec)}
    made = {path.name for path in RUNS if path.parent.parent == folder}
    assert made <= {spec.digest for spec in specs}
    named = {facts["run"] for facts in index(folder)["weights"].values()}
    assert named == {digest for digest in made if (folder / "runs" / digest / WEIGHTS).exists()}


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_a_kept_run_is_whole_and_its_spec_has_its_digest(run):
    assert Store(run.parent.parent).has(run.name)
    assert digest_of(json.loads((run / "spec.json").read_text())) == run.name


def test_the_kept_weights_are_at_most_25_mb():
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*.safetensors")) <= MOST == 25e6


def first_test_images(count: int) -> Split:
    """The first test images of the JPEG copy in the fixed order of a folder's images, read from its archive."""
    names = [f"cifar10/test/{name}" for name in CLASSES]
    with tarfile.open(JPEG) as archive:
        members = sorted(m.name for m in archive if m.isfile() and str(Path(m.name).parent) in names)
        wanted = [members[i] for i in fixed_order(len(members))[:count].tolist()]
        pixels = {
            m.name: np.asarray(Image.open(BytesIO(archive.extractfile(m).read())).convert("RGB"))
            for m in archive
            if m.name in {*wanted}
        }
    images = torch.from_numpy(np.stack([pixels[name] for name in wanted])).permute(0, 3, 1, 2)
    return Split(images, torch.tensor([CLASSES.index(Path(name).parent.name) for name in wanted]))


@pytest.fixture(scope="module")
def hundred() -> Split:
    return first_test_images(100)


NAMES = [(folder, name) for folder in SCALES for name in index(folder)["weights"]]


@pytest.mark.skipif(not JPEG.exists(), reason="the JPEG copy of CIFAR-10 is not beside the checkout")
@pytest.mark.parametrize(("folder", "name"), NAMES, ids=str)
def test_kept_weights_give_their_clean_accuracy_again_on_a_hundred_images(folder, name, hundred):
    path, facts = weights_of(name)
    if facts["data"] != "cifar10_jpeg":
        pytest.skip(f"made on {facts['data']}")
    net = build(facts["model"], classes=10)
    load_weights(net, path)
    found = accuracy(net.eval(), hundred, AttackSpec("Clean", "clean"))
    store = Store(folder)
    files = (store.evaluations / facts["run"]).glob("*.json")
    stored = [row for file in files for row in store.read_rows(facts["run"], file.stem) or []]
    rows = [Accuracy.from_json(row) for row in stored if "flags" in row]  # the others are sanity checks
    clean = [row.flags[:100] for row in rows if row.column.attack == "clean"]  # of the best epoch, and of the last
    assert any(sum(a != b for a, b in zip(found.flags, own, strict=True)) <= 1 for own in clean)
