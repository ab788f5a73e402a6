"""The scales that want a GPU take real steps of their real networks here, on a handful of random pictures."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from lib.experiment import networks, runs
from lib.experiment.parameters import PARAMS, Parameters
from lib.experiment.table import open_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten classes of random 32x32 pictures in ImageFolder's layout."""
    draw, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for part in ("train", "test"):
        for label in range(10):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "0.png")
    return root


@pytest.mark.parametrize(
    ("scale", "name", "row", "student"),
    [
        ("gpu", "table1_las_at", "k=1", ""),
        ("paper", "table1_las_at", "k=40", ""),
        ("gpu", "table4_dgad", "DGAD", "ResNet18"),
        ("paper", "table4_dgad", "PGD-AT", "ResNet18"),
        ("paper", "table1_dynat", "DYNAT-Inner-AWP (alpha=1)", ""),
        ("gpu", "table1_dynat", "DYNAT", ""),
        ("paper", "table3_dynat", "DYNAT-Inner-GAIRAT (ResNet-18)", "ResNet18"),
        ("paper", "table1_d2r", "D2R-CAG", "CIFAR-10"),
        ("gpu", "table1_d2r", "D2R-CAG", "CIFAR-100"),
        ("paper", "table1_d2r", "RAT (TRADES)", "CIFAR-10"),
    ],
)
def test_a_row_takes_a_real_step_of_every_network_it_trains(tmp_path, pictures, scale, name, row, student):
    given = yaml.safe_load((PARAMS / f"{scale}.yaml").read_text())["settings"]
    settings = {
        "datasets": dict.fromkeys(("CIFAR10", "CIFAR100", "TinyImageNet"), "folder"),
        "schedules": {name: {"batch_size": 2} for name in given["schedules"]},
        "models": {name: "ResNet18-guide" if "guide" in name else "ResNet18" for name in given["models"]},
        "test_images": 2,
        "selection": "held_out",
        "held_out": 2,
        "max_steps": 1,
    }
    folders = {"outputs": str(tmp_path), "data_dir": str(pictures), "device": "cpu"}
    students, teachers = [student] if student else [], ["WideResNet-34-10"] if name == "table4_dgad" else []
    parts = {"rows": [row], "students": students, "teachers": teachers}
    table = open_table(name, Parameters(scale=scale, settings=settings, **parts, **folders))
    (cell,) = table.cells
    for spec in (cell.network.teacher, cell.network):
        if spec is not None:
            runs.make(spec, table.workspace)
    fresh = runs.start(cell.network, table.workspace)
    pairs = [(networks.network(cell.network, cell.data, table.workspace, "last"), fresh.student)]
    if cell.network.guide:
        pairs.append((networks.network(cell.network, cell.data, table.workspace, "guide"), fresh.guide))
    for made, start in pairs:
        moved = [(a != b).any() for a, b in zip(made.parameters(), start.parameters(), strict=True)]
        assert sum(moved) > len(moved) / 2
    (epoch,) = json.loads((table.workspace.store.folder(cell.network.digest) / "history.json").read_text())
    if "strategy" in epoch:
        assert sum(epoch["strategy"]["chosen"]["epsilon"].values()) == 2
        assert (epoch["strategy"]["reward"] is None) == (row == "k=40")
