"""What leads a reader: index.ipynb's items and their status, errata.ipynb's disagreements, and predictions scored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from itertools import zip_longest
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lib import ROOT
from lib.errors import UserError, check_type
from lib.experiment import kept
from lib.experiment.parameters import PARAMS, Parameters, read_yaml
from lib.experiment.planning import Result
from lib.experiment.progress import clock
from lib.experiment.table import open_table
from lib.experiment.table_file import read_table
from lib.methods import METHODS, Nets, NominalBatch, Piecewise
from lib.report.compare import kept_results
from lib.report.verdicts import in_words, printed_lead

Entry = Mapping[str, Any]


def overview(parameters: Parameters) -> pd.DataFrame:
    """A line per notebook of params/costs.yaml: the claim in its words, its cost, and whether it holds, kept and here.

    Nothing is trained. `kept` is of the kept evidence, the other status of the run store below `outputs` at the scale.
    """
    items, records = read_yaml(PARAMS / "claims.yaml")["items"], {}
    for name, cost in read_yaml(PARAMS / "costs.yaml").items():
        costs = [f"{scale}: {clock(cost[scale])}" for scale in ("quick", "again") if scale in cost]
        costs += [f"{scale}: {cost[scale]:g} GPU-h" for scale in ("gpu", "paper") if scale in cost]
        record = {"item": cost["item"], "claim": claim_of(name), "cost": "\n".join(costs)}
        pair, results = items.get(name), results_of(name, parameters) if name in items else ([], [])
        record["judged by"] = f"{pair['better']} over {pair['than']}" if pair else ""
        status = [in_words(each, pair["better"], pair["than"], pair["columns"]) if pair else "" for each in results]
        records[name] = record | dict(zip(("kept", f"here, scale {parameters.scale}"), status, strict=True))
    return pd.DataFrame(records).T.rename_axis("notebook")


def linked(frame: pd.DataFrame) -> str:
    """The same as HTML in four columns; an item opens its notebook."""
    here, lines = frame.columns[-1], []
    for name, line in frame.map(escape).iterrows():
        item = f'<a href="{name}.ipynb">{line["item"]}</a>\n<code>make {name}</code>'
        status = f"<b>{line['judged by']}</b>\nkept: {line['kept']}\n{here}: {line[here]}"
        lines.append([item, line["claim"], line["cost"], status if line["judged by"] else ""])
    shown = pd.DataFrame(lines, columns=["item", "claim", "cost", "does it hold?"]).style.hide(axis="index")
    look = [("text-align", "left"), ("vertical-align", "top"), ("min-width", "9em"), ("white-space", "pre-line")]
    return str(shown.set_uuid("items").set_table_styles([{"selector": "th, td", "props": look}]).to_html())


def claim_of(name: str) -> str:
    """What a notebook's first cell gives as the paper's claim, its symbols as text; "" where it states none."""
    first = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"][0]
    claim = "".join(first["source"]).partition("**The claim.** ")[2].partition("\n")[0].partition(" Here ")[0]
    for tex, text in {"$": "", r"\alpha": "α", r"\beta": "β", "L_": "L"}.items():
        claim = claim.replace(tex, text)
    return claim


def results_of(name: str, parameters: Parameters, **only: Any) -> tuple[list[Result], list[Result]]:
    """The kept results of a table, of `only` these rows, and those in the run store; none where there is no data."""
    try:
        table = open_table(name, replace(parameters, **only))
    except UserError:
        return kept_results(open_table(name, Parameters(outputs=parameters.outputs, **only))), []
    return kept_results(table), kept.made(table, parameters.scale)


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
    lead, words = entry["lead"], []
    at = {key: lead[key] for key in ("student", "teacher") if key in lead}
    for column, claim in zip_longest(lead["columns"], lead.get("stated", [])):
        text = f"{column} {printed_lead(lead['table'], lead['rows'], column, **at):+.2f}"
        words.append(text if claim is None else f"{text} (the text: {claim:g})")
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
    rows, words = entry["rows"], "not run"
    for found in results_of(rows["table"], parameters, rows=[rows["ours"], rows["other"]]):
        columns = {one.column.name: "" for result in found for one in result.accuracies}
        shown = [name for name in columns if name in ("Clean", "AA")]
        words = in_words(found, rows["other"], rows["ours"], shown) if words == "not run" else words
    return words


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
    file, given = read_table(entry["rows"]["table"]), []
    known = {row["row"]: row for row in file.rows + file.more_rows}
    rows = [known[entry["rows"][side]] for side in ("ours", "other")]
    for row in rows:
        weights = row.get("weights", {})
        own = next((each for each in weights.values() if isinstance(each, dict)), weights)  # the first student's
        given.append((row["method"], dict(METHODS[row["method"]].weights) | own))
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


def guessed(guess: float, measured: float, what: str, step: float = 1.0) -> str:
    """How far the notebook's parameter `guess` was from `measured`, both in `what`; `step` is a good guess's error.

    Raises UserError where `guess` is no number.
    """
    check_type(guess, float, "parameter guess")
    off = abs(guess - measured)
    words = "well guessed" if off <= step else "close" if off <= 3 * step else "a surprise"
    side = "" if off <= step else ", too high" if guess > measured else ", too low"
    return f"Your guess: {guess:g}. Measured: {measured:.3g} {what}. Off by {off:.3g}{side}: {words}."
