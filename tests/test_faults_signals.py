"""Ctrl-C, a scheduler's SIGTERM and JupyterLab's interrupt: everything ends, nothing is lost, a new call goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from lib import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it looks into /proc")]
PAPERMILL = Path(sys.executable).with_name("papermill")
WITHIN = 5  # seconds

CELL = """
import sys; sys.path.insert(0, {tests!r})
import os, pathlib, hashlib
from small import parameters
from lib.experiment import cost, open_table, plan, run
pathlib.Path({outputs!r}, "pid").write_text(str(os.getpid()))
cost.of = lambda *_: [1.0, 0.0]
long = {{"schedules": {{"default": {{"epochs": {epochs}, "batch_size": 8}}}}}}
def made(outputs):
    table = open_table("table4_dgad", parameters(outputs, rows=["PGD-AT"], workers={workers}, settings=long))
    run(plan(table))
    weights = sorted(table.workspace.store.runs.glob("*/last.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights]
"""


def cell(outputs: Path, workers: int, epochs: int = 5000) -> str:
    return CELL.format(tests=str(ROOT / "tests"), outputs=str(outputs), workers=workers, epochs=epochs)


def until(condition, seconds: float, process=None):
    """What condition() gives, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process is None or process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
    return found


def of_session(number: int) -> list[int]:
    """The living processes of a session, which is what a kernel and its workers are."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        found += [int(folder.name)] if int(session) == number and state != "Z" else []
    return found


@pytest.fixture
def checkout(tmp_path):
    """A folder with this Makefile, a notebook of one long table by two workers, and this environment's papermill."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    code = cell(tmp_path, 2) + f"made({str(tmp_path / 'store')!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(notebook, tmp_path / "notebooks" / "long.ipynb")
    (tmp_path / ".venv" / "bin" / "papermill").write_text(f'#!/bin/sh\nexec "{PAPERMILL}" "$@"\n')
    (tmp_path / ".venv" / "bin" / "papermill").chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()
    return tmp_path


ENDS = {
    "Ctrl-C in papermill's terminal": ([str(PAPERMILL), "notebooks/long.ipynb", "out.ipynb"], os.killpg, signal.SIGINT),
    "SIGTERM to papermill": ([str(PAPERMILL), "notebooks/long.ipynb", "out.ipynb"], os.kill, signal.SIGTERM),
    "Ctrl-C in make's terminal": (["make", "long"], os.killpg, signal.SIGINT),
    "SIGTERM to make": (["make", "long"], os.kill, signal.SIGTERM),
}


@pytest.mark.parametrize("end", ENDS)
def test_whatever_ends_papermill_or_make_ends_the_kernel_and_its_workers_within_five_seconds(checkout, end):
    command, send, number = ENDS[end]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"PYTHONPATH": str(ROOT)}
    with (checkout / "said").open("w") as said:
        options = {"cwd": checkout, "env": environment, "stdout": said, "stderr": said, "start_new_session": True}
        process = subprocess.Popen(command, **options)
        try:
            until(lambda: list((checkout / "store" / "partial").glob("*.pt")), 400, process)
            session = int((checkout / "pid").read_text())
            assert len(of_session(session)) >= 3, "the kernel and two workers"
            send(process.pid, number)
            begun = time.monotonic()
            process.wait(WITHIN)
            until(lambda: not of_session(session) and not of_session(process.pid), WITHIN)
            assert time.monotonic() - begun < WITHIN
        finally:
            for pid in {*of_session(process.pid), *(of_session(session) if (checkout / "pid").exists() else ())}:
                os.kill(pid, signal.SIGKILL)
    assert process.returncode in (-number, 2), "the signal's, or make's own for a rule that did not end well"


STARTING = """
import concurrent.futures, multiprocessing, time, lib.files
executor = concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), lib.files.begin_worker)
print([executor.submit(time.sleep, 60) for _ in range(2)], flush=True)
time.sleep(60)
"""


def test_workers_that_still_import_leave_with_a_parent_that_was_killed(tmp_path):
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path)!r} + '/begun', 'w'), __import__('time').sleep(60)")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", STARTING], **options)
    until((tmp_path / "begun").exists, 60, process)
    process.kill()
    process.wait()
    until(lambda: not of_session(process.pid), WITHIN)


SCRIPT = "\nif __name__ == '__main__': print(made({outputs!r}))"


def script(outputs: Path) -> subprocess.Popen:
    """A process that makes the table, and prints its networks' digests."""
    code = cell(outputs.parent, 1, epochs=6) + SCRIPT.format(outputs=str(outputs))
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_after_sigterm_the_last_epoch_stands_the_exit_code_is_143_and_a_new_call_ends_in_the_same_bits(tmp_path):
    process = script(tmp_path / "one")
    until(lambda: list((tmp_path / "one" / "partial").glob("*.pt")), 300, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(WITHIN) == -signal.SIGTERM  # which a shell and a scheduler call 128 + 15
    again, whole = script(tmp_path / "one"), script(tmp_path / "other")
    digests = [each.communicate(timeout=400)[0].splitlines()[-1] for each in (again, whole)]
    assert digests[0] == digests[1]
    assert "[" in digests[0]
    assert not list((tmp_path / "one" / "partial").iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_after_jupyterlabs_interrupt_the_cell_again_in_the_same_kernel_ends_in_the_same_bits(tmp_path, workers):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    manager, client = start_new_kernel(env=environment, cwd=str(ROOT))
    try:
        said: list[str] = []

        def ask(code: str) -> dict:
            reply = client.execute_interactive(code, timeout=400, output_hook=lambda m: said.append(str(m["content"])))
            return reply["content"]

        assert ask(cell(tmp_path, workers, epochs=6))["status"] == "ok", said
        asked = client.execute(f"one = made({str(tmp_path / 'one')!r})", stop_on_error=False)  # what is asked next runs
        until(lambda: list((tmp_path / "one" / "partial").glob("*.pt")), 300)
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked:
            pass
        assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "KeyboardInterrupt")
        assert ask(f"one = made({str(tmp_path / 'one')!r})")["status"] == "ok", said
        assert ask(f"assert one == made({str(tmp_path / 'other')!r})")["status"] == "ok", said
        assert not list((tmp_path / "one" / "partial").iterdir())
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
