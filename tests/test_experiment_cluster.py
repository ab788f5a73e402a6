"""A Ray cluster of two machines on this one: what is made on it, and what is left when a part of it goes."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from raylets import Cluster, kill, until
from small import SETTINGS, parameters

from lib import ROOT
from lib.errors import UserError
from lib.experiment import open_table, plan, run
from lib.experiment.cluster import Driver, _messages, room
from lib.experiment.parameters import Parameters
from lib.experiment.planning import jobs_of
from lib.experiment.remote import Visit, code_digest, files_of, given_weights, receive, scratch, work
from lib.experiment.spec import RunSpec
from lib.experiment.store import MANIFEST, Store

LONG = {"train_images": 300, "schedules": {"default": {"epochs": 40, "batch_size": 16}}, "sanity_images": 0}
DRIVE = """
import json, sys
from lib.experiment import open_table, plan, run
from lib.experiment.parameters import Parameters
if __name__ == "__main__":
    run(plan(open_table("table4_dgad", Parameters(**json.loads(sys.argv[1])))))
"""


def weights(outputs):
    """The digests of every run's weights."""
    manifests = {file.parent.name: json.loads(file.read_text()) for file in outputs.glob(f"runs/*/{MANIFEST}")}
    return {
        (run, name): sha for run, each in manifests.items() for name, sha in each.items() if name.endswith("tensors")
    }


def flags(outputs):
    """Every image's flag under every attack."""
    rows = {file: json.loads(file.read_text())["rows"] for file in outputs.glob("evaluations/*/*.json")}
    return {(f.parent.name, f.name, i): row.get("flags") for f, each in rows.items() for i, row in enumerate(each)}


def resumed(outputs):
    return sorted(
        file.parent.name for file in outputs.glob("runs/*/provenance.json") if json.loads(file.read_text())["resumed"]
    )


# without Ray: what a machine of the cluster does


@pytest.fixture
def visit(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "machine"))
    (tmp_path / "machine").mkdir()
    table = open_table("table4_dgad", parameters(tmp_path / "outputs", rows=["PGD-AT"]))
    job = next(job for job in jobs_of(table) if job.label.startswith("PGD-AT"))
    own = table.workspace
    place = Visit(Path("visit"), Path(), device="cpu", execution=own.execution)
    return job, own, (job, place, code_digest(), 0.01, {name: own.whole(name) for name in job.data_names})


def test_a_job_done_elsewhere_comes_back_with_the_weights_and_flags_that_it_has_here(visit, tmp_path):
    job, own, call = visit
    here = open_table("table4_dgad", parameters(tmp_path / "inline", rows=["PGD-AT"])).workspace
    job.do(here)
    said = []
    for _, text, files in work(*call):
        receive(own.store, files)
        said.append(text)
    assert said[-1].startswith("PGD-AT, ResNet18: Clean ")
    assert weights(own.outputs) == weights(here.outputs) != {}
    assert flags(own.outputs) == flags(here.outputs) != {}
    assert [*(tmp_path / "machine").glob("dynamic-at-*")] == []


def test_what_a_lost_job_had_sent_is_gone_on_from_and_leads_to_the_same_weights(visit, tmp_path):
    job, own, call = visit
    for share, _, files in (stream := work(*call)):
        receive(own.store, files)
        if share >= 0.5:
            break
    stream.close()
    assert own.store.checkpoint(job.run).exists()
    assert not own.store.has(job.run)
    for _, _, files in work(*call, files_of(own.store, job.run)):
        receive(own.store, files)
    job.do(here := open_table("table4_dgad", parameters(tmp_path / "inline", rows=["PGD-AT"])).workspace)
    assert resumed(own.outputs) == [job.run]
    assert weights(own.outputs) == weights(here.outputs)


def test_a_machine_with_another_lib_does_nothing(visit):
    job, place, _, *rest = visit[2]
    with pytest.raises(UserError, match="on .*: lib or torch are others than the notebook's"):
        next(work(job, place, "another", *rest))


def test_a_run_that_changed_on_its_way_is_refused_and_leaves_nothing(visit, tmp_path):
    job, own, call = visit
    files = {name: content for *_, each in work(*call) for name, content in each.items()}
    name = f"runs/{job.run}/best.safetensors"
    with pytest.raises(UserError, match=f"the run {job.run} changed on its way here"):
        receive(own.store, files | {name: files[name][:-1] + b"x"})
    assert [*own.store.runs.iterdir()] == []


def test_weights_that_were_given_travel_with_the_job(visit, tmp_path):
    job, own, call = visit
    job.do(own)
    file = own.store.folder(job.run) / "best.safetensors"
    given = parameters(tmp_path / "given", rows=["PGD-AT"], teacher_files={"PGD-AT": str(file)})
    table = open_table("table4_dgad", given)
    (cell,) = table.cells
    assert not isinstance(cell.network, RunSpec)
    *_, (_, _, files) = work(cell, *call[1:], given_weights(cell, table.workspace))
    receive(table.workspace.store, files)
    assert [row.k for row in cell.measure(table.workspace)] == [row.k for row in job.measure(own)]


def test_a_runs_best_and_last_weights_are_two_jobs_and_both_are_waited_for(visit):
    best, other = visit[0], replace(visit[0], checkpoint="last")
    here, there = multiprocessing.Pipe(duplex=False)
    for message in ((other, 0.5, ""), (best, 1.0, "best is done"), (other, 1.0, "last is done")):
        there.send(message)
    there.close()
    assert [text for *_, text in _messages(here, {best: 1.0, other: 1.0})] == ["", "best is done", "last is done"]


@pytest.mark.slow
def test_a_script_without_a_guard_is_a_sentence_and_starts_nothing_twice(tmp_path):
    given = vars(parameters(tmp_path, executor="ray"))
    (tmp_path / "script.py").write_text(DRIVE.replace('if __name__ == "__main__":', "if True:"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "script.py", json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "the process that speaks with Ray did not start; a script is run in it" in done.stderr


def test_a_folder_of_a_killed_job_goes_and_that_of_one_at_work_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch() as own:
        (tmp_path / "dynamic-at-killed").mkdir()
        (tmp_path / "dynamic-at-killed.lock").touch()
        with scratch() as other:
            assert {*tmp_path.iterdir()} == {each for one in (own, other) for each in (one, one.with_suffix(".lock"))}
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["partial/../../x", "/tmp/x/y", "claims/a/b", "runs/../x", "runs/a/../../b", "x"])
def test_a_file_whose_name_leads_out_of_the_store_is_refused(name, tmp_path):
    with pytest.raises((UserError, ValueError)):
        receive(Store(tmp_path / "outputs").prepared(), {name: b"x"})
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_machine_has_room_for_what_its_cpus_and_its_gpus_both_allow():
    machines = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    rooms = {share: room(machines, Parameters(gpus_per_run=share)) for share in (0.0, 0.1, 0.25, 0.3, 1.0)}
    assert rooms == {0.0: 10, 0.1: 8, 0.25: 4, 0.3: 3, 1.0: 1}
    assert room(machines, Parameters(cpus_per_run=4.0)) == 2


@pytest.fixture
def driver(visit):
    """A driver of two jobs on a cluster with room for one, whose streams are handed in."""
    exceptions = pytest.importorskip("ray").exceptions
    job, own, _ = visit
    machine = {"Alive": True, "Resources": {"CPU": 1.0}}
    ray = SimpleNamespace(
        exceptions=exceptions,
        get=lambda given: given(),
        put=lambda value: value,
        nodes=lambda: [machine],
        remote=lambda function: SimpleNamespace(options=lambda **chosen: SimpleNamespace(remote=lambda *all: iter(()))),
    )
    here, there = multiprocessing.Pipe(duplex=False)
    made = Driver(ray, there, [job, replace(job, checkpoint="last")], own, Parameters())
    yield made
    here.close()


def test_jobs_are_handed_out_in_their_order_and_no_more_than_there_is_room_for(driver):
    first, second = driver.waiting
    driver.submit()
    assert [job for job, _ in driver.running.values()] == [first]
    assert driver.waiting == [second]
    driver.submit()
    assert driver.waiting == [second]


def test_what_the_driver_waits_for_is_sent_once_as_long_as_it_stays_the_same(driver, monkeypatch):
    sent, job = [], driver.waiting[0]
    machines_go = partial(setattr, driver.ray, "nodes", lambda: [])
    seconds = iter([lambda: None, machines_go, lambda: None, driver.waiting.clear])
    monkeypatch.setattr(driver, "there", SimpleNamespace(send=sent.append))
    monkeypatch.setattr("lib.experiment.cluster.time", SimpleNamespace(sleep=lambda _: next(seconds)()))
    with driver.workspace.store.claim(job.run):  # as another process has it
        driver.run()
    assert sent == ["waiting for runs that another process makes", "no machine has room any more"]
    assert next(seconds, None) is None


def test_a_worker_that_is_lost_three_times_without_a_file_between_is_given_up(driver):
    def lost():
        raise driver.ray.exceptions.WorkerCrashedError

    def some_files():
        return 0.1, "", {"partial/abc.pt": b"x"}

    job = driver.waiting.pop(0)
    for sends in ([some_files, lost], [lost], [some_files, lost], [lost]):
        driver.running = {(stream := iter(sends)): (job, ExitStack())}
        for _ in sends:
            driver.take(stream)
        assert driver.waiting.pop(0) == job
    driver.running = {(stream := iter([lost])): (job, ExitStack())}
    with pytest.raises(UserError, match="PGD-AT, ResNet18 lost its worker 3 times without getting further"):
        driver.take(stream)


def test_a_claim_that_another_has_is_given_up_whole(tmp_path):
    one, other = Store(tmp_path).prepared(), Store(tmp_path)
    with one.claim("b"):
        assert other.claim_now("a", "b") is None
        with other.claim_now("a"):
            assert one.claim_now("a") is None
    with other.claim_now("a", "b"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:9", "auto", "nonsense"])
def test_without_a_cluster_a_sentence_names_its_address(address, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # no cluster of another's
    table = open_table("table4_dgad", parameters(tmp_path, executor="ray", address=address))
    with pytest.raises(UserError, match=f"the Ray cluster at {address} cannot be reached"):
        run(plan(table))


# with Ray, on two machines


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("inline")
    run(plan(open_table("table4_dgad", parameters(outputs, settings=LONG))))
    return outputs


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    made = Cluster()
    try:
        made.start_head()
        made.add("second")
        yield made
    finally:
        made.stop()


def drive(cluster, outputs, **more):
    """The process of a notebook that makes two rows on the cluster."""
    given = vars(parameters(outputs, executor="ray", address=cluster.address, **{"settings": LONG, **more}))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVE, json.dumps(given)], env=cluster.environment, cwd=ROOT, **pipes
    )


def trainings(outputs):
    """The digests of the runs that were handed out to be trained from their first epoch on."""
    return re.findall(r"\((\w+)\), to be trained, is handed out", (outputs / "cluster.log").read_text())


def begun(outputs):
    """Whether a checkpoint has come from a machine."""
    return lambda: any(outputs.glob("partial/*.pt"))


def ends_as_inline(driver, outputs, inline):
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert len(said.splitlines()) <= 10, said
    assert weights(outputs) == weights(inline) != {}
    assert flags(outputs) == flags(inline) != {}


@pytest.mark.slow
def test_two_notebooks_at_once_train_nothing_twice(cluster, tmp_path):
    small = parameters(tmp_path, executor="ray", address=cluster.address)
    given = {name: value for name, value in vars(small).items() if name not in ("rows", "students", "teachers")}
    (tmp_path / "given.yaml").write_text(json.dumps(given))
    notebooks = {
        "table4_dgad": ["-y", "{rows: [PGD-AT, DGAD], students: [ResNet18], teachers: [WideResNet-34-10]}"],
        "table7_dgad": ["-y", "{rows: []}"],
    }
    papermill = Path(sys.executable).with_name("papermill")
    command = [papermill, "--engine", "dynamic_at", "--no-progress-bar", "-f", tmp_path / "given.yaml"]
    running = [
        subprocess.Popen(
            [*command, *more, f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb"],
            env=cluster.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, more in notebooks.items()
    ]
    for process in running:
        said, _ = process.communicate(timeout=500)
        assert process.returncode == 0, said
        assert "Traceback" not in said, said
        assert "SIGTERM" not in said, said
    assert sorted(trainings(tmp_path)) == sorted(file.parent.name for file in tmp_path.glob(f"runs/*/{MANIFEST}"))
    assert resumed(tmp_path) == []
    assert {file.name for file in (tmp_path / "tables").glob("*.csv")} >= {f"{name}.csv" for name in notebooks}
    assert [*(tmp_path / "partial").iterdir()] == []


@pytest.mark.slow
def test_a_run_that_no_machine_has_room_for_is_refused_and_does_not_wait(cluster, tmp_path):
    driver = drive(cluster, tmp_path, gpus_per_run=1.0)
    said, _ = driver.communicate(timeout=120)
    assert "UserError: no machine at" in said
    assert "change gpus_per_run" in said


@pytest.mark.slow
def test_an_error_of_a_job_reaches_the_notebook_with_its_sentence_and_the_machines_name(cluster, tmp_path):
    schedules = {"default": {"epochs": 2, "batch_size": 16, "lr": 1e30}}
    said, _ = drive(cluster, tmp_path, settings=LONG | {"schedules": schedules}).communicate(timeout=200)
    assert re.search(r"UserError: on .*: training diverged in epoch 1", said), said


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_goes_on_from_its_checkpoint(cluster, inline, tmp_path):
    driver = drive(cluster, tmp_path)
    until(begun(tmp_path), 120)
    kill(*cluster.workers())
    ends_as_inline(driver, tmp_path, inline)
    assert resumed(tmp_path)


@pytest.mark.slow
def test_a_machine_that_is_lost_is_done_without(cluster, inline, tmp_path):
    driver = drive(cluster, tmp_path)
    until(begun(tmp_path), 120)
    until(lambda: cluster.workers("second"), 120)
    cluster.kill("second")
    try:
        ends_as_inline(driver, tmp_path, inline)
    finally:
        cluster.add("second")


@pytest.mark.slow
def test_a_driver_that_is_killed_and_started_again_ends_as_if_it_had_not_been(cluster, inline, tmp_path):
    driver = drive(cluster, tmp_path)
    until(begun(tmp_path), 120)
    driver.kill()
    driver.communicate()
    ends_as_inline(drive(cluster, tmp_path), tmp_path, inline)
    assert resumed(tmp_path)


@pytest.mark.slow
def test_when_the_head_is_lost_a_sentence_says_so_and_another_cluster_goes_on(inline, tmp_path):
    pytest.importorskip("ray")
    first = Cluster()
    try:
        first.start_head()
        driver = drive(first, tmp_path)
        until(begun(tmp_path), 120)
        first.kill()
        said, _ = driver.communicate(timeout=200)
        assert driver.returncode == 1
        assert "UserError: the connection to the Ray cluster was lost; what was finished is kept" in said
    finally:
        first.stop()
    second = Cluster()
    try:
        second.start_head()
        ends_as_inline(drive(second, tmp_path), tmp_path, inline)
        assert resumed(tmp_path)
    finally:
        second.stop()


@pytest.mark.slow
def test_the_slurm_script_starts_ray_on_every_machine_makes_a_table_and_stops_it(tmp_path):
    pytest.importorskip("ray")
    allocation, stubs = Cluster(), tmp_path / "stubs"
    if not allocation.namespaces:
        allocation.stop()
        pytest.skip("symmetric-run looks for another Ray among all processes, and other tests have theirs")
    stubs.mkdir()
    apart = "unshare --pid --fork --mount-proc"
    second = f'MACHINE={allocation.name}-second {apart} ip netns exec {allocation.name} "$@" &'
    does = {"scontrol": f"echo {allocation.host}", "srun": f'{second}\n{apart} "$@"\ncode=$?\nwait\nexit $code'}
    for name, script in does.items():
        (stubs / name).write_text(f"#!/bin/bash\n{script}\n")
        (stubs / name).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "all", "RAY_PORT": str(allocation.port)}
    slurm |= {"SLURM_NNODES": "2", "GPUS_PER_RUN": "0", "SLURM_CPUS_PER_TASK": "1"}
    path = f"{stubs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = allocation.environment | slurm | {"PATH": path, "MACHINE": f"{allocation.name}-first"}
    settings = {name: value for name, value in SETTINGS.items() if name != "title"}
    given = ["--outputs", tmp_path / "outputs", "--settings", json.dumps(settings)]
    command = ["bash", ROOT / "params" / "slurm" / "cluster.sbatch", *given, "table3_dgad"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not allocation.processes()
    finally:
        allocation.stop()
    outputs = tmp_path / "outputs"
    assert sorted(trainings(outputs)) == sorted({run for run, _ in weights(outputs)})
