"""Timing in turns, ratios of rounds, and what a piece of work holds."""

import torch

from lib.benchmark import measure
from lib.benchmark.timing import Timed

CPU = torch.device("cpu")
TIMER = measure.Timer(CPU)


def test_contenders_are_called_before_they_are_timed_and_then_take_turns():
    log = []
    works = {name: lambda name=name: log.append(name) for name in "ab"}
    taken = measure.in_turns(works, 2, TIMER)
    assert log == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(timed.seconds) for name, timed in taken.items()} == {"a": 2, "b": 2}


def test_the_devices_queue_is_empty_before_anything_is_timed(monkeypatch):
    log = []
    monkeypatch.setattr(measure, "drain", lambda device: log.append("drained"))
    timer = measure.Timer(CPU, clock=lambda: log.append("clock") or 0.0)
    measure.in_turns({"a": lambda: log.append("a")}, 1, timer)
    assert log == ["a", "drained", "clock", "a", "drained", "clock"]


def test_a_ratio_comes_with_the_rounds_lowest_and_highest_and_the_seconds():
    taken = {"theirs": Timed((2.0, 20.0, 4.0)), "ours": Timed((1.0, 10.0, 1.0))}
    frame = measure.ratios(taken, "theirs")
    assert frame.loc["ours"].tolist() == [4.0, 2.0, 4.0, 1.0, 1.0, 10.0]
    assert frame.loc["theirs", "times as fast"] == 1.0


def test_the_peak_is_what_is_held_at_once_and_not_what_is_made_in_all():
    def in_turn():
        for _ in range(5):
            torch.zeros(1000)

    def at_once():
        return [torch.zeros(1000) for _ in range(5)]

    assert measure.peak_memory(in_turn, CPU) == 4000
    assert measure.peak_memory(at_once, CPU) == 20000


def test_views_hold_nothing_and_what_a_graph_keeps_is_held():
    x = torch.ones(1000, requires_grad=True)

    def viewed():
        return [x.detach().view(10, 100)[i] for i in range(10)]

    def graph():
        y = x.exp()  # kept for the backward, though nobody names it afterwards
        y = y.sin()
        return y.sum()

    assert measure.peak_memory(viewed, CPU) == 0
    assert measure.peak_memory(graph, CPU) == 8004


def test_released_work_is_free_again():
    with measure.Allocations() as held:
        kept = torch.zeros(1000)
        for _ in range(3):
            torch.zeros(500)
    assert (held.now, held.most) == (4000, 6000)
    del kept
    assert held.now == 0


def test_what_work_reaches_is_its_operations_by_its_seconds(monkeypatch):
    assert measure.matmul_peak(TIMER, torch.float32, (64,), 1) > 0
    a = torch.ones(8, 8)
    monkeypatch.setattr(measure, "seconds", lambda work, device, clock: 2.0)
    assert measure.achieved(lambda: None, lambda: a @ a, TIMER, 3) == 2 * 8**3 / 2  # a recording counts nothing
