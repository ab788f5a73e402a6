"""Timing in turns, ratios of rounds, and what a piece of work holds."""

import pytest
import torch

from lib import benchmark


def test_contenders_take_turns_after_a_warm_up_of_each():
    log = []
    works = {name: lambda name=name: log.append(name) for name in "ab"}
    taken = benchmark.in_turns(works, 2, warm_up=1)
    assert log == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(times) for name, times in taken.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_taken_round_by_round_so_that_a_slow_round_does_not_change_it():
    frame = benchmark.ratios({"theirs": [2.0, 20.0, 4.0], "ours": [1.0, 10.0, 1.0]}, "theirs")
    assert frame.loc["ours"].tolist() == [2.0, 2.0, 4.0, 1.0, 1.0, 10.0]
    assert frame.loc["theirs", "times faster"] == 1.0


def test_the_peak_is_what_is_held_at_once_and_not_what_is_made_in_all():
    def in_turn():
        for _ in range(5):
            torch.zeros(1000)

    def at_once():
        return [torch.zeros(1000) for _ in range(5)]

    assert benchmark.peak_memory(in_turn) == 4000
    assert benchmark.peak_memory(at_once) == 20000


def test_views_hold_nothing_and_what_a_graph_keeps_is_held():
    x = torch.ones(1000, requires_grad=True)

    def viewed():
        return [x.detach().view(10, 100)[i] for i in range(10)]

    def graph():
        y = x.exp()  # kept for the backward, though nobody names it afterwards
        y = y.sin()
        return y.sum()

    assert benchmark.peak_memory(viewed) == 0
    assert benchmark.peak_memory(graph) == 8004


def test_released_work_is_free_again():
    with benchmark.Held() as held:
        kept = torch.zeros(1000)
        for _ in range(3):
            torch.zeros(500)
    assert (held.now, held.most) == (4000, 6000)
    del kept
    assert held.now == 0


def test_the_peak_of_products_and_what_work_reaches_are_operations_per_second():
    assert benchmark.matmul_peak("cpu", torch.float32, size=64) > 0
    a = torch.ones(8, 8)
    times = iter([0.0, 2.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark.time, "perf_counter", lambda: next(times))
        assert benchmark.achieved(lambda: a @ a) == 2 * 8**3 / 2
