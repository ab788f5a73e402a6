"""What stands beside a table: what one row adds to another and whether that is noise, controls, another protocol."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from IPython.display import Markdown

from lib.evaluate import PROTOCOLS, Accuracy, AttackSpec, Paired, WorstCase, heading, paired, wilson
from lib.experiment.planning import Result
from lib.experiment.spec import RunSpec
from lib.experiment.table import Table
from lib.methods import METHODS
from lib.report.render import Comparison

NETWORK = ["student", "teacher", "row", "seed"]
PAPERS = "the paper's"  # protocol


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


def undefended_control(results: list[Result]) -> pd.DataFrame:
    """What the controls show: per student and attack, the undefended network and the weakest row, seeds' means."""
    seeds = defaultdict[tuple[str, str, AttackSpec, str], list[float]](list)
    for r, own in ((result, a) for result in results for a in result.accuracies):
        seeds[r.role, r.student, own.column, f"{r.row} ← {r.teacher}" if r.teacher else r.row].append(own.percent)
    means, records = {key: fmean(percents) for key, percents in seeds.items()}, []
    for (_, student, column, row), percent in ((key, mean) for key, mean in means.items() if key[0] == "control"):
        rivals = {key[3]: mean for key, mean in means.items() if key[:3] == ("cell", student, column)}
        if rivals:
            weakest = min(rivals, key=rivals.__getitem__)
            record = {"student": student, "attack": column.name, row: percent}
            records.append(record | {"weakest row": weakest, "its accuracy": rivals[weakest]})
    return pd.DataFrame(records)


def teachers_table(table: Table, results: list[Result]) -> pd.DataFrame:
    """The teachers' own accuracies, and where each came from."""
    records, headings = [], table.headings()
    for result in (result for result in results if result.role == "teacher"):
        net = table.teachers[result.student]
        trained = METHODS[net.method].title if isinstance(net, RunSpec) else ""
        origin = f"trained here by {trained}" if trained else f"a given file of a {net.model}"
        values = {headings[a.column.name]: round(a.percent, 1) for a in result.accuracies}
        records.append({"teacher": result.student, "weights": origin, **values})
    return pd.DataFrame(records)


def protocols(table: Table) -> pd.DataFrame:
    """What is behind every attack column: as the paper's authors measured it, and under the other protocol."""
    tested = [(cell, table.workspace.counts(cell.data)[1]) for cell in table.cells]
    images = [(c, c.images or count) for cell, count in tested for c in cell.columns if c.attack != "clean"]
    records = []
    for column, own in pd.DataFrame(images, columns=["attack", "n"]).drop_duplicates().groupby("attack", sort=False):
        base, protocol = _base(table, column.name)
        counts = ", ".join(map(str, own["n"]))  # a column's images differ where the rows' data do
        records.append({"column": base, "protocol": protocol} | column.settings() | {"images": counts})
    return pd.DataFrame(records)


def under_both(table: Table, results: list[Result]) -> pd.DataFrame | Markdown:
    """The accuracies under the other protocol with their intervals, each beside the paper's own column of that name.

    Where the parameters name no protocol, a sentence that says how to.
    """
    if not table.protocol:
        return Markdown(
            "Under the paper's protocol alone. `-p protocol NAME` measures the same networks under another as well, "
            f"without training: {', '.join(PROTOCOLS)}."
        )
    frame, bases = measurements(table, results), list(PROTOCOLS[table.protocol])
    beside = frame["column"].isin(table.file.columns) | (frame["protocol"] == table.protocol)
    frame = frame[frame["column"].isin(bases) & beside]
    texts = [f"{line.measured:.1f} [{line.low:.1f}, {line.high:.1f}]" for line in frame.itertuples()]
    frame = frame.assign(protocol=frame["protocol"] + frame["reduced"], text=texts)
    wide = frame.pivot_table("text", NETWORK, ["column", "protocol"], aggfunc="first", sort=False)
    return wide[sorted(wide.columns, key=lambda column: bases.index(column[0]))].rename_axis(columns=[None, None])


def measurements(table: Table, results: list[Result]) -> pd.DataFrame:
    """Every accuracy of the table's networks, a line each, with its protocol, its settings and what was reduced."""
    records = []
    for result in (result for result in results if result.role == "cell"):
        images = max(a.n for a in result.accuracies)
        for a in result.accuracies:
            base, protocol = _base(table, a.column.name)
            low, high = a.interval
            record = {key: getattr(result, key) for key in NETWORK} | {"protocol": protocol, "column": base}
            record |= {"measured": a.percent, "k": a.k, "n": a.n, "low": low, "high": high} | a.column.settings()
            record |= {"seed": result.seed, "attack seed": record["seed"]}  # both are called seed
            records.append(record | {"reduced": heading(a.column, images).removeprefix(a.column.name)})
    return pd.DataFrame(records, columns=None if records else [*NETWORK, "protocol", "column", "measured", "reduced"])


def _base(table: Table, name: str) -> tuple[str, str]:
    """A column's name without the other protocol's, and the protocol."""
    ending = f" ({table.protocol})"
    return (name.removesuffix(ending), table.protocol) if name.endswith(ending) else (name, PAPERS)
