"""A calibration is made once per kind of work on a machine, kept beside the runs, and told by them."""

import json
from dataclasses import replace

import pytest
import torch
from small import parameters

from lib.attacks.calibration import Tried
from lib.attacks.levers import PLAIN, STANDARD, Levers
from lib.errors import UserError
from lib.experiment import calibrated, runs
from lib.experiment.calibrated import Calibration
from lib.experiment.opening import open_table
from lib.experiment.store import Store

FOUND = Levers(folding=True, fused=True), [Tried("folding", (1.0, 1.5, 2.0), True, "pays")]


@pytest.fixture
def asked(monkeypatch):
    """What calibrations were asked for; each finds FOUND."""
    calls = []
    monkeypatch.setattr(calibrated, "calibrate", lambda net, x, y, **how: calls.append((len(x), how)) or FOUND)
    return calls


def opened(tmp_path, levers, **settings):
    return open_table("table4_dgad", parameters(tmp_path, rows=["PGD-AT"], settings={"levers": levers} | settings))


def facts(table, network):
    return json.loads((table.workspace.store.folder(network.digest) / "provenance.json").read_text())


def test_a_run_is_calibrated_once_and_says_what_paid(tmp_path, asked):
    table = opened(tmp_path, "calibrated")
    first = table.cells[0].network
    runs.make(first, table.workspace)
    second = replace(first, seed=1)
    runs.make(second, table.workspace)
    assert [how for _, how in asked] == [{"epsilon": first.epsilon, "precision": "fp32"}]
    (kept,) = (tmp_path / "calibrations").iterdir()
    said = f"folding (x 1.50) + fused, by calibrations/{kept.name}"
    assert facts(table, first)["levers"] == facts(table, second)["levers"] == said
    assert json.loads(kept.read_text())["kind"]["model"] == first.model


@pytest.mark.parametrize("change", ["batch", "precision", "model", "device"])
def test_another_kind_of_work_is_calibrated_anew(change, tmp_path, asked, make_net, batch):
    spec, (x, y), store = opened(tmp_path, "standard").cells[0].network, batch, Store(tmp_path)
    calibrated.calibrated(spec, make_net(), x, y, store, "a processor")
    other = {"precision": {"precision": "bf16"}, "model": {"model": "ResNet10-w8"}}.get(change, {})
    count, device = 4 if change == "batch" else 6, "another" if change == "device" else "a processor"
    for _ in range(2):
        calibrated.calibrated(replace(spec, **other), make_net(), x[:count], y[:count], store, device)
    assert len(asked) == 2
    assert asked[1][1]["precision"] == ("bf16" if change == "precision" else "fp32")


@pytest.mark.parametrize(("levers", "expected"), [("standard", STANDARD), ("plain", PLAIN)])
def test_named_levers_are_taken_without_a_calibration_and_change_no_digest(levers, expected, tmp_path, asked):
    table = opened(tmp_path, levers)
    runs.make(table.cells[0].network, table.workspace)
    assert facts(table, table.cells[0].network)["levers"] == str(expected.for_equal_steps)
    assert table.cells[0].network.digest == opened(tmp_path, "calibrated").cells[0].network.digest
    assert asked == []


def test_what_has_no_attack_or_is_cut_off_after_some_steps_is_not_calibrated(tmp_path, asked):
    table = opened(tmp_path, "calibrated")
    for network in (table.controls[0].network, replace(table.cells[0].network, max_steps=1)):
        runs.make(network, table.workspace)
        assert facts(table, network)["levers"] == str(STANDARD.for_equal_steps)
    assert asked == []


def test_a_run_under_a_real_calibration_ends_where_the_standard_levers_do(tmp_path):
    weights = []
    for levers in ("standard", "calibrated"):
        table = opened(tmp_path / levers, levers)
        runs.make(table.cells[0].network, table.workspace)
        weights.append(runs.network(table.cells[0].network, table.data, table.workspace).state_dict())
    assert "in_backward" in facts(table, table.cells[0].network)["levers"]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=1e-3)


def test_levers_that_nobody_knows_are_refused_with_the_valid_ones(tmp_path):
    with pytest.raises(UserError, match="unknown levers 'fast'; choose one of: plain, standard, calibrated"):
        opened(tmp_path, "fast")


def test_what_a_run_could_not_have_is_told_with_the_reason_in_place_of_what_the_calibration_found():
    tried = (Tried("cuda_graph", (2.0,), True, "pays"), Tried("folding", (1.2,), True, "pays"))
    used = Levers(folding=True, cuda_graph=True)
    said = Calibration(used, tried).told(used, {"cuda_graph": "the attack asks the host"})
    assert said == "folding (x 1.20) + cuda_graph (not to be had: the attack asks the host)"
    assert Calibration(used, tried).told(used.for_own_steps, {}) == "folding (x 1.20)"


def test_a_calibration_shows_a_line_for_each_lever_and_levers_by_name_show_none():
    frame = Calibration(*FOUND, 3.0).frame
    assert frame.loc["folding"].tolist() == ["PGD", 1.5, 1.0, 2.0, "pays"]
    assert list(Calibration(PLAIN).frame.columns) == list(frame.columns)
    assert Calibration(PLAIN).frame.empty
