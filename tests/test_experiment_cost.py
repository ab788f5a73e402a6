"""What a training is expected to cost, counted in operations, which do not depend on the machine."""

import time

import pytest
import torch
from small import SETTINGS

from lib import data
from lib.data import Split, hold_out
from lib.experiment import cost
from lib.experiment.parameters import Parameters
from lib.experiment.planning import plan
from lib.experiment.table import open_table


@pytest.fixture(scope="module")
def flops(tmp_path_factory):
    settings = {"schedules": {"default": {"epochs": 1, "batch_size": 16}}, "train_images": 64, "held_out": 32}
    outputs = str(tmp_path_factory.mktemp("outputs"))

    def of(table, row):
        given = Parameters(outputs=outputs, device="cpu", rows=[row], settings=settings)
        cell = open_table(table, given).cells[0]
        return cost.training(cell.network, cell_place(outputs)).flops

    def cell_place(outputs):
        return open_table("table1_las_at", Parameters(outputs=outputs, device="cpu")).workspace

    return of


def test_what_other_programs_take_is_not_counted_as_the_seconds_of_a_training():
    split = Split(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    waited = cost._per_image(lambda x, y: time.sleep(0.3), split, 2)
    assert waited.seconds < 0.1


def test_a_table_of_many_cells_splits_its_data_once(tmp_path, monkeypatch):
    split = []
    monkeypatch.setattr(data, "hold_out", lambda *given: split.append(given) or hold_out(*given))
    table = open_table("table4_dgad", Parameters(outputs=str(tmp_path), device="cpu", settings={"held_out": 20}))
    assert len(table.cells) > 10
    assert len(split) == 1


def test_attacks_that_stop_by_image_are_counted_as_if_none_stopped(flops):
    madry = flops("table7_las_at", "Madry-AT")
    for row in ("FAT", "DART", "DART (code)"):
        assert flops("table7_las_at", row) == pytest.approx(madry, rel=0.1)


def test_a_curriculum_is_counted_at_half_of_its_way(flops):
    assert 0.2 < flops("table7_las_at", "CAT") / flops("table7_las_at", "Madry-AT") < 0.7


def test_a_strategy_network_that_learns_in_every_step_costs_more(flops):
    each, seldom = (flops("table1_las_at", f"k={k}") / flops("table1_las_at", "PGD-AT") for k in (1, 60))
    assert each > 2
    assert 0.8 < seldom < 2


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("table4_dgad", ["PGD-AT", "ARD", "DGAD"]),
        ("table2_las_at", ["LAS-TRADES", "LAS-AWP"]),
        ("table7_las_at", ["FAT", "CAT", "DART (code)"]),
        ("table1_dynat", ["DYNAT", "DYNAT-Inner-AWP (alpha=1)"]),
        ("table1_d2r", ["D2R-CAG", "RAT (TRADES)"]),
    ],
)
def test_on_paper_the_same_operations_are_counted_and_no_second_passes(tmp_path, name, rows):
    settings = SETTINGS | {"sustained_tflops": 1e-6}
    table = open_table(name, Parameters(outputs=str(tmp_path), device="cpu", rows=rows, settings=settings))
    with cost.OnPaper():
        on_paper = plan(table).frame
    counted = plan(table).frame  # what was kept on paper is not taken for timed
    assert on_paper["GPU-hours"].tolist() == counted["GPU-hours"].tolist()
    assert (on_paper["GPU-hours"] > 0).all()
    assert (on_paper["seconds"] == 0).all()
    assert (counted["seconds"] > 0).all()


def test_a_convolution_on_paper_has_the_shapes_and_gradients_of_one_that_is_computed():
    for settings in ({"stride": 2, "padding": 1}, {"dilation": 2}, {"groups": 2, "bias": False}):
        net, x = torch.nn.Conv2d(4, 6, 3, **settings), torch.rand(2, 4, 9, 7, requires_grad=True)
        with cost.OnPaper():
            out = net(x)
            gradients = torch.autograd.grad(out.sum(), [x, *net.parameters()])
        assert out.shape == net(x).shape
        assert not out.any()
        assert [g.shape for g in gradients] == [x.shape, *(p.shape for p in net.parameters())]
    assert net(x).any()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet"])
def test_a_paper_plan_is_counted_without_its_data(tmp_path, name):
    settings = {"datasets": {"CIFAR10": f"{name}_blank"}, "models": {"ResNet18": "ResNet8-w8"}}
    given = {"rows": ["PGD-AT"], "students": ["ResNet18"], "teachers": ["WideResNet-34-10"]}
    given |= {"outputs": str(tmp_path / "outputs"), "data_dir": str(tmp_path / "none"), "device": "cpu"}
    settings["models"]["WideResNet-34-10"] = "WideResNet-10-1"
    table = open_table("table4_dgad", Parameters(scale="paper", settings=settings, **given))
    with cost.OnPaper():
        assert plan(table).frame["GPU-hours"].sum() > 0
    assert not list(tmp_path.rglob("*.npz"))
