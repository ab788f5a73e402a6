"""Lets `papermill notebooks/<name>.ipynb` stand alone in a terminal: the copy goes to outputs/executed/<name>.ipynb.

papermill 2.x requires an output path there, and loads its plugins, of which this is one, before it reads the command
line. The workaround acts on this checkout's notebooks alone, and never where standard output is piped.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lib import ROOT

# papermill's options that take two values and one; a test compares them with papermill's own list
TWO = ("-p", "--parameters", "-r", "--parameters_raw")
ONE = (
    *("-f", "--parameters_file", "-y", "--parameters_yaml", "-b", "--parameters_base64"),
    *("--engine", "--autosave-cell-every", "-k", "--kernel", "-l", "--language", "--cwd"),
    *("--stdout-file", "--stderr-file", "--log-level", "--start-timeout", "--start_timeout"),
    *("--execution-timeout",),
)


class Engine:
    """What the entry point names; papermill registers it and never calls it."""


def missing_output(arguments: Sequence[str], root: Path = ROOT) -> Path | None:
    """Where the executed copy goes if `arguments` name one of `root`'s notebooks and no output path; else None."""
    positional, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in TWO or argument in ONE:
            del rest[: 2 if argument in TWO else 1]
        elif argument == "-" or not argument.startswith("-"):
            positional.append(argument)
    if len(positional) != 1 or {"--help", "--version"} & set(arguments):
        return None
    notebook = Path(positional[0]).resolve()
    own = notebook.suffix == ".ipynb" and notebook.parent == (root / "notebooks").resolve()
    return root / "outputs" / "executed" / notebook.name if own else None


def complete_command_line() -> None:
    """Add the missing output path to sys.argv where this process is papermill in a terminal."""
    if Path(sys.argv[0]).name != "papermill" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    if output := missing_output(sys.argv[1:]):
        output.parent.mkdir(parents=True, exist_ok=True)
        print(f"writing the executed notebook to {output}", file=sys.stderr)
        sys.argv.append(str(output))


complete_command_line()
