import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import parameters

from lib import ROOT, experiment
from lib.errors import UserError
from lib.experiment import cost, jobs, runs
from lib.experiment.networks import PACKAGES
from lib.experiment.planning import plan, run
from lib.experiment.store import _json_digest
from lib.experiment.table import Table, open_table
from lib.files import file_digest
from lib.methods import METHODS


def small(outputs, **changes) -> Table:
    return open_table("table4_dgad", parameters(outputs, **changes))


def weights(table: Table) -> dict[str, dict]:
    store = table.workspace.store
    return {d.name: load_file(d / "last.safetensors") for d in sorted(store.runs.iterdir())}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        (one[run][name] == other[run][name]).all() for run in one for name in one[run]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Table:
    table = small(tmp_path_factory.mktemp("outputs"))
    run(plan(table))
    return table


def no_memory() -> RuntimeError:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    return error.value


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), no_memory()])
@pytest.mark.parametrize("doing", ["make", "measure"])
def test_a_lack_of_memory_ends_in_a_sentence_with_what_takes_less_and_loses_nothing(
    tmp_path, monkeypatch, doing, error
):
    table = small(tmp_path, rows=["PGD-AT"])
    with monkeypatch.context() as patched, pytest.raises(UserError, match="batch_size: 50.*precision: bf16") as short:
        patched.setattr(runs if doing == "make" else jobs.Job, doing, lambda *_, **__: (_ for _ in ()).throw(error))
        run(plan(table))
    assert len(str(short.value)) <= 500
    assert doing == "make" or weights(table)  # what was trained stands
    assert len(run(plan(table))) == 2


def test_a_table_is_run_whole_and_every_cell_has_every_column(finished):
    results = run(plan(finished))
    assert [(r.role, r.student, r.row, r.teacher) for r in results] == [
        ("cell", "ResNet18", "PGD-AT", ""),
        ("cell", "ResNet18", "DGAD", "WideResNet-34-10"),
        ("control", "ResNet18", "Natural", ""),
        ("teacher", "WideResNet-34-10", "", ""),
    ]
    for result in results[:2]:
        assert [a.column.name for a in result.accuracies] == ["Clean", "FGSM", "PGD", "CW2", "AA", "PGD-20"]


def test_a_finished_table_trains_and_measures_nothing_again(finished, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(runs, "start", never)
    monkeypatch.setattr(jobs, "evaluate", never)
    again = plan(finished)
    assert again.todo == ()
    assert "nothing will be trained" in again.summary()
    assert "nothing will be trained" in again._repr_html_()
    assert "<table" not in again._repr_html_()
    run(again)


def test_a_plan_says_whose_methods_code_was_edited_since_and_trains_nothing(finished, monkeypatch):
    assert "edited" not in plan(finished).summary()

    def edited(nets, x, x_adv, y):
        return {"adv": 2 * nets.student(x).sum(1)}

    monkeypatch.setitem(METHODS, "pgd_at", replace(METHODS["pgd_at"], loss=edited))
    again = plan(finished)
    assert again.todo == ()
    assert "edited since these were trained: teacher WideResNet-34-10, PGD-AT, ResNet18. A digest" in again.summary()
    assert METHODS["pgd_at"].code != METHODS["trades"].code


def test_the_plan_names_what_will_run_and_for_how_long(tmp_path):
    planned = plan(small(tmp_path))
    assert [isinstance(job, jobs.Check) for job in planned.todo] == 4 * [False] + 3 * [True]
    assert (planned.frame["seconds"] > 0).all()
    assert "GPU-hours" not in planned.frame
    assert "4 will run, 3 will have their sanity checked" in planned.summary()
    assert "<td>to be trained</td>" in planned._repr_html_()


def test_a_plan_at_a_scale_with_a_gpu_rate_gives_gpu_hours_that_grow_with_the_teacher(tmp_path):
    table = small(tmp_path, rows=["PGD-AT", "AdaAD"], settings={"sustained_tflops": 100.0})
    hours = plan(table).frame.query("state == 'to be trained'").set_index("network")["GPU-hours"]
    assert 0 < hours["PGD-AT, ResNet18"] < hours["AdaAD, ResNet18 ← WideResNet-34-10"]


def test_every_epoch_of_a_run_says_what_it_cost(finished):
    for cell in finished.cells:
        folder = finished.workspace.store.folder(cell.network.digest)
        history = json.loads((folder / "history.json").read_text())
        assert all(row["seconds"] > 0 and row["peak_mb"] > 10 for row in history)
        whole = json.loads((folder / "provenance.json").read_text())["seconds"]
        assert sum(row["seconds"] for row in history) <= whole + 0.1


def test_a_plan_takes_the_seconds_that_runs_of_the_kind_logged_and_probes_for_others(finished, monkeypatch):
    monkeypatch.setattr(experiment.cost, "training", lambda *_: pytest.fail("probed"))
    table = small(finished.workspace.outputs, seeds=[1])
    assert {"PGD-AT, ResNet18"} <= {job.label for job in plan(table).todo}
    logs, kind = cost.logged(table.workspace), lambda spec: cost.kind(spec.plain())
    for cell in table.cells:
        twice = replace(cell.network, schedule=replace(cell.network.schedule, epochs=4))
        assert kind(twice) == kind(cell.network) in logs
        assert kind(replace(cell.network, attack_steps=3)) not in logs
        assert kind(replace(cell.network, max_steps=1)) not in logs


def test_an_added_column_is_measured_without_training(finished, monkeypatch):
    monkeypatch.setattr(runs, "start", lambda *_: pytest.fail("trained again"))
    columns = finished.scale.columns | {"PGD-10": {"steps": 4}}
    changed = small(finished.workspace.outputs, settings={"columns": columns})
    monkeypatch.setattr(experiment.cost, "training", lambda *_: pytest.fail("probed"))
    planned = plan(changed)
    assert {*planned.frame["state"]} == {"trained, to be measured"}
    run(planned)


@pytest.mark.slow
def test_two_processes_make_the_same_weights_as_one(finished, tmp_path):
    table = small(tmp_path, workers=2)
    run(plan(table))
    assert same(weights(finished), weights(table))


@pytest.fixture
def copied(finished, tmp_path) -> Table:
    """A copy of the finished table, to be harmed."""
    shutil.copytree(finished.workspace.outputs, tmp_path / "copy")
    return small(tmp_path / "copy")


def rows_of(table: Table, cell: int) -> list[Path]:
    digest, here = table.cells[cell].digest, table.workspace.store.evaluations
    return [here / digest / f"{table.cells[cell].key(c)}.json" for c in table.cells[cell].columns]


def rewrite(path: Path, change) -> None:
    rows = [change(row) for row in json.loads(path.read_text())["rows"]]
    path.write_text(json.dumps({"sha256": _json_digest(rows), "rows": rows}))


def without_identity(path: Path) -> None:
    """The evaluation as it was written before rows named what they are of."""
    rewrite(path, lambda row: {key: row[key] for key in row if key != "of"})


def swap(one: Path, other: Path) -> None:
    content = one.read_text()
    one.write_text(other.read_text())
    other.write_text(content)


@pytest.mark.parametrize("old", [False, True], ids=["with identity", "written before"])
def test_two_evaluations_of_one_run_that_were_swapped_are_refused(copied, old):
    one, other = rows_of(copied, 0)[:2]
    for path in (one, other) if old else ():
        without_identity(path)
    swap(one, other)
    with pytest.raises(UserError, match="delete that file"):
        run(plan(copied))


def test_evaluations_of_two_runs_that_were_swapped_are_refused(copied):
    swap(rows_of(copied, 0)[0], rows_of(copied, 1)[0])
    with pytest.raises(UserError, match="of another run or column"):
        run(plan(copied))


def test_two_runs_whose_folders_were_swapped_are_refused(copied):
    one, other = (copied.workspace.store.folder(cell.digest) for cell in copied.cells)
    one.rename(one.with_name("x")), other.rename(one), one.with_name("x").rename(other)
    shutil.rmtree(copied.workspace.store.evaluations)
    with pytest.raises(UserError, match="it is the run"):
        run(plan(copied))


@pytest.mark.parametrize("change", [{"k": 1}, {"n": 3}, {"flags": "1"}])
def test_a_count_that_is_not_the_sum_of_its_flags_is_refused(copied, change):
    rewrite(rows_of(copied, 0)[0], lambda row: row | change)
    with pytest.raises(UserError, match="not of Clean .best.: delete that file"):
        plan(copied)


def test_evaluations_from_before_rows_named_what_they_are_of_are_read(copied, finished):
    for path in copied.workspace.store.evaluations.rglob("*.json"):
        without_identity(path)
    assert plan(copied).todo == ()
    assert [r.accuracies for r in run(plan(copied))] == [r.accuracies for r in run(plan(finished))]


def test_accuracies_of_weights_that_a_run_has_no_more_are_measured_anew(copied):
    folder = copied.workspace.store.folder(copied.cells[0].digest)
    (folder / "best.safetensors").write_bytes((folder / "last.safetensors").read_bytes() + b" ")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["best.safetensors"] = file_digest(folder / "best.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert [(job.label, job.state(copied.workspace)) for job in plan(copied).todo] == [
        ("PGD-AT, ResNet18", "trained, to be measured"),
        ("PGD-AT, ResNet18", "sanity to be checked"),
    ]


def test_an_equal_run_of_another_table_is_found_by_its_digest(finished):
    one_row = small(finished.workspace.outputs, rows=["DGAD"])
    assert all(isinstance(job, jobs.Check) for job in plan(one_row).todo)  # transfers from another network there


SCRIPT = """
import sys; sys.path.insert(0, "tests")
import torch; torch.set_num_threads(1)
from small import parameters
from lib import train
from lib.experiment import open_table, plan, run
from lib.methods import METHODS
import time
step = train.Training.train_step
def slow(self, x, y):
    time.sleep({pause})
    return step(self, x, y)
train.Training.train_step = slow
run(plan(open_table("table4_dgad", parameters({outputs!r}))))
"""


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_to_the_same_weights_as_one_that_was_not(finished, tmp_path):
    script = SCRIPT.format(outputs=str(tmp_path), pause=0.25)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    partial, deadline = tmp_path / "partial", time.monotonic() + 90
    while not list(partial.glob("*.pt")):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    table = small(tmp_path)
    planned = plan(table)
    assert "begun, goes on" in set(planned.frame["state"])
    run(planned)
    assert same(weights(finished), weights(table))
    assert not list(partial.iterdir())


def make_and_note(spec, workspace, note) -> None:
    publish = runs._publish

    def noted(*arguments: object) -> None:
        with note.open("a") as file:
            file.write("trained\n")
        publish(*arguments)

    runs._publish = noted
    runs.make(spec, workspace)


@pytest.mark.slow
def test_two_processes_that_want_the_same_run_train_it_once(tmp_path):
    table, note = small(tmp_path, rows=["PGD-AT"]), tmp_path / "note"
    context = multiprocessing.get_context("fork")
    spec = table.cells[0].network
    both = [context.Process(target=make_and_note, args=(spec, table.workspace, note)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert note.read_text() == "trained\n"


def test_a_teacher_that_is_also_a_row_is_made_before_its_students_and_measured_under_every_column(tmp_path):
    models = {"ResNet18": "ResNet8-w8", "WideResNet-34-10": "ResNet8-w8"}
    table = small(tmp_path, settings={"models": models})
    jobs = plan(table).jobs
    assert table.cells[0].network == table.teachers["WideResNet-34-10"]
    assert [job.label for job in jobs].index("teacher WideResNet-34-10") == 0
    assert {column.name for column in jobs[0].columns} == {"Clean", "FGSM", "PGD", "CW2", "AA", "PGD-20"}
    run(plan(table))


def kill_the_first_worker() -> None:
    while not (workers := multiprocessing.active_children()):
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(workers[0].pid or 0, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(tmp_path):
    planned = plan(small(tmp_path, workers=2))
    threading.Thread(target=kill_the_first_worker, daemon=True).start()
    with pytest.raises(UserError, match="a worker process was killed"):
        run(planned)
    deadline = time.monotonic() + 30  # the system may take a moment to end them
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


UNGUARDED = """
from lib import experiment

given = experiment.Parameters(rows=["PGD-AT"], seeds=[0, 1], workers=2, outputs={outputs!r})
table = experiment.open_table("table4_dgad", given)
{more}
experiment.run(experiment.plan(table))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", ["", "import multiprocessing, os\nmultiprocessing.parent_process() and os._exit(3)"], ids=["plain", "dies"]
)
def test_workers_of_a_script_without_a_guard_or_that_die_as_they_start_end_with_the_reason(tmp_path, more):
    (tmp_path / "script.py").write_text(UNGUARDED.format(outputs=str(tmp_path / "outputs"), more=more))
    command, given = [sys.executable, str(tmp_path / "script.py")], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.search("UserError.*a worker process ended as it started.*__main__.*workers=1", last)


def test_a_students_job_waits_for_its_teachers(tmp_path):
    jobs = {job.label: job for job in plan(small(tmp_path)).jobs}
    assert jobs["DGAD, ResNet18 ← WideResNet-34-10"].waits_for == {jobs["teacher WideResNet-34-10"].digest}
    assert jobs["PGD-AT, ResNet18"].waits_for == set()


def test_a_damaged_run_stops_the_plan_by_name(finished, tmp_path):
    table = small(tmp_path, rows=["PGD-AT"])
    run(plan(table))
    victim = table.workspace.store.folder(table.cells[0].network.digest) / "best.safetensors"
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(UserError, match=r"damaged \(best.safetensors\)"):
        plan(table)
    assert victim.exists()


def test_a_given_teacher_is_used_and_measured_and_not_trained(finished, tmp_path):
    teacher = finished.teachers["WideResNet-34-10"]
    file = finished.workspace.store.folder(teacher.digest) / "best.safetensors"
    table = small(tmp_path, rows=["DGAD"], teacher_files={"WideResNet-34-10": str(file)})
    results = run(plan(table))
    assert [r.role for r in results] == ["cell", "control", "teacher"]
    assert weights(table).keys() == {table.cells[0].network.digest, table.controls[0].network.digest}


def test_a_given_teacher_of_another_shape_is_refused_before_anything_runs(finished, tmp_path):
    student = finished.cells[0].network
    file = finished.workspace.store.folder(student.digest) / "best.safetensors"
    with pytest.raises(UserError, match="does not fit WideResNet; nothing was loaded. missing: "):
        small(tmp_path, rows=["DGAD"], teacher_files={"WideResNet-34-10": str(file)})


def test_a_teacher_file_that_was_changed_after_the_table_was_opened_is_not_used(finished, tmp_path):
    teacher = finished.teachers["WideResNet-34-10"]
    file = tmp_path / "teacher.safetensors"
    file.write_bytes((finished.workspace.store.folder(teacher.digest) / "best.safetensors").read_bytes())
    table = small(tmp_path, rows=["DGAD"], teacher_files={"WideResNet-34-10": str(file)})
    file.write_bytes((finished.workspace.store.folder(teacher.digest) / "last.safetensors").read_bytes() + b" ")
    with pytest.raises(UserError, match="is not the file any more"):
        runs.make(table.cells[0].network, table.workspace)


def test_provenance_says_with_what_a_run_was_made(finished):
    folder = finished.workspace.store.folder(finished.cells[0].network.digest)
    facts = json.loads((folder / "provenance.json").read_text())
    assert (facts["threads"], facts["execution"]) == (1, "fast")
    assert facts["steps"] == finished.cells[0].network.schedule.steps(48)
    assert set(facts["packages"]) == set(PACKAGES)


def test_a_plan_is_never_shorter_than_its_longest_job_after_the_one_it_waits_for(tmp_path):
    planned = plan(open_table("table4_dgad", parameters(tmp_path, workers=8)))
    teacher = next(job for job in planned.todo if job.label.startswith("teacher"))
    student = next(job for job in planned.todo if teacher.digest in job.waits_for)
    seconds = dict(zip((job.digest for job in planned.todo), planned.frame["seconds"], strict=True))
    assert planned.seconds >= seconds[teacher.digest] + seconds[student.digest]
