"""Lets `papermill notebooks/<name>.ipynb` stand alone in a terminal: the copy goes to outputs/executed/<name>.ipynb.

papermill 2.x demands an output path there. It loads its plugins, of which this is one (pyproject.toml), before it reads
the command line; so a missing output path can still be added. That is a workaround and no feature of papermill's, it
acts on this checkout's notebooks alone, and never where standard output is piped (papermill then writes to it).

`--engine dynamic_at`, which `make` adds, is papermill's own engine with the kernel behind a socket in a folder of the
user's: on a shared machine others can listen to the usual TCP.

Ctrl-C ends papermill at once, as SIGTERM does, and with it the kernel, which looks every second whether its parent is
there: papermill's own way is to ask the kernel, which does not answer while a cell runs.
"""

import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from traitlets.config import Config

from lib import ROOT


@cache
def __getattr__(name: str) -> Any:
    """Engine: papermill's own, over IPC; made when it is asked for, since papermill loads this module as it starts."""
    if name != "Engine":
        raise AttributeError(name)
    from papermill.engines import NBClientEngine

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, *arguments: Any, **given: Any) -> Any:
            with tempfile.TemporaryDirectory() as own:  # which nobody else can open; in one folder two kernels meet
                over_ipc = Config(KernelManager={"transport": "ipc", "ip": f"{own}/kernel"})
                return super().execute_managed_notebook(*arguments, **given, config=over_ipc)

    return Engine


def missing_output(arguments: Sequence[str], root: Path = ROOT) -> Path | None:
    """Where the executed copy goes if `arguments` name one of `root`'s notebooks and no output path; else None."""
    paths = [argument for argument in arguments if argument == "-" or argument.endswith(".ipynb")]
    notebook = Path(paths[0] if len(paths) == 1 else "/").resolve()
    wanted = notebook.parent == (root / "notebooks").resolve() and not {"--help", "--version"} & set(arguments)
    return root / "outputs" / "executed" / notebook.name if wanted else None


if Path(sys.argv[0]).name == "papermill":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
if Path(sys.argv[0]).name == "papermill" and in_terminal and (output := missing_output(sys.argv[1:])):
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"writing the executed notebook to {output}", file=sys.stderr)
    sys.argv.append(str(output))
