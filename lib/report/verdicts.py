"""What the papers claim of one method over another, and whether it holds in some results."""

from collections.abc import Iterable, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.evaluate import Paired, paired
from lib.evaluate.significance import LEVEL
from lib.experiment.parameters import PARAMS, read_yaml
from lib.experiment.planning import Result
from lib.experiment.table_file import read_table
from lib.report.plot_style import finished, panels
from lib.report.reported import reported


def verdicts(results: Sequence[Result]) -> pd.DataFrame:
    """Every claim of params/claims.yaml: the lead that the paper prints, the one in `results`, and what follows.

    A lead is in points, with 1.96 standard errors; it holds or does not where a paired test can tell (p < 0.05).
    """
    records = []
    for claim in read_yaml(PARAMS / "claims.yaml")["claims"]:
        for column in claim["columns"]:
            lead = difference(results, claim["better"], claim["than"], column)
            printed = printed_lead(claim["table"], claim["printed"], column) if "printed" in claim else None
            record = {"paper": claim["paper"], "claim": claim["claim"], "column": column, "printed lead": printed}
            record |= dict.fromkeys(("lead", "±", "n", "p"))
            if lead is not None:
                record |= {"lead": lead.difference, "±": 1.96 * lead.error, "n": lead.n, "p": float(f"{lead.p:.1g}")}
            records.append(record | {"verdict": verdict(lead)})
    return pd.DataFrame(records).astype({"n": "Int64"})


def verdict(lead: Paired | None) -> str:
    """In words: does a claimed lead hold?"""
    if lead is None:
        return "not run"
    if not lead.significant:
        return "inside the noise"
    return "holds" if lead.difference > 0 else "does not hold: the other way round"


def in_words(results: Sequence[Result], one: str, other: str, columns: Iterable[str]) -> str:
    """Whether a row's lead over another holds, column by column, with the lead in points and the paired test's p."""
    leads = {column: difference(results, one, other, column) for column in columns}
    points = {column: f" ({lead.difference:+.1f}, p = {lead.p:.1g})" for column, lead in leads.items() if lead}
    words = [f"{column}: {verdict(lead)}{points.get(column, '')}" for column, lead in leads.items()]
    return "; ".join(words) if points else "not run"


def difference(results: Sequence[Result], one: str, other: str, column: str) -> Paired | None:
    """The lead of a row over another in a column, paired by image; None where they were not measured side by side.

    Both are of one student and one scale, the first that has both, and a row of its first teacher.
    """
    for block in dict.fromkeys((result.role, result.student) for result in results):
        own = [result for result in results if (result.role, result.student) == block]
        flags = [_flags([result for result in own if result.row == row], column) for row in (one, other)]
        if all(flags):
            return paired(*flags)
    return None


def _flags(row: Sequence[Result], column: str) -> list[str]:
    """A row's flags in a column under its first teacher, seed by seed."""
    taught = [result for result in row if result.teacher == row[0].teacher]
    return [one.flags for result in taught for one in result.accuracies if one.column.name == column]


def paired_matrix(results: Sequence[Result], column: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lead of every row over every other in points, and its p; rows from the most accurate on."""
    percent: dict[str, list[float]] = {}
    for result in results:
        for one in result.accuracies:
            if one.column.name == column:
                percent.setdefault(result.row, []).append(one.percent)
    names = sorted(percent, key=lambda row: -sum(percent[row]) / len(percent[row]))
    leads = {(a, b): difference(results, a, b, column) for a in names for b in names}
    tables = [
        pd.DataFrame([[getattr(leads[a, b], what) for b in names] for a in names], names, names)
        for what in ("difference", "p")
    ]
    return tables[0], tables[1]


def paired_heatmap(leads: pd.DataFrame, p: pd.DataFrame) -> Figure:
    """The lead of each row over each column in points; without colour where a paired test cannot tell it from none."""
    figure, ((axis,),) = panels(1, 1, 1.1, 0.35 * len(leads) + 1.6)
    if leads.empty:
        axis.set_axis_off()
        return figure
    most = float(leads.abs().to_numpy().max()) or 1.0
    look = {"annot": leads.round(1), "fmt": "g", "cmap": "vlag", "vmin": -most, "vmax": most, "linewidths": 0.5}
    sns.heatmap(leads, mask=p >= LEVEL, ax=axis, cbar_kws={"label": "lead, points"}, **look)
    quiet = {"cmap": ["whitesmoke"], "cbar": False, "annot_kws": {"color": "grey"}}
    sns.heatmap(leads, mask=p < LEVEL, ax=axis, **look | quiet)
    axis.set(xlabel="over", ylabel="")
    return finished(figure)


def printed_lead(name: str, pair: Sequence[str], column: str, student: str = "", teacher: str = "") -> float | None:
    """What the first row of a paper's table has more than the second, of its first student and teacher unless named."""
    file, values = read_table(name), []
    rows = {row["row"]: file.read_row(row) for row in file.rows}
    taught = teacher or next(iter(file.trained("teachers")), "")
    for row in (rows[name] for name in pair):
        first = next(one for one in file.students if one in (row.only_students or file.students))
        values.append(reported(file, student or first, taught, row, column))
    return None if None in values else round(values[0] - values[1], 2)  # type: ignore[operator]
