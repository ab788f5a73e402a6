"""The kept evidence beside the paper's numbers, before anything is run here."""

from typing import Any

from lib.data import TITLES
from lib.errors import UserError
from lib.evaluate import Accuracy
from lib.experiment import kept
from lib.experiment.planning import Result
from lib.experiment.reference import REFERENCE, index
from lib.experiment.table import Table
from lib.report.differences import mean_of

Place = tuple[str, str, str, str]  # student, teacher, row, column


def kept_results(table: Table) -> list[Result]:
    """The kept accuracies of the table's rows; none where there is no evidence that can be shown."""
    try:
        return kept.results(table)
    except UserError:
        return []


def kept_cells(table: Table) -> tuple[dict[Place, dict[str, Any]], str]:
    """What is kept for every place of the table, its seeds' mean and interval; and what it is, or why there is none."""
    try:
        results = kept.results(table)
    except UserError as error:
        return {}, f"{error}."
    if not results:
        return {}, "No evidence is kept for these rows yet (make evidence)."
    seeds: dict[Place, list[Accuracy]] = {}
    for result in results:
        for one in result.accuracies:
            seeds.setdefault((result.student, result.teacher, result.row, one.column.name), []).append(one)
    return {place: mean_of(each) for place, each in seeds.items()}, _behind(results)


def _behind(results: list[Result]) -> str:
    scales = sorted({result.role for result in results})
    made = [facts for result in results for facts in result.made]
    data = sorted({name for scale in scales for name in index(REFERENCE / scale)["data"]})
    days = sorted({facts["date"][:10] for facts in made})
    counts = {one.column.name: one.n for result in results for one in result.accuracies}
    most = max(counts.values())
    fewer = [f"{name}: {n:,}" for name, n in counts.items() if n < most]
    parts = [
        f"scale {', '.join(scales)}",
        f"data {', '.join(TITLES.get(name, name) for name in data)}",
        f"{most:,} test images" + (f" ({', '.join(fewer)})" if fewer else ""),
        " to ".join(dict.fromkeys((days[0], days[-1]))),
        ", ".join(sorted({facts["device"] for facts in made})),
    ]
    return f"Kept: {'; '.join(parts)}; 95 % Wilson intervals."
