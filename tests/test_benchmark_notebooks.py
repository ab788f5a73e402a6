"""The speed notebook, the cluster's and the speed run at their smallest: their tables, and what they refuse."""

import re

import pandas as pd
import pytest
from notebooks_in_process import code_cells, execute, refusal
from small import SETTINGS

from lib import ROOT, benchmark
from lib.errors import UserError
from lib.experiment.parameters import validate

TINY = {
    "model": "ResNet8-w8",
    "batch_size": 4,
    "side": 8,
    "steps": 2,
    "attack_steps": 1,
    "repeats": 1,
    "curve": {"batch": [1, 2], "side": [8, 16]},
    "curve_repeats": 1,
}


@pytest.mark.parametrize("name", ["benchmark_speed", "benchmark_cluster"])
def test_a_benchmark_notebook_has_at_most_ten_code_cells(name):
    assert len(code_cells(ROOT / "notebooks" / f"{name}.ipynb")) <= 10


def test_the_speed_notebook_runs_and_leaves_its_tables_and_its_figure(tmp_path):
    execute("benchmark_speed", tmp_path, **TINY, methods=["PGD-AT", "LAS-PGD-AT"])
    assert (tmp_path / "figures" / "benchmark_speed.pdf").stat().st_size
    names = ("memory", "pgd", "steps", "curves")
    memory, pgd, steps, curves = (pd.read_csv(tmp_path / "tables" / f"benchmark_speed_{name}.csv") for name in names)
    assert list(memory.iloc[:, 0]) == ["PGD-AT", "LAS-PGD-AT"]
    assert list(pgd.iloc[:, 0]) == ["torchattacks", "loss.backward()", "ours, bf16", "ours, fp32"]
    assert set(steps.form) == {"released", "bf16", "bf16_crafting", "fp32"}
    assert (steps[["lowest", "times as fast", "highest", "seconds"]] > 0).all(axis=None)
    assert set(curves.form) == {"torchattacks", "ours"}
    assert set(curves.axis) == {"batch", "side"}


def test_the_cluster_notebook_trains_nothing_and_leaves_a_line_per_cluster_and_order_and_its_figures(tmp_path):
    given = {"scale": "quick", "tables": ["table4_dgad", "table1_las_at"], "settings": SETTINGS}
    copy = execute("benchmark_cluster", tmp_path, **given, gpus=[1, 3], drawn=2, random_orders=2)
    assert {path.name for path in tmp_path.iterdir()} == {"tables", "figures"}
    compared = pd.read_csv(tmp_path / "tables" / "benchmark_cluster.csv")
    orders = {"longest chain first": 1, "the plan's own": 1, "shortest first": 1, "random": 2}
    assert compared.groupby(["order", "GPUs"]).size().to_dict() == {(o, n): orders[o] for o in orders for n in (1, 3)}
    assert compared["times the bound"].between(1 - 1e-9, 2).all()
    assert compared.loc[compared["GPUs"] == 1, "utilisation"].tolist() == pytest.approx([1.0] * 5)
    for name in ("benchmark_cluster", "benchmark_cluster_jobs"):
        assert (tmp_path / "figures" / f"{name}.pdf").stat().st_size
    printed = "".join(out.get("text", "") for cell in copy.cells for out in cell.get("outputs", []))
    assert "2 of them teachers" in printed
    assert re.search(r"From \d+ GPUs on the longest chain decides", printed)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"scale": "papr"}, "unknown scale 'papr'; choose one of: paper"),
        ({"gpus": [0]}, "gpus is one number or more"),
        ({"tables": ["table9_dgad"]}, "unknown table 'table9_dgad'"),
    ],
)
def test_what_the_cluster_notebook_cannot_simulate_is_refused_in_one_sentence(tmp_path, given, text):
    assert text in refusal("benchmark_cluster", tmp_path, **given)


def test_the_speed_run_trains_each_seed_and_sets_time_and_accuracy_beside_the_goal(tmp_path):
    execute("speedrun_robust", tmp_path, seeds=[0, 1], settings=SETTINGS)
    results = pd.read_csv(tmp_path / "tables" / "speedrun_robust.csv", index_col="run")
    assert list(results.index) == ["seed 0", "seed 1"]
    assert (results["training, s"] > 0).all()
    assert [name for name in results if name.startswith("AA (")]  # what is reduced does not pass for the goal's
    assert "AA, %" not in results
    summary = pd.read_csv(tmp_path / "tables" / "speedrun_robust_summary.csv", index_col=0)
    assert summary.loc["mean of the seeds", "training, s"] == pytest.approx(results["training, s"].mean())
    assert summary.loc["the goal, on one H200", "AA, %"] == 50.5


def test_what_means_nothing_in_the_speed_run_is_refused_there(tmp_path):
    assert "unknown parameter 'rows'; choose from: scale, seeds" in refusal(
        "speedrun_robust", tmp_path, rows=["PGD-AT"]
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sclae": 1}, "unknown parameter 'sclae'; choose from: device, model"),
        ({"model": "ResNet19"}, "unknown model 'ResNet19'; a model's name is one of: ResNet"),
        ({"methods": ["TRADE"]}, "unknown method 'TRADE'; choose one of: TRADES, PGD-AT"),
        ({"steps": 0}, "side is at least 8, steps and repeats at least 1"),
        ({"batch_size": -4}, "side is at least 8, steps and repeats at least 1"),
        ({"repeats": "3"}, "parameter repeats wants int, got '3'"),
        ({"curve": {"depth": [1, 2]}}, "unknown axis of the curves 'depth'; choose one of: .*batch, steps"),
        ({"curve": {"batch": [1]}}, "parameter curve needs two or more points of batch"),
    ],
)
def test_what_the_speed_notebook_cannot_do_is_refused_in_one_sentence(given, text):
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items())
    with pytest.raises(UserError, match="^" + text.replace("(", "\\(")):
        validate({"In": [injected], **given}, benchmark.SpeedParameters)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"outputs": "Makefile/below"}, "cannot write"),
        ({"device": "quantum"}, "no device 'quantum' here"),
    ],
)
def test_what_the_speed_notebook_cannot_use_is_refused_before_anything_is_measured(tmp_path, given, text):
    assert text in refusal("benchmark_speed", tmp_path, **TINY, **given)
    assert not list(tmp_path.iterdir())
