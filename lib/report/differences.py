"""What one row adds to another, and whether that is more than noise; what one network rescues of another's errors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.evaluate import Accuracy, Paired, WorstCase, paired, wilson
from lib.experiment.table import Table
from lib.report.render import Comparison


def difference(kind: str, one: pd.Series, other: pd.Series) -> Paired | None:
    """The reported or measured difference of two lines of a comparison's frame; None where a number is missing.

    Measured rows share their images, so the test is paired (McNemar's, or with several seeds one that counts their
    spread). Reported numbers p come from independent sets of n images: error^2 = sum p (100 - p) / n, a z-test.
    """
    if pd.isna(one[kind]) or pd.isna(other[kind]):
        return None
    if kind == "measured":
        return paired(one["flags"], other["flags"])
    p, q, n, m = one["reported"], other["reported"], one["reported_n"], other["reported_n"]
    error = math.sqrt(p * (100 - p) / n + q * (100 - q) / m)
    return Paired(min(n, m), p - q, error, math.erfc(abs(p - q) / error / math.sqrt(2)) if error else float(p == q))


def mean_of(seeds: Sequence[Accuracy | WorstCase]) -> dict[str, Any]:
    """The mean of the seeds, its interval and their spread; the images that they share count once."""
    if not seeds:
        return dict.fromkeys(("measured", "low", "high", "sd")) | {"k": 0, "n": 0, "seeds": 0, "flags": []}
    percents, k, n = pd.Series([one.percent for one in seeds]), round(sum(o.k for o in seeds) / len(seeds)), seeds[0].n
    low, high = wilson(k, n)
    number = {"measured": percents.mean(), "k": k, "n": n, "low": low, "high": high, "sd": percents.std()}
    return number | {"seeds": len(seeds), "flags": [one.flags for one in seeds]}


def marks(block: pd.DataFrame, kind: str) -> pd.Series:
    """best for each line of a column that cannot be told from the leader; untold where these are more than half."""
    found, known = pd.Series("", index=block.index), block.dropna(subset=kind)
    if len(known) > 1:
        leader = known.loc[known[kind].astype(float).idxmax()]
        leads = [difference(kind, leader, line) for _, line in known.iterrows()]
        shared = known.index[[lead is not None and not lead.significant for lead in leads]]
        found[shared] = "best" if 2 * len(shared) <= len(known) else "untold"
    return found


def versus(comparison: Comparison, pairs: Sequence[tuple[str, str]], kind: str = "") -> pd.DataFrame:
    """What each row adds to another, per block and column, with 1.96 standard errors: reported, measured, or both.

    A block is a student, and a teacher where there are several; a pair is left out of a block without one of its rows.
    """
    columns, records = list(comparison.headings), []
    block_of = ["student", "teacher"] if comparison.frame["teacher"].nunique() > 1 else ["student"]
    for key, block in comparison.frame.groupby(block_of, sort=False):
        cells = {(line["row"], line["column"]): line for _, line in block.iterrows()}
        for row, other in (pair for pair in pairs if {*pair} <= {*block["row"]}):
            for which in [kind] if kind else ["reported", "measured"]:
                leads = [difference(which, cells[row, column], cells[other, column]) for column in columns]
                records.append([*key, f"{row} over {other}", which, *map(_in_words, leads)])
    levels = [*block_of, "rows", "kind"]
    frame = pd.DataFrame(records, columns=[*levels, *columns]).set_index(levels).rename_axis([*block_of, "", ""])
    return frame.droplevel(-1) if kind else frame


def _in_words(lead: Paired | None) -> str:
    if lead is None:
        return "–"
    return f"{lead.difference:+.2f} ± {1.96 * lead.error:.1f}" + ("" if lead.significant else " (noise)")


def gains(table: Table, comparison: Comparison) -> pd.DataFrame:
    """DGAD's lead over the best other row, per student, teacher and column: printed, recomputed, and measured here."""
    records, blocks = [], comparison.frame.groupby(["student", "teacher", "column"], sort=False)
    for (student, teacher, column), block in blocks:
        printed = table.reported.get(student, {}).get("delta_printed")
        printed = printed.get(teacher) if isinstance(printed, dict) else printed
        record = {"student": student, "teacher": teacher, "column": column}
        record["printed lead"] = printed and printed[table.file.columns.index(column)]
        for kind in ("reported", "measured"):
            values = block.set_index("row")[kind].astype(float).dropna()
            others = values.drop("DGAD", errors="ignore")
            known = "DGAD" in values and len(others) > 0
            record[f"{kind} lead"] = round(values["DGAD"] - others.max(), 2) if known else None
            record[f"over ({kind})"] = others.idxmax() if known else ""
        records.append(record)
    return pd.DataFrame(records)


def rescued(answers: Mapping[str, Tensor], y: Tensor, k: int = 3) -> tuple[list[int], pd.DataFrame]:
    """k images that the first two of three networks have right and the third wrong; how often every such case occurs.

    `answers` are name -> logits (N, C), y (N,) the true classes. The images are those, of all where there is none, that
    the second network believes most strongly over the third.
    """
    first, second, third = right = [logits.argmax(1) == y for logits in answers.values()]
    wanted = first & second & ~third
    _, belief, other = (logits.softmax(1).gather(1, y[:, None]).squeeze(1) for logits in answers.values())
    lead = (belief - other).masked_fill(~wanted & wanted.any(), -torch.inf)
    images = lead.topk(min(k, int(wanted.sum()) or 1)).indices.tolist()
    cases = pd.DataFrame(dict(zip(answers, np.where(torch.stack(right), "right", "wrong"), strict=True)))
    return images, cases.value_counts().rename("images").reset_index()
