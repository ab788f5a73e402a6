"""Timing in turns, ratios of rounds, and what a piece of work holds."""

import itertools

import pandas as pd
import torch

from lib.benchmark import measure
from lib.benchmark.measure import in_turns, ratios
from lib.train import meter

CPU = torch.device("cpu")


def test_works_take_turns_in_an_order_that_is_reversed_every_round_warm_up_before():
    order = []
    seconds, _ = in_turns({name: lambda name=name: order.append(name) for name in "abc"}, 2, CPU, warm_up=1)
    assert "".join(order) == "cbaabccba"
    assert seconds.shape == (2, 3)


def test_every_round_is_timed_on_its_own_and_the_last_result_kept(monkeypatch):
    clock, results = itertools.accumulate([0, 1, 10, 2, 20, 4, 40, 8]), iter("abcd")
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(clock))
    seconds, last = in_turns({"x": lambda: next(results), "y": lambda: next(results)}, 2, CPU)
    assert seconds.to_dict("list") == {"x": [1, 8], "y": [2, 4]}
    assert last == {"x": "d", "y": "c"}


def test_the_devices_queue_is_empty_when_the_clock_starts_and_when_it_stops(monkeypatch):
    log = []
    monkeypatch.setattr(meter, "drain", lambda device: log.append("drained"))
    monkeypatch.setattr(meter.time, "perf_counter", lambda: log.append("clock") or 0.0)
    in_turns({"a": lambda: log.append("a")}, 1, CPU)
    assert log == ["drained", "clock", "a", "drained", "clock"]


def test_a_ratio_is_of_medians_and_comes_with_the_rounds_lowest_and_highest_and_the_seconds():
    frame = ratios(pd.DataFrame({"theirs": [2.0, 20.0, 4.0], "ours": [1.0, 10.0, 1.0]}), "theirs")
    assert frame.loc["ours"].tolist() == [4.0, 2.0, 4.0, 1.0, 1.0, 10.0]
    assert frame.loc["theirs", "times as fast"] == 1.0


def held(work):
    return measure.peak_memory(lambda: work, CPU)


def test_the_peak_is_what_is_held_at_once_and_not_what_is_made_in_all():
    def in_turn():
        for _ in range(5):
            torch.zeros(1000)

    assert held(in_turn) == 4000
    assert held(lambda: [torch.zeros(1000) for _ in range(5)]) == 20000


def test_views_hold_nothing_and_what_a_graph_keeps_is_held():
    x = torch.ones(1000, requires_grad=True)

    def graph():
        y = x.exp()  # kept for the backward, though nothing names it afterwards
        y = y.sin()
        return y.sum()

    assert held(lambda: [x.detach().view(10, 100)[i] for i in range(10)]) == 0
    assert held(graph) == 8004


def test_what_was_released_is_free_again():
    with measure.Allocations() as allocations:
        kept = torch.zeros(1000)
        for _ in range(3):
            torch.zeros(500)
    assert (allocations.now, allocations.most) == (4000, 6000)
    del kept
    assert allocations.now == 0
