import json

import numpy as np
import pytest
import yaml
from PIL import Image

from lib.experiment import runs
from lib.experiment.parameters import PARAMS, Parameters
from lib.experiment.table import open_table


@pytest.fixture
def pictures(tmp_path):
    """Ten classes of random 32x32 pictures in ImageFolder's layout."""
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "pictures" / part / f"class{label}"
            folder.mkdir(parents=True)
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "0.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("scale", ["gpu", "paper"])
@pytest.mark.parametrize("row", ["k=1", "k=40"])
def test_las_at_takes_real_steps_at_the_other_scales(tmp_path, pictures, scale, row):
    small = {"batch_size": 2}
    schedules = yaml.safe_load((PARAMS / f"{scale}.yaml").read_text())["settings"]["schedules"]
    settings = {
        "datasets": {"CIFAR10": "folder"},
        "schedules": dict.fromkeys(schedules, small),
        "test_images": 2,
        "selection": "held_out",
        "held_out": 2,
        "max_steps": 1,
    }
    changes = {"outputs": str(tmp_path / "outputs"), "data_dir": str(pictures), "device": "cpu", "settings": settings}
    table = open_table("table1_las_at", Parameters(scale=scale, rows=[row], **changes))
    runs.make(table.cells[0].network, table.workspace)
    folder = table.workspace.store.folder(table.cells[0].network.digest)
    (epoch,) = json.loads((folder / "history.json").read_text())
    assert sum(epoch["strategy"]["chosen"]["epsilon"].values()) == 2
    assert (epoch["strategy"]["reward"] is None) == (row == "k=40")


@pytest.mark.parametrize("scale", ["gpu", "paper"])
@pytest.mark.parametrize("row", ["PGD-AT", "DGAD"])
def test_the_other_scales_take_real_steps_of_their_real_students(tmp_path, pictures, scale, row):
    settings = {
        "datasets": {"CIFAR10": "folder"},
        "schedules": {
            name: {"batch_size": 2}
            for name in yaml.safe_load((PARAMS / f"{scale}.yaml").read_text())["settings"]["schedules"]
        },
        "models": {name: "ResNet18" for name in ("ResNet18", "MobileNetV2", "WideResNet-34-10", "WideResNet-34-20")},
        "test_images": 2,
        "selection": "held_out",
        "held_out": 2,
        "max_steps": 1,
    }
    changes = {"outputs": str(tmp_path / "outputs"), "data_dir": str(pictures), "device": "cpu", "settings": settings}
    students = {"rows": [row], "students": ["ResNet18"], "teachers": ["WideResNet-34-10"]}
    table = open_table("table4_dgad", Parameters(scale=scale, **students, **changes))
    for spec in (table.cells[0].network.teacher, table.cells[0].network):
        if spec is not None:
            runs.make(spec, table.workspace)
    folder = table.workspace.store.folder(table.cells[0].network.digest)
    assert json.loads((folder / "provenance.json").read_text())["steps"] == 1
    history = json.loads((folder / "history.json").read_text())
    assert sum(history[0][name] for name in ("adv", "clean") if name in history[0]) > 0
    trained = runs.network(table.cells[0].network, table.data, table.workspace, "last")
    fresh = runs.start(table.cells[0].network, table.workspace).student
    assert sum(p.numel() for p in trained.parameters()) == 11_173_962
    assert any((a != b).any() for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize(
    ("scale", "name", "row", "student"),
    [
        ("paper", "table1_dynat", "DYNAT-Inner-AWP (alpha=1)", ""),
        ("gpu", "table1_dynat", "DYNAT", ""),
        ("paper", "table3_dynat", "DYNAT-Inner-GAIRAT (ResNet-18)", "ResNet18"),
        ("paper", "table1_d2r", "D2R-CAG", "CIFAR-10"),
        ("gpu", "table1_d2r", "D2R-CAG", "CIFAR-100"),
        ("paper", "table1_d2r", "RAT (TRADES)", "CIFAR-10"),
    ],
)
def test_dynat_and_d2r_take_real_steps_of_target_and_guide_at_the_other_scales(
    tmp_path, pictures, scale, name, row, student
):
    given = yaml.safe_load((PARAMS / f"{scale}.yaml").read_text())["settings"]
    settings = {
        "datasets": {"CIFAR10": "folder", "CIFAR100": "folder", "TinyImageNet": "folder"},
        "schedules": {name: {"batch_size": 2} for name in given["schedules"]},
        "models": {name: "ResNet18-guide" if "guide" in name else "ResNet18" for name in given["models"]},
        "test_images": 2,
        "selection": "held_out",
        "held_out": 2,
        "max_steps": 1,
    }
    changes = {"outputs": str(tmp_path / "outputs"), "data_dir": str(pictures), "device": "cpu", "settings": settings}
    students = [student] if student else []
    table = open_table(name, Parameters(scale=scale, rows=[row], students=students, **changes))
    (cell,) = table.cells
    runs.make(cell.network, table.workspace)
    fresh = runs.start(cell.network, table.workspace)
    pairs = [(runs.network(cell.network, cell.data, table.workspace, "last"), fresh.student)]
    if cell.network.guide:
        pairs.append((runs.guide(cell.network, cell.data, table.workspace), fresh.guide))
    for made, start in pairs:
        moved = [(a != b).any() for a, b in zip(made.parameters(), start.parameters(), strict=True)]
        assert sum(moved) > len(moved) / 2
