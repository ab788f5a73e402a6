"""A plan simulated on several machines: hand-made cases, and what holds for every plan and order."""

import random

import pytest

from lib.benchmark.scheduling import ClusterParameters, compare, longest_chain, simulate
from lib.errors import UserError

THREE = {"a": 3.0, "b": 2.0, "c": 2.0}
TAUGHT = {"teacher": 2.0, "student": 3.0, "short": 1.0, "other": 1.0}


def drawn(seed: int, chained: bool):
    """Up to 30 jobs, each waiting for up to three earlier ones if `chained`, in an order of their own."""
    draw = random.Random(seed)
    names = [f"job{i}" for i in range(draw.randint(1, 30))]
    hours = {name: draw.choice([0.5, 1.0, draw.uniform(0.01, 9.0)]) for name in names}
    waits = {name: set(draw.sample(names[:i], min(i, draw.randint(0, 3)))) for i, name in enumerate(names) if chained}
    return hours, waits, draw.sample(names, len(names)), draw.randint(1, 9)


def test_three_jobs_take_two_machines_four_hours_with_the_longest_first_and_five_with_it_last():
    assert simulate(THREE, {}, ["a", "b", "c"], 2)["end"].to_dict() == {"a": 3.0, "b": 2.0, "c": 4.0}
    assert simulate(THREE, {}, ["b", "c", "a"], 2)["end"].max() == 5.0


def test_a_chain_takes_as_long_on_nine_machines_as_on_one():
    waits = {"b": {"a"}, "c": {"b"}}
    assert longest_chain(THREE, waits) == ["a", "b", "c"]
    for machines in (1, 9):
        frame = simulate(THREE, waits, ["c", "b", "a"], machines)
        assert frame["start"].to_dict() == {"a": 0.0, "b": 3.0, "c": 5.0}
        assert set(frame["machine"]) == {0}


def test_a_student_waits_for_its_teacher_while_a_job_behind_it_starts():
    frame = simulate(TAUGHT, {"student": {"teacher"}}, ["student", "teacher", "short", "other"], 2)
    assert frame["start"].to_dict() == {"teacher": 0.0, "short": 0.0, "other": 1.0, "student": 2.0}
    assert frame["machine"].loc[["short", "other"]].tolist() == [1, 1]


def test_a_teacher_that_is_not_planned_is_done():
    assert simulate({"student": 1.0}, {"student": {"made"}}, ["student"], 1)["start"].to_dict() == {"student": 0.0}
    assert longest_chain({"student": 1.0}, {"student": {"made"}}) == ["student"]


def test_an_order_that_leaves_a_teacher_out_is_refused_and_does_not_run_for_ever():
    with pytest.raises(ValueError, match="wait for each other: \\['student'\\]"):
        simulate(TAUGHT, {"student": {"teacher"}}, ["student", "short"], 2)


@pytest.mark.parametrize("chained", [False, True])
def test_every_job_runs_once_after_those_it_waits_for_and_no_machine_does_two_at_once(chained):
    for seed in range(200):
        hours, waits, order, machines = drawn(seed, chained)
        frame = simulate(hours, waits, order, machines)
        assert sorted(frame.index) == sorted(hours)
        assert (frame["end"] - frame["start"]).to_dict() == pytest.approx(hours)
        assert frame["machine"].between(0, machines - 1).all()
        assert all(frame["end"][first] <= frame["start"][job] for job in waits for first in waits[job])
        for _, own in frame.sort_values("start").groupby("machine"):
            assert (own["end"].to_numpy()[:-1] <= own["start"].to_numpy()[1:]).all()


@pytest.mark.parametrize("chained", [False, True])
def test_no_order_is_below_the_bound_nor_above_grahams_multiple_of_it(chained):
    for seed in range(200):
        hours, waits, order, machines = drawn(seed, chained)
        (line,) = compare(hours, waits, [("drawn", order)], [machines]).to_dict("records")
        assert 1 - 1e-9 <= line["times the bound"] <= 2 - 1 / machines + 1e-9
        assert line["utilisation"] <= 1 + 1e-9


def test_grahams_multiple_is_reached_so_that_no_smaller_one_holds():
    hours = {"long": 4.0} | {f"short{i}": 1.0 for i in range(12)}
    (worst, best) = compare(hours, {}, [("short first", [*hours][::-1]), ("long first", [*hours])], [4])["makespan"]
    assert (worst, best) == (7.0, 4.0)


def test_on_one_gpu_every_order_takes_the_sum_and_the_gpu_is_always_in_use():
    compared = compare(TAUGHT, {"student": {"teacher"}}, [("as given", [*TAUGHT]), ("back", [*TAUGHT][::-1])], [1])
    assert compared["makespan"].tolist() == [7.0, 7.0]
    assert compared["utilisation"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [{"gpus": []}, {"gpus": [0, 1]}, {"drawn": 0}, {"random_orders": 0}])
def test_a_cluster_without_a_gpu_or_an_order_is_refused(wrong):
    with pytest.raises(UserError, match="at least 1"):
        ClusterParameters(**wrong)
