import sys

import pytest

from lib.experiment import progress
from lib.experiment.progress import Progress, clock


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (7300, "2 h 01 min")]
)
def test_a_clock_reads_as_people_say_it(seconds, text):
    assert clock(seconds) == text


def test_a_log_gets_twenty_lines_however_many_runs_and_the_last_says_it_is_done(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    progress = Progress(200)
    for done in range(1, 201):
        progress.show(done / 200, done, f"job {done}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert " left · 10/200 runs · job 10" in lines[0]
    assert "took 0 s · 200/200 runs · job 200" in lines[-1]


def test_how_long_it_may_take_is_told_once_something_is_done(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    progress = Progress(2)
    progress.show(0.2, 0, "starting")
    progress.show(0.5, 1, "job 1")
    first, second = capsys.readouterr().out.splitlines()
    assert " begun · 0/2 runs" in first
    assert " left · 1/2 runs" in second


def test_a_terminal_gets_one_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress(2)
    progress.show(1.0, 2, "job")
    progress.close()
    said = capsys.readouterr()
    assert said.out == ""
    assert "100 %" in said.err
    assert "2/2 runs · job" in said.err


def test_one_piece_of_work_is_shown_by_its_share(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    tell = progress.shown("AutoAttack")
    tell(0.5)
    tell(1.0)
    lines = capsys.readouterr().out.splitlines()
    assert ["0/1 runs · AutoAttack" in lines[0], "1/1 runs · AutoAttack" in lines[1], len(lines)] == [True, True, 2]
