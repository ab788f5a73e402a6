import contextlib
import os
import pty
import sys
from importlib.metadata import entry_points

import pytest
from papermill.engines import NBClientEngine

from lib import ROOT
from lib.experiment.papermill_default_output import missing_output


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["notebooks/table4_dgad.ipynb"], "table4_dgad.ipynb"),
        (["notebooks/table4_dgad.ipynb", "-p", "scale", "gpu", "--log-output"], "table4_dgad.ipynb"),
        (["-f", "params/paper.yaml", "notebooks/table4_dgad.ipynb"], "table4_dgad.ipynb"),
        (["notebooks/table4_dgad.ipynb", "out.ipynb"], None),
        (["notebooks/table4_dgad.ipynb", "-"], None),
        (["notebooks/table4_dgad.ipynb", "--help"], None),
        (["elsewhere/table4_dgad.ipynb"], None),
        ([], None),
    ],
)
def test_only_this_checkouts_notebooks_get_a_default_output(monkeypatch, arguments, output):
    monkeypatch.chdir(ROOT)
    expected = ROOT / "outputs" / "executed" / output if output else None
    assert missing_output(arguments) == expected


IN_A_COPY = """
import pathlib, sys, lib
lib.ROOT = pathlib.Path.cwd()
sys.argv = ["papermill", "notebooks/table4_dgad.ipynb", "--prepare-only"]
from papermill.__main__ import papermill
papermill()
"""


@pytest.mark.slow
def test_the_bare_papermill_command_works_in_a_terminal(tmp_path):
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "outputs").mkdir()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", IN_A_COPY])
    said = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(terminal, 1024):
            said += part
    _, status = os.waitpid(pid, 0)
    assert status == 0, said.decode()
    assert b"outputs/executed/table4_dgad.ipynb" in said
    assert (tmp_path / "outputs" / "executed" / "table4_dgad.ipynb").exists()


def test_papermill_loads_the_default_output_as_a_plugin():
    (plugin,) = [p for p in entry_points(group="papermill.engine") if p.name == "dynamic_at"]
    assert issubclass(plugin.load(), NBClientEngine)
