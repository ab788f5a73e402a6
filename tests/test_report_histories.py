import json
from dataclasses import replace

import pytest
import torch
from small import parameters

from lib import report
from lib.experiment.planning import Result
from lib.experiment.spec import GivenWeights
from lib.experiment.table import open_table
from lib.methods.strategies import STRATEGIES
from lib.report import figures

HISTORY = [
    {"strategy": {"chosen": {"epsilon": {str(1 / 255): 3, str(2 / 255): 1}, "steps": {"3.0": 4}}, "reward": None}},
    {"strategy": {"chosen": {"epsilon": {str(1 / 255): 0, str(2 / 255): 4}, "steps": {"3.0": 4}}, "reward": 1.5}},
]


def opened(tmp_path, rows, **changes):
    return open_table("table1_las_at", parameters(tmp_path, rows=rows, students=[], teachers=[], **changes))


def with_cells(table, *cells):
    """The table with other cells than its file gives it."""
    table = replace(table)
    vars(table)["cells"] = cells
    return table


def timed(row: str, seconds: float, seed: int = 0) -> Result:
    return Result("ResNet18", "", row, seed, f"{row}{seed}", (), made=({"seconds": seconds},))


@pytest.fixture
def paths(tmp_path):
    plain, cat = [{"epoch": 1, "score": 1.0}], [{"epoch": 1, "strategy": {"level": 2}}]
    for name, rows in (("PGD-AT", plain), ("CAT", cat), ("learned", HISTORY), ("random", HISTORY[:1])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return {name: tmp_path / f"{name}.json" for name in ("PGD-AT", "CAT", "learned", "random")}


@pytest.mark.parametrize(("every", "ratio"), [(1, 4.85), (10, 1.74), (20, 1.57), (40, 1.48), (60, 1.45)])
def test_the_counted_cost_is_within_an_eighth_of_the_papers_times(every, ratio):
    printed = report.paper("las_at")["table1"]
    minutes = dict(zip(printed["columns"], printed["rows"]["Time(min)"], strict=True))
    plain, step, strategy_step = report.las_at_passes()
    counted = (step + strategy_step / every) / plain
    assert counted == pytest.approx(ratio, abs=0.006)
    assert counted == pytest.approx(minutes[f"k={every}"] / minutes["PGD-AT"], rel=0.14)


def test_leaving_done_images_and_weight_gradients_out_makes_the_strategy_nearly_free():
    assert report.las_at_passes(steps=9, **report.THIS_LIBRARY) == (23, 22, 47)
    assert report.las_at_passes() == (33, 46, 114)


def test_times_are_the_runs_own_over_pgd_ats(tmp_path):
    table = opened(tmp_path, ["PGD-AT", "k=1"])
    times = report.times(table, [timed("PGD-AT", 10.0), timed("k=1", 25.0)])
    assert times.loc["k=1"].tolist() == [1378, 5.28, 4.85, 3.0, 25.0, 2.5]
    assert report.times(table, [])["measured"].isna().all()


def test_times_are_the_mean_of_the_seeds_and_empty_for_what_the_count_does_not_model(tmp_path):
    table = opened(tmp_path, ["PGD-AT", "k=1"])
    cat = replace(table.cells[1].network, strategy=STRATEGIES["cat"])
    for network in (GivenWeights("ResNet8-w8", "0" * 64), cat):
        table = with_cells(table, table.cells[0], replace(table.cells[1], network=network))
        times = report.times(table, [timed("PGD-AT", 10.0), timed("PGD-AT", 30.0, seed=1), timed("k=1", 40.0)])
        assert times["measured, s"].tolist() == [20.0, 40.0]
        assert times.loc["k=1"].filter(like="counted").isna().all()


def test_histories_are_named_by_row_and_by_seed_where_there_are_several_and_given_weights_have_none(tmp_path):
    rows = ["PGD-AT", "k=1"]
    for seeds, names in (([3], rows), ([0, 1], [f"{row}, seed {seed}" for row in rows for seed in (0, 1)])):
        table = opened(tmp_path, rows, seeds=seeds)
        folders = [table.workspace.store.folder(cell.network.digest) for cell in table.cells]
        assert report.histories(table) == {n: f / "history.json" for n, f in zip(names, folders, strict=True)}
    first = replace(table.cells[0], network=GivenWeights("ResNet8-w8", "0" * 64))
    assert list(report.histories(with_cells(table, first, *table.cells[1:]))) == names[1:]


def test_histories_of_several_students_and_teachers_are_all_there(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, rows=["PGD-AT", "DGAD"], students=[], teachers=[]))
    names = [*report.histories(table)]
    assert len(names) == len({cell.digest for cell in table.cells}) == 6
    assert {"PGD-AT, ResNet18", "DGAD, MobileNetV2, ← WideResNet-34-20"} <= {*names}


def test_the_steps_of_strategy_networks_are_counted_for_those_that_learn(tmp_path):
    table = opened(tmp_path, ["PGD-AT", "k=1", "k=10", "Frozen"])
    assert report.strategy_steps(table) == {"k=1": 6, "k=10": 0}  # 48 images, batches of 16, two epochs


def test_what_a_strategy_picked_is_summed_up_for_the_first_and_the_last_epoch(paths):
    first, last = report.picks_summary({"run": paths["learned"]}).to_dict("records")
    assert (first["mean"], first["entropy"], last["mean"], last["entropy"]) == (1.25, 0.562, 2.0, 0)
    assert (last["entropy if uniform"], last["reward"]) == (0.693, 1.5)


def test_trainings_that_pick_nothing_from_options_are_left_out_of_what_was_picked(paths):
    assert list(dict.fromkeys(report.picks_summary(paths)["run"])) == ["learned", "random"]
    assert [axis.get_title() for axis in figures.picks(paths).axes if axis.get_title()] == ["learned", "random"]
    none = {name: paths[name] for name in ("PGD-AT", "CAT")}
    assert report.picks_summary(none).empty
    assert not figures.picks(none).axes


def test_picks_are_stacked_from_the_smallest_option_up_to_one(paths):
    upper, lower = figures.picks({"run": paths["learned"]}).axes
    first = sorted((bar.get_y(), bar.get_height(), bar.get_facecolor()) for bar in upper.patches if bar.get_x() == 0.5)
    first = [bar for bar in first if bar[1]]
    assert [bar[:2] for bar in first] == [(0.0, 0.75), (0.75, 0.25)]
    assert first[0][2][2] > first[0][2][1]  # viridis begins in blue
    assert lower.lines[0].get_xydata().tolist() == [[2.0, 1.5]]


def test_the_figures_of_a_strategy_are_saved_also_without_rewards(paths, tmp_path):
    for setting in ("epsilon", "steps"):
        assert figures.save(figures.picks(paths, setting), setting, tmp_path)[1].stat().st_size
    shares = {"before": {"steps": torch.tensor([0.5, 0.5])}, "after": {"steps": torch.tensor([0.1, 0.9])}}
    figure = figures.policies(shares, {"steps": (3.0, 4.0)})
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([0.5, 0.5, 0.1, 0.9])
