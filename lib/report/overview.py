"""Every paper item with its claim, its notebook, what it costs and whether the claim holds: what index.ipynb shows."""

import json
from dataclasses import replace
from html import escape
from typing import Any

import pandas as pd

from lib import ROOT
from lib.errors import UserError
from lib.experiment import kept
from lib.experiment.parameters import PARAMS, Parameters, read_yaml
from lib.experiment.planning import Result
from lib.experiment.progress import clock
from lib.experiment.table import Table, open_table
from lib.report.verdicts import in_words


def overview(parameters: Parameters) -> pd.DataFrame:
    """A line per notebook of params/costs.yaml: the claim in its words, costs, and its status, kept and here.

    Nothing is trained. `kept` is of the kept evidence, the other status of the run store below `outputs` at the scale.
    """
    items, here = read_yaml(PARAMS / "claims.yaml")["items"], f"here, scale {parameters.scale}"
    records = {}
    for name, cost in read_yaml(PARAMS / "costs.yaml").items():
        record = {"paper item": cost["item"], "claim": claim_of(name), "command": f"make {name}"}
        record |= {scale: clock(cost[scale]) if scale in cost else "" for scale in ("quick", "again")}
        record |= {f"{scale}, GPU-hours": f"{cost[scale]:g}" if scale in cost else "" for scale in ("gpu", "paper")}
        results = results_of(name, parameters) if name in items else ([], [])
        pair = items.get(name)
        status = [pair and in_words(each, pair["better"], pair["than"], pair["columns"]) for each in results]
        records[name] = record | {"kept": status[0] or "", here: status[1] or ""}
    return pd.DataFrame(records).T.rename_axis("notebook")


def linked(frame: pd.DataFrame) -> str:
    """The same as HTML: a notebook's name opens it."""
    shown = frame.map(escape).set_axis([f'<a href="{name}.ipynb">{name}</a>' for name in frame.index])
    return str(shown.rename_axis("notebook").to_html(escape=False))


def claim_of(name: str) -> str:
    """What a notebook's first cell gives as the paper's claim; "" where it states none."""
    first = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"][0]
    return "".join(first["source"]).partition("**The claim.** ")[2].partition("\n")[0].partition(" Here ")[0]


def kept_results(table: Table) -> list[Result]:
    """The kept accuracies of the table's rows; none where there is no evidence that can be shown."""
    try:
        return kept.results(table)
    except UserError:
        return []


def results_of(name: str, parameters: Parameters, **only: Any) -> tuple[list[Result], list[Result]]:
    """The kept results of a table, of `only` these rows, and those in the run store; none where there is no data."""
    try:
        table = open_table(name, replace(parameters, **only))
    except UserError:
        return kept_results(open_table(name, Parameters(outputs=parameters.outputs, **only))), []
    return kept_results(table), kept.made(table, parameters.scale)
