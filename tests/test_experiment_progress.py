import pytest

from lib.experiment import progress
from lib.experiment.progress import Progress, clock


@pytest.fixture
def log(capsys, monkeypatch):
    """The lines that were printed, where nobody sits at a terminal."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    return lambda: capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (7300, "2 h 01 min")]
)
def test_a_clock_reads_as_people_say_it(seconds, text):
    assert clock(seconds) == text


def test_a_log_gets_ten_lines_however_many_runs_and_the_last_says_it_is_done(log):
    progress = Progress([1.0] * 200)
    for i in range(200):
        progress.finish(1.0, f"job {i}")
    lines = log()
    assert len(lines) == 10
    assert " left · 20/200 runs · job 19" in lines[0]
    assert lines[-1] == "100 % · took 0 s · 200/200 runs · job 199"


def test_no_line_says_a_result_twice_and_none_is_wider_than_a_narrow_page(log):
    progress = Progress([1.0, 9.0])
    progress.finish(1.0, "PGD-AT, ResNet18 ← WideResNet-34-10: " + ", ".join(f"PGD-{n} 76.0" for n in range(20)))
    for tenths in range(1, 10):
        progress.show(9.0, tenths / 10)
    lines = log()
    assert len(lines) == len({*lines}) <= 10
    assert sum("PGD-AT, ResNet18" in line for line in lines) == 1
    assert max(map(len, lines)) <= 88


def test_a_long_job_counts_for_more_than_a_short_one_and_time_is_guessed_once_one_is_done(log):
    progress = Progress([3.0, 1.0])
    progress.show(3.0, 0.5)
    progress.finish(3.0, "long: Clean 97.0")
    first, second = log()
    assert first == "34 % · begun · 0/2 runs · starting"  # 0.9 of half of 3 seconds: it is measured after its training
    assert second == "75 % · 0 s left · 1/2 runs · long: Clean 97.0"


def test_a_terminal_gets_one_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress([1.0])
    progress.finish(1.0, "job")
    progress.bar.close()
    output = capsys.readouterr()
    assert output.out == ""
    assert "100 %" in output.err
    assert "1/1 runs · job" in output.err


def test_one_piece_of_work_is_displayed_by_its_share(log):
    notify = progress.display("AutoAttack")
    notify(0.5)
    notify(1.0)
    lines = log()
    assert len(lines) == 2
    assert lines[0].startswith("50 %")
    assert lines[1].endswith("1/1 runs · AutoAttack")
