import pytest

from lib.progress import Progress, clock


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (7300, "2 h 01 min")]
)
def test_a_clock_reads_as_people_say_it(seconds, text):
    assert clock(seconds) == text


def test_a_log_gets_some_twenty_lines_and_the_last_says_it_is_done(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    progress = Progress(200)
    for done in range(1, 201):
        progress.show(done, f"job {done}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert "200/200 runs · took" in lines[-1]
    assert " left · " in lines[0]


def test_a_terminal_gets_one_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress(2)
    progress.show(2, "job")
    progress.close()
    said = capsys.readouterr()
    assert said.out == ""
    assert "2/2" in said.err
