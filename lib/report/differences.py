"""What one row adds to another, and whether that is more than noise."""

import math
from collections.abc import Iterable

import pandas as pd

from lib.evaluate import paired
from lib.experiment.table import Table
from lib.report.render import Comparison


def gains(table: Table, comparison: Comparison, row: str = "DGAD") -> pd.DataFrame:
    """`row`'s lead over the best other row, per student, teacher and column: printed, recomputed, and measured here."""
    records = []
    for key, block in comparison.frame.groupby(["student", "teacher", "column"], sort=False):
        own, others = block[block.row == row], block[block.row != row]
        printed = table.reported.get(key[0], {}).get("delta_printed")
        printed = printed.get(key[1]) if isinstance(printed, dict) else printed
        record = dict(zip(("student", "teacher", "column"), key, strict=True))
        record["printed lead"] = printed and printed[table.file.columns.index(key[2])]
        for kind in ("reported", "measured"):
            known = not own.empty and own[kind].notna().all() and others[kind].notna().any()
            best = others.loc[others[kind].astype(float).idxmax()] if known else None
            record[f"{kind} lead"] = None if best is None else round(float(own[kind].iloc[0]) - float(best[kind]), 2)
            record[f"over ({kind})"] = "" if best is None else best.row
        records.append(record)
    return pd.DataFrame(records)


def versus(comparison: Comparison, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """What each row adds to another, per block and column, as reported and as measured, with 1.96 standard errors.

    A block is a student, and a teacher where there are several.

    Measured rows share their images, so their error is that of the pairs, and the difference is called noise where
    McNemar's test at 5 % says so; the reported rows' flags are not known, so theirs is that of two independent sets
    of images. The spread between trainings is in neither, unless there are several seeds.
    """
    columns, pairs = list(comparison.headings), list(pairs)
    block_of = ["student", "teacher"] if comparison.frame["teacher"].nunique() > 1 else ["student"]
    blocks = comparison.frame.groupby(block_of)["row"].agg(set)
    anywhere = {pair: any({*pair} <= rows for rows in blocks) for pair in pairs}  # else dashes, in every block
    lines = {}
    for key, block in comparison.frame.groupby(block_of, sort=False):
        cells = block.set_index(["row", "column"])
        for pair in (pair for pair in pairs if {*pair} <= set(block["row"]) or not anywhere[pair]):
            label = f"{pair[0]} over {pair[1]}"
            lines[*key, label, "reported"] = [_reported_lead(cells, *pair, column) for column in columns]
            lines[*key, label, "measured"] = [_measured_lead(comparison, key, *pair, c) for c in columns]
    names = [*block_of, "", ""]
    none = pd.MultiIndex.from_arrays([[]] * len(names), names=names)
    index = pd.MultiIndex.from_tuples(lines, names=names) if lines else none
    return pd.DataFrame(list(lines.values()), index=index, columns=columns)


def _reported_lead(cells: pd.DataFrame, row: str, other: str, column: str) -> str:
    """The lead of one printed number over another, with the error of two independent sets of images."""
    if not {(row, column), (other, column)} <= set(cells.index):
        return "–"
    both = [cells.loc[(name, column)] for name in (row, other)]
    values = [cell["reported"] for cell in both]
    if any(pd.isna(value) for value in values):
        return "–"
    error = math.sqrt(sum(value * (100 - value) / cell["reported_n"] for value, cell in zip(values, both, strict=True)))
    return _lead(values[0] - values[1], error, abs(values[0] - values[1]) > 1.96 * error)


def _measured_lead(comparison: Comparison, block: tuple[str, ...], row: str, other: str, column: str) -> str:
    """The lead of one row's networks over another's on the same images."""
    here = {key: value for key, value in comparison.flags.items() if key[: len(block)] == block and key[3] == column}
    flags = {key[2]: value for key, value in here.items()}
    if not flags.get(row) or not flags.get(other):
        return "–"
    found = paired(flags[row], flags[other])
    return _lead(found.difference, found.error, found.significant)


def _lead(difference: float, error: float, told_apart: bool) -> str:
    return f"{difference:+.2f} ± {1.96 * error:.1f}" + ("" if told_apart else " (noise)")
