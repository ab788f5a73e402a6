"""Lets `papermill notebooks/<name>.ipynb` stand alone in a terminal: the copy goes to outputs/executed/<name>.ipynb.

papermill 2.x demands an output path there. It loads its plugins, of which this is one (pyproject.toml), before it reads
the command line; so a missing output path can still be added. That is a workaround and no feature of papermill's, it
acts on this checkout's notebooks alone, and never where standard output is piped (papermill then writes to it).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lib import ROOT


class Engine:
    """What the entry point names; papermill registers it and never calls it."""


def missing_output(arguments: Sequence[str], root: Path = ROOT) -> Path | None:
    """Where the executed copy goes if `arguments` name one of `root`'s notebooks and no output path; else None."""
    paths = [argument for argument in arguments if argument == "-" or argument.endswith(".ipynb")]
    if len(paths) != 1 or {"--help", "--version"} & set(arguments):
        return None
    notebook = Path(paths[0]).resolve()
    return root / "outputs" / "executed" / notebook.name if notebook.parent == (root / "notebooks").resolve() else None


def complete_command_line() -> None:
    """Add the missing output path to sys.argv where this process is papermill in a terminal."""
    if Path(sys.argv[0]).name != "papermill" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    if output := missing_output(sys.argv[1:]):
        output.parent.mkdir(parents=True, exist_ok=True)
        print(f"writing the executed notebook to {output}", file=sys.stderr)
        sys.argv.append(str(output))


complete_command_line()
