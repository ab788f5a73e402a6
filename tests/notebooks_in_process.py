"""Notebooks run as papermill runs them, but in this process: no kernel is started and torch is not imported again."""

import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from lib import ROOT

UNSEEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""The warnings that Python shows to nobody but a test."""


class InProcess(Engine):
    """Papermill's engine that hands each cell to an IPython shell of this process, in a namespace of its own."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
        plt.switch_backend("agg")
        InteractiveShell.clear_instance()
        shell = InteractiveShell.instance(user_module=types.ModuleType("notebook"), history_load_length=0)
        shell.history_manager.enabled = False
        select_figure_formats(shell, {"png"})
        try:
            for index, cell in enumerate(nb_man.nb.cells):
                nb_man.cell_start(cell, index)
                if cell.cell_type == "code" and cell.source and not cls.run(shell, cell):
                    nb_man.cell_exception(cell, index)
                    return
                nb_man.cell_complete(cell, index)
        finally:
            plt.close("all")
            InteractiveShell.clear_instance()

    @staticmethod
    def run(shell: InteractiveShell, cell: Any) -> bool:
        """Run one cell, keep what it printed, warned of, displayed or raised as its outputs; whether it went well."""
        with capture_output() as captured, warnings.catch_warnings():
            warnings.resetwarnings()
            for kind in UNSEEN:
                warnings.simplefilter("ignore", kind)
            warnings._showwarnmsg_impl = lambda message: print(
                message, file=sys.stderr
            )  # pytest records them elsewhere
            shell.display_trap.hook = sys.displayhook  # a cell's last value is displayed, not printed
            done = shell.run_cell(cell.source, store_history=True)
        cell.execution_count = shell.execution_count - 1
        for name in ("stdout", "stderr"):
            if text := getattr(captured, name):
                cell.outputs.append(nbformat.v4.new_output("stream", name=name, text=text))
        cell.outputs += [nbformat.v4.new_output("display_data", data=out.data) for out in captured.outputs]
        if error := done.error_before_exec or done.error_in_exec:
            shown = getattr(error, "_render_traceback_", lambda: [repr(error)])()
            names = {"ename": type(error).__name__, "evalue": str(error), "traceback": shown}
            cell.outputs.append(nbformat.v4.new_output("error", **names))
        return done.success


papermill_engines.register("in_process", InProcess)


def code_cells(path: Path) -> list[Any]:
    """The code cells of a notebook file."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def execute(name: str, folder: Path, /, **given: Any) -> Any:
    """The executed copy of notebooks/<name>.ipynb with these parameters, on the CPU, its outputs below `folder`.

    Nothing may be written to stderr, and no cell of a table may be cut off.

    Raises:
        PapermillExecutionError: a cell raised.
    """
    path = ROOT / "notebooks" / f"{name}.ipynb"
    small = {"outputs": str(folder), "device": "cpu", "workers": 1}
    given = {key: small[key] for key in small if key in papermill.inspect_notebook(path)} | given
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        copy = papermill.execute_notebook(path, None, given, engine_name="in_process", progress_bar=False)
    outs = [out for cell in copy.cells if cell.cell_type == "code" for out in cell.outputs]
    said = [out.text for out in outs if out.get("name") == "stderr"]
    assert not said, said
    html = "\n".join(out.get("data", {}).get("text/html", "") for out in outs)
    assert not (cut := re.findall(r".*\.\.\.</td>", html)), cut
    return copy


def displayed(copy: Any) -> str:
    """All that an executed notebook displayed, as text."""
    return "".join(str(out.get("data", "")) for cell in copy.cells for out in cell.get("outputs", []))


def refusal(name: str, folder: Path, /, **given: Any) -> str:
    """The one sentence with which a UserError ended the notebook."""
    with pytest.raises(PapermillExecutionError) as error:
        execute(name, folder, **given)
    assert error.value.ename == "UserError"
    assert error.value.traceback == [f"UserError: {error.value.evalue}"]
    return error.value.evalue
