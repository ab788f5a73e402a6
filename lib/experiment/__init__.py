"""From a table's name to its results: open_table, plan, run. Loaded on first use: papermill's plugin lives here too."""

from importlib import import_module
from typing import Any

_HOME = {"open_table": "table", "Parameters": "parameters", "validate": "parameters"}
_HOME |= dict.fromkeys(("Plan", "Result", "plan", "run"), "planning")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(import_module(f"lib.experiment.{_HOME[name]}"), name)
