import itertools

import pytest

from lib.benchmark.timing import Timed, in_turns, ratio, table, total
from lib.errors import UserError


def test_ways_take_turns_in_an_order_that_turns_round():
    order = []
    in_turns({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abccbaabc"


def test_every_round_of_a_way_is_timed_on_its_own_and_its_last_result_kept():
    clock, answers = itertools.accumulate([0, 1, 10, 2, 20, 4, 40, 8]), iter("abcd")
    timed = in_turns({"x": lambda: next(answers), "y": lambda: next(answers)}, rounds=2, clock=lambda: next(clock))
    assert timed == {"x": Timed((1, 8), "d"), "y": Timed((2, 4), "c")}


def test_no_round_at_all_is_refused():
    with pytest.raises(UserError, match="at least 1 round"):
        in_turns({}, rounds=0)


def test_a_ratio_is_of_medians_and_its_spread_of_rounds():
    slow, fast = Timed((10.0, 12.0, 50.0)), Timed((5.0, 4.0, 5.0))
    found = ratio(slow, fast)
    assert (found.median, found.low, found.high) == (12 / 5, 2, 10)
    assert str(found) == "2.40 [2.00, 10.00]"
    assert str(slow) == "12 s [10, 50]"


def test_the_total_is_summed_round_by_round():
    parts = {"a": {"x": Timed((1, 2)), "y": Timed((3, 4))}, "b": {"x": Timed((10, 20)), "y": Timed((30, 40))}}
    assert total(parts) == {"x": Timed((11, 22)), "y": Timed((33, 44))}


def test_a_table_has_the_ratio_first_and_all_parts_last():
    shown = table({"a": {"x": Timed((4.0,)), "y": Timed((2.0,))}}, "x", "y")
    assert list(shown.columns) == ["x / y", "x", "y"]
    assert list(shown.index) == ["a", "all"]
    assert shown.loc["all", "x / y"] == "2.00 [2.00, 2.00]"
