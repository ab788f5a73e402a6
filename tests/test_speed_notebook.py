"""The speed notebook at its smallest, on one core: it runs, says what it must, and refuses what it cannot do."""

import pandas as pd
import pytest
import torch
from notebooks_in_process import execute
from small import SETTINGS

from lib import benchmark
from lib.attacks.levers import Levers
from lib.benchmark import run as speed_run
from lib.errors import UserError
from lib.experiment.parameters import Parameters

CPU = torch.device("cpu")
TINY = {
    "model": "ResNet8-w8",
    "batch_size": 4,
    "side": 8,
    "steps": 2,
    "attack_steps": 1,
    "repeats": 1,
    "small_batch": 2,
    "small_repeats": 1,
    "curve": {"batch": [1, 2], "side": [8, 16]},
    "curve_repeats": 1,
    "epochs": 1,
}


def test_the_speed_notebook_runs_and_leaves_its_tables_and_says_that_there_is_no_gpu(tmp_path):
    execute("benchmark_speed", tmp_path, methods=["PGD-AT", "LAS-PGD-AT"], **TINY)
    assert (tmp_path / "figures" / "benchmark_speed.pdf").stat().st_size
    bars = pd.read_csv(tmp_path / "tables" / "benchmark_speed_bars.csv", index_col="what")
    assert set(bars["gpu: measured"]) == {"not measured here"}
    measured = bars[bars["cpu: measured"] != "not measured here"]
    assert {name.rpartition(", ")[2] for name in measured.index if name.startswith(benchmark.STEP)} == {
        "PGD-AT",
        "LAS-PGD-AT",
    }
    assert set(measured["cpu: met"][[benchmark.PGD, benchmark.STEP + "PGD-AT"]]) == {"not the bar's setting"}
    assert measured.loc[benchmark.EXACT, ["cpu: measured", "cpu: met"]].tolist() == ["0", "met"]
    agreement = pd.read_csv(tmp_path / "tables" / "benchmark_speed_agreement.csv", index_col=0)
    assert agreement.loc["all of them", "judged otherwise"] <= 0.01 * agreement.loc["all of them", "of"]


def test_the_speed_run_trains_each_seed_and_sets_time_and_accuracy_beside_the_goal(tmp_path):
    execute("speedrun_robust", tmp_path, seeds=[0, 1], settings=SETTINGS, workers=0)
    found = pd.read_csv(tmp_path / "tables" / "speedrun_robust.csv", index_col="run")
    assert list(found.index) == ["seed 0", "seed 1"]
    assert (found["training, s"] > 0).all()
    assert [name for name in found if name.startswith("AA (")]  # what is reduced does not pass for the goal's
    assert "AA, %" not in found
    summary = pd.read_csv(tmp_path / "tables" / "speedrun_robust_summary.csv", index_col=0)
    assert summary.loc["mean of the seeds", "training, s"] == pytest.approx(found["training, s"].mean())
    assert summary.loc["the goal, on one H200", "AA, %"] == 50.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sclae": 1}, "unknown parameter 'sclae'; choose from: device, clock, model"),
        ({"model": "ResNet19"}, "unknown model 'ResNet19'"),
        ({"methods": ["TRADE"]}, "unknown method 'TRADE'; choose one of: PGD-AT, TRADES"),
        ({"steps": 1}, "parameter steps wants 2 or more, got 1"),
        ({"batch_size": -4}, "parameter batch_size wants 0 or more, got -4"),
        ({"repeats": "3"}, "parameter repeats wants int, got '3'"),
        ({"curve": {"depth": [1, 2]}}, "unknown axis of the curves 'depth'; choose one of: batch, steps"),
        ({"curve": {"batch": [1]}}, "parameter curve wants two points or more of batch"),
        ({"device": "quantum"}, "no device 'quantum' here"),
    ],
)
def test_what_the_speed_notebook_cannot_do_is_refused_in_one_sentence(given, said):
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items())
    with pytest.raises(UserError, match="^" + said.replace("(", "\\(")):
        benchmark.check({"In": [injected], **given})


def test_what_means_nothing_in_the_speed_run_is_refused_there():
    with pytest.raises(UserError, match="parameter rows means nothing in the speed run"):
        speed_run.place_of(Parameters(rows=["PGD-AT"]))


def test_outputs_that_cannot_be_written_are_said_before_anything_is_measured():
    with pytest.raises(UserError, match="cannot write"):
        benchmark.check({"outputs": "Makefile/below"})


# --- the tables ---------------------------------------------------------------------------------------------------


def test_a_bar_is_met_from_its_value_on_and_memory_up_to_it():
    measured = {
        benchmark.PGD: 2.4,
        benchmark.STEP + "TRADES": 1.99,
        benchmark.MEMORY + "TRADES": 0.6,
        benchmark.MEMORY + "DGAD": 0.61,
    }
    verdict = benchmark.bars(measured, CPU, benchmark.SpeedParameters())["cpu: met"]
    assert [verdict[name] for name in measured] == ["met", "not met", "met", "not met"]
    assert verdict[benchmark.PEAK] == ""


def test_the_share_of_a_gpus_peak_has_a_bar_of_its_own_for_the_wide_network():
    shares = [
        benchmark.bars({}, CPU, benchmark.SpeedParameters(model=model)).loc[benchmark.PEAK, "gpu: bar"]
        for model in ("ResNet18", "WideResNet-34-10")
    ]
    assert shares == ["at least 0.35", "at least 0.5"]


@pytest.mark.parametrize(
    "other", [{"steps": 10}, {"side": 16}, {"batch_size": 32}, {"attack_steps": 5}, {"model": "MobileNetV2"}]
)
def test_a_bar_is_not_judged_by_another_network_or_size_than_it_was_set_for(other):
    measured = {benchmark.PGD: 9.0, benchmark.EXACT: 1.0}
    verdict = benchmark.bars(measured, CPU, benchmark.SpeedParameters(**other))["cpu: met"]
    assert verdict[benchmark.PGD] == "not the bar's setting"
    assert verdict[benchmark.EXACT] == "not met"  # which has a network of its own


def test_the_bars_hear_of_flags_and_points_what_the_agreement_found():
    lines = {"folding": (0.0, 0, 500), "bf16": (-0.4, 2, 500), "all of them": (0.2, 6, 500)}
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=["shift", "judged otherwise", "of"])
    found = benchmark.changes(frame, Levers(folding=True, bf16=True))
    assert found == {benchmark.EXACT: 0.0, benchmark.FLAGS: 0.012, benchmark.SHIFT: 0.4}
    exact = benchmark.changes(frame.drop(index="bf16"), Levers(folding=True))
    assert exact == {benchmark.EXACT: 6.0}


def test_the_curves_have_points_for_each_kind_of_device_or_those_that_are_given():
    asked = benchmark.SpeedParameters()
    assert asked.points(CPU)[1]["batch"] < asked.points(torch.device("cuda"))[1]["batch"]
    assert benchmark.SpeedParameters(curve={"side": [8, 16]}).points(CPU)[1] == {"side": [8, 16]}


def test_the_growth_of_a_linear_cost_is_one():
    lines = [{"axis": "steps", "value": v, "form": "ours", "seconds": 3.0 * v} for v in (2, 4, 8)]
    assert benchmark.growth(pd.DataFrame(lines)).loc["steps", "ours"] == pytest.approx(1)
