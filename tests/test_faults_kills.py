"""A process that is killed at any of its file operations: the same call again ends in the same bits."""

import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from faults import WORKS, attempt, die, die_halfway, state_of, tallied

pytestmark = pytest.mark.slow
KILLED = {"signal 9", f"signal {int(signal.SIGXFSZ)}"}


def test_a_run_a_table_and_a_cache_of_images_are_written_nowhere_but_in_outputs(works, tmp_path):
    for name, work in works.all.items():
        (tmp_path / name).mkdir()
        outcome = attempt(work, tmp_path / name)
        assert (outcome.said, outcome.outside) == ("", [])
        assert {path.name for path in (tmp_path / name).iterdir()} == {"outputs"}


@pytest.fixture(params=WORKS)
def work(request, works):
    return works.all[request.param]


def whole(work, tmp_path: Path):
    """An uninterrupted call: the operations that it comes to and what it leaves."""
    folder = tmp_path / "whole"
    folder.mkdir(parents=True)
    begun = time.monotonic()
    outcome = attempt(work, folder)
    assert outcome.said == ""
    return outcome.places, state_of(folder), time.monotonic() - begun


def same_again(work, folder: Path, state: dict) -> None:
    """The same call ends well and in the same bits, with nothing beside them."""
    outcome = attempt(work, folder)
    assert outcome.said == ""
    assert state_of(folder) == state


def killed_after(folder: Path, seconds: float, work) -> None:
    """work(folder) in a process that is killed after so many seconds."""
    threading.Timer(seconds, die, [""]).start()
    work(folder)


def test_every_kind_of_file_operation_is_met(works, tmp_path):
    places = [place for name in WORKS for place in whole(works.all[name], tmp_path / name)[0]]
    assert {place.split()[0] for place in places} == {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
    for part in ("runs/.", ".pt.", "manifest.json", ".json.", "about.json", "apgd-ce-00001", "cache/.", "tables/."):
        assert any(part in place for place in places), part


def test_after_a_kill_at_any_file_operation_the_same_call_ends_in_the_same_bits(work, tmp_path):
    places, state, _ = whole(work, tmp_path)
    with tallied(f"killed before a file operation ({work.__name__.removeprefix('a_')})") as tally:
        for number, place in enumerate(places, 1):
            folder = tmp_path / str(number)
            folder.mkdir()
            outcome = attempt(work, folder, die, number)
            assert outcome.said in KILLED
            assert outcome.places == places[:number]
            same_again(work, folder, state)
            tally.killed(place)


def test_after_a_kill_in_the_midst_of_any_file_the_same_call_ends_in_the_same_bits(work, tmp_path):
    places, state, _ = whole(work, tmp_path)
    with tallied(f"killed in the midst of a file ({work.__name__.removeprefix('a_')})") as tally:
        for number, place in enumerate(places, 1):
            if place.startswith("open ") and place.endswith((".PID", ".safetensors", ".json", ".png", ".pdf")):
                folder = tmp_path / str(number)
                folder.mkdir()
                assert attempt(work, folder, die_halfway, number).said in KILLED
                assert any(path.stat().st_size == 20 for path in folder.rglob("*") if path.is_file())
                same_again(work, folder, state)
                tally.killed(place)


def test_after_a_kill_of_the_second_try_too_the_third_ends_in_the_same_bits(works, tmp_path):
    work = works.all["run"]
    places, state, _ = whole(work, tmp_path)
    draw = random.Random(18)
    with tallied("killed twice, at file operations drawn with seed 18") as tally:
        for number in range(20):
            folder = tmp_path / str(number)
            folder.mkdir()
            for _ in range(2):
                at = draw.randrange(1, len(places) // 2)
                attempt(work, folder, die, at)
                tally.killed(places[at - 1])
            same_again(work, folder, state)


def test_after_a_kill_at_any_moment_the_same_call_ends_in_the_same_bits(works, tmp_path):
    work = works.all["run"]
    _, state, seconds = whole(work, tmp_path)
    draw, met, number = random.Random(0), 0, 0
    with tallied("killed at a moment drawn with seed 0") as tally:
        while met < 15:
            number += 1
            assert number <= 100, f"{met} of 100 calls were still at work when their moment came"
            folder = tmp_path / str(number)
            folder.mkdir()
            after = draw.uniform(0, 0.9 * seconds)
            met += attempt(partial(killed_after, seconds=after, work=work), folder).said in KILLED
            same_again(work, folder, state)
            tally.killed(f"{after}")
