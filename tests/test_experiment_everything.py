import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from small import SETTINGS

from lib.evaluate import AttackSpec
from lib.experiment import cost, everything, jobs, runs
from lib.experiment.everything import longest_first, storage
from lib.experiment.jobs import Check
from lib.experiment.parameters import PARAMS, Parameters
from lib.experiment.planning import jobs_of, plan
from lib.experiment.spec import RunSpec
from lib.experiment.table import open_table
from lib.experiment.table_file import read_table

NAMES = [path.stem for path in sorted((PARAMS / "tables").glob("*.yaml"))]
PAIR = ("fig5_dynat", "table3_dynat")  # the figure's two runs are two of the table's four


def small(outputs) -> Parameters:
    return Parameters(outputs=str(outputs), device="cpu", workers=1, settings=SETTINGS)


def call(monkeypatch, capsys, outputs, *arguments: str) -> str:
    given = ["--outputs", str(outputs), "--device", "cpu", "--workers", "1", "--settings", yaml.safe_dump(SETTINGS)]
    monkeypatch.setattr(sys, "argv", ["everything", *given, *arguments])
    everything.main()
    return capsys.readouterr().out


@pytest.fixture
def fast(monkeypatch):
    """Costs that are told apart without a measurement: by the network and by the number of columns."""

    def seconds(model: str) -> pd.Series:
        return pd.Series({"seconds": float(len(model)), "flops": 1e9})

    monkeypatch.setattr(cost, "training", lambda spec, _: 10 * seconds(spec.model))
    monkeypatch.setattr(cost, "evaluation", lambda model, _, __, columns: seconds(model) * len(columns) / 10)


def test_the_union_of_all_tables_has_every_run_once_and_its_longest_chains_first(tmp_path, fast):
    tables = [open_table(name, small(tmp_path)) for name in NAMES if read_table(name).item]
    assert len(tables) == len(NAMES) - 1
    own = {job.run for table in tables for job in jobs_of(table)}
    planned = longest_first(plan(*tables))
    nets = [job for job in planned.todo if not isinstance(job, Check)]
    assert len(nets) == len({job.run for job in nets}) == len(own) == len(planned.jobs)
    assert len(planned.todo) == len({job.digest for job in planned.todo})
    at = {job.digest: place for place, job in enumerate(planned.todo)}
    assert all(at[digest] < at[job.digest] for job in planned.todo for digest in job.waits_for)
    waited_for = {digest for job in planned.todo for digest in job.waits_for}
    seconds = dict(zip(planned.todo, planned.frame["seconds"], strict=True))
    alone = [seconds[job] for job in planned.todo if job.digest not in waited_for]
    assert alone == sorted(alone, reverse=True)
    assert {job.label for job in planned.todo if job.waits_for}
    assert planned.seconds > 0
    for table in tables:
        for job in jobs_of(table):
            merged = next(net for net in nets if net.run == job.run)
            assert {column.what for column in job.columns} <= {column.what for column in merged.columns}


class Named(SimpleNamespace):
    __hash__ = object.__hash__


def test_a_student_whose_teacher_is_done_is_made_before_the_shorter_jobs_behind_it(monkeypatch):
    names = {"teacher": set(), "student": {"teacher"}, "long": set(), "short": set(), "shortest": set()}
    each, begun = {Named(digest=name, waits_for=waits): 1.0 for name, waits in names.items()}, []

    def do(job: Named, _: object) -> str:
        begun.append(job.digest)
        time.sleep(0.2 if job.digest == "long" else 0.05)
        return ""

    monkeypatch.setattr(jobs, "do", do)
    monkeypatch.setattr(jobs, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(workers))
    jobs.run_jobs(each, SimpleNamespace(), workers=2)
    assert begun == ["teacher", "long", "student", "short", "shortest"]


def test_the_plan_is_printed_with_shared_runs_hours_and_storage_and_nothing_is_trained(
    tmp_path, fast, monkeypatch, capsys
):
    monkeypatch.setattr(jobs.Job, "do", lambda *_: pytest.fail("made"))
    said = call(monkeypatch, capsys, tmp_path, "-n", *PAIR)
    assert "2 tables and figures ask for 6 runs: 4, of which 2 are shared." in said
    assert "4 will run, 4 will have their sanity checked" in said
    assert "core-hours" in said
    assert said.count("to be trained") == 4
    assert not list((tmp_path / "runs").iterdir())


def test_an_interrupted_make_goes_on_and_after_it_no_table_has_anything_to_do(tmp_path, monkeypatch, capsys):
    make, made = runs.make, []

    def twice(spec: RunSpec, *arguments: object) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        if not arguments[0].store.has(spec.digest):
            made.append(spec.digest)
        make(spec, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(runs, "make", twice)
        call(monkeypatch, capsys, tmp_path, *PAIR)
    capsys.readouterr()
    assert call(monkeypatch, capsys, tmp_path, *PAIR).count("to be trained") == 2
    assert {path.name for path in (tmp_path / "runs").iterdir()} > {*made}
    tables = [open_table(name, small(tmp_path)) for name in PAIR]
    assert all(plan(table).todo == () for table in tables)
    assert "nothing will be trained" in call(monkeypatch, capsys, tmp_path, *PAIR)
    stored = sum(path.stat().st_size for path in (tmp_path / "runs").glob("*/*.safetensors"))
    assert storage(plan(*tables)) == pytest.approx(stored, rel=0.1)  # files have headers


def test_wrong_settings_and_unknown_tables_end_in_a_sentence(tmp_path, monkeypatch, capsys):
    for wrong, sentence in (
        (["--settings", "[1]"], "settings wants dict"),
        (["--settings", "{a: "], "while parsing"),
        (["table9_dgad"], "unknown table 'table9_dgad'"),
    ):
        monkeypatch.setattr(sys, "argv", ["everything", "--outputs", str(tmp_path), *wrong])
        with pytest.raises(SystemExit) as ended:
            everything.main()
        assert ended.value.code == 1
        assert sentence in capsys.readouterr().err


def test_a_column_under_two_names_costs_once(tmp_path):
    table = open_table("fig5_dynat", small(tmp_path))
    one, other = AttackSpec("PGD", "pgd", 0.1, 0.02, 2), AttackSpec("PGD-2", "pgd", 0.1, 0.02, 2)
    model, data = table.cells[0].network.model, table.data
    single, double = (cost.evaluation(model, data, table.workspace, each)["flops"] for each in ((one,), (one, other)))
    assert single == double > 0
