"""What a training is expected to cost, counted in operations, which do not depend on the machine."""

import pytest

from lib.experiment import cost
from lib.experiment.parameters import Parameters
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
