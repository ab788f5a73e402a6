"""Where papers, their tables and their code disagree, with a number for the effect: what errata.ipynb shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lib.experiment.parameters import PARAMS, Parameters, read_yaml
from lib.experiment.table_file import read_table
from lib.methods import METHODS, Nets, NominalBatch, Piecewise
from lib.report.overview import results_of
from lib.report.verdicts import in_words, printed_lead

Entry = Mapping[str, Any]


def errata() -> list[dict[str, Any]]:
    """All entries of params/errata.yaml."""
    return list(read_yaml(PARAMS / "errata.yaml")["errata"])


def computed(entry: Entry) -> str:
    """The entry's effect on printed numbers: leads recomputed, beside what the text says; "" where it is on none."""
    if "settings" in entry:
        one, other = entry["settings"]
        ratio = f", {other / one:.3g} times as much" if not 0.85 < other / one < 1.15 else f", {other - one:+.3g}"
        return f"{one:g} and {other:g}{ratio}"
    if "lead" not in entry:
        return ""
    lead = entry["lead"]
    said = lead.get("said", [None])
    words = []
    for index, column in enumerate(lead["columns"]):
        at = {key: lead[key] for key in ("student", "teacher") if key in lead}
        text = f"{column} {printed_lead(lead['table'], lead['rows'], column, **at):+.2f}"
        told = said[index] if isinstance(said, list) and index < len(said) else said
        words.append(text + (f" (the text: {told:g})" if isinstance(told, float) else ""))
    return f"{' less '.join(lead['rows'])}: {', '.join(words)}"


def command(entry: Entry) -> str:
    """What runs both forms side by side; "" where the other form is no row."""
    if "rows" not in entry:
        return ""
    rows = entry["rows"]
    return f"""make {rows["table"]} ARGS='-y "rows: [\\"{rows["ours"]}\\", \\"{rows["other"]}\\"]"'"""


def measured(entry: Entry, parameters: Parameters) -> str:
    """What the other form measures more than ours, where both are kept or in the run store; nothing is trained."""
    if "rows" not in entry:
        return ""
    rows = entry["rows"]
    said = "not run"
    for found in results_of(rows["table"], parameters, rows=[rows["ours"], rows["other"]]):
        columns = {one.column.name: "" for result in found for one in result.accuracies}
        shown = [name for name in columns if name in ("Clean", "AA")]
        said = in_words(found, rows["other"], rows["ours"], shown) if said == "not run" else said
    return said


def steps(entries: Sequence[Entry], nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> pd.DataFrame:
    """How two forms' first steps differ on one batch: the cosine of the student's gradients, and their lengths' ratio.

    Only entries whose forms have losses of their own and of the same weights that a batch decides are in it.
    """
    records = {}
    for entry in entries:
        if losses := _losses(entry):
            one, other = (_gradient(*loss, nets, x, x_adv, y) for loss in losses)
            cosine = torch.nn.functional.cosine_similarity(one, other, dim=0).item()
            records[entry["paper"], entry["where"]] = {"cosine": cosine, "length": (other.norm() / one.norm()).item()}
    return pd.DataFrame(records).T


def _losses(entry: Entry) -> list[tuple[str, dict[str, Any]]]:
    """The two forms' methods and weights, where only the loss differs."""
    if "rows" not in entry:
        return []
    file = read_table(entry["rows"]["table"])
    known = {row["row"]: row for row in file.rows + file.more_rows}
    rows = [known[entry["rows"][side]] for side in ("ours", "other")]
    given = []
    for row in rows:
        own = row.get("weights", {})
        first = next(iter(own.values()), 0)
        given.append(
            (row["method"], dict(METHODS[row["method"]].weights) | (first if isinstance(first, dict) else own))
        )
    plain = not any({"strategy", "awp"} & row.keys() for row in rows)
    numbers = not any(isinstance(weight, Piecewise) for _, weights in given for weight in weights.values())
    same = METHODS[given[0][0]].loss == METHODS[given[1][0]].loss and given[0][1] == given[1][1]
    return given if plain and numbers and not same else []


def _gradient(method: str, weights: Mapping[str, Any], nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    full = {name: float(len(y)) if isinstance(weight, NominalBatch) else weight for name, weight in weights.items()}
    terms = METHODS[method].loss(nets, x, x_adv, y, **full)
    loss = torch.stack([term.mean() for term in terms.values()]).sum()
    student = [p for p in nets.student.parameters() if p.requires_grad]  # type: ignore[attr-defined]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, student)])
