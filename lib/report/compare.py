"""Reported beside measured, cell by cell."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from lib.evaluate import contradictions, wilson, worst_case
from lib.experiment.networks import network_digest
from lib.experiment.planning import Result
from lib.experiment.table import Table
from lib.experiment.table_file import Row
from lib.report.caption import TEST_IMAGES, caption, source_marks
from lib.report.differences import marks
from lib.report.protocols import PAPERS, measurements
from lib.report.render import Comparison
from lib.report.reported import lines, reported
from lib.report.results import label, of_line, of_rows

MADE_WITH = ("commit", "uncommitted_changes", "python", "packages", "device", "threads", "tf32", "execution")


def compare(table: Table, results: list[Result]) -> Comparison:
    """Reported, measured and their difference for every cell of the table; a mark is shared inside the noise."""
    records, worst = [], []
    for student, teacher, row in lines(table):
        mine = of_line(results, student, teacher, row.row)
        line = {"student": student, "teacher": teacher, "row": row.row}
        records += [line | _cell(table, mine, student, teacher, row, column) for column in table.file.columns]
        worst += [line | case for case in _worst_case(table, mine)]
    frame = pd.DataFrame(records)
    frame["source_mark"] = frame["quoted"].map({"": ""} | source_marks(frame))
    blocks = [block for _, block in frame.groupby(["student", "teacher", "column"], sort=False)]
    for kind in ("reported", "measured"):
        frame[f"{kind}_mark"] = pd.concat([marks(block, kind) for block in blocks])
    measured = measurements(table, results)
    return Comparison(
        table.name,
        frame,
        table.headings(),
        caption(table, frame, worst[0] if worst else {}),
        _provenance(table, results),
        worst=pd.DataFrame(worst),
        findings={label(result): result.findings for result in results if result.findings},  # controls' as well
        contradictions={label(r): found for r in of_rows(results) if (found := contradictions(r.accuracies))},
        other_protocol=measured[measured["protocol"] != PAPERS].drop(columns="reduced"),
    )


def _cell(table: Table, results: list[Result], student: str, teacher: str, row: Row, column: str) -> dict[str, Any]:
    """What a line has in one column: the paper's number and the seeds' mean, with what is behind them."""
    printed = reported(table, student, teacher, row, column)
    source = row.quoted.get(student, "")
    images = (table.file.quoted_images.get(source, {}) if source else table.file.own_images).get(column, TEST_IMAGES)
    accuracies = [a for result in results for a in result.accuracies if a.column.name == column]
    measured = _mean([(a.k, a.n, a.flags) for a in accuracies])
    value = measured["measured"]
    return {
        "column": column,
        "reported": printed,
        "reported_n": images,
        "reported_low": None if printed is None else wilson(round(printed * images / 100), images)[0],
        "quoted": source,
        **measured,
        **(accuracies[0].column.settings() if accuracies else {}),
        "difference": None if printed is None or value is None else value - printed,
    }


def _mean(seeds: list[tuple[int, int, str]]) -> dict[str, Any]:
    """The mean of the seeds' (k, n, flags), its interval and their spread; the images that they share count once."""
    if not seeds:
        return dict.fromkeys(("measured", "low", "high", "sd")) | {"k": 0, "n": 0, "seeds": 0, "flags": []}
    percents, n = pd.Series([100 * k / n for k, n, _ in seeds]), seeds[0][1]
    k = round(sum(k for k, _, _ in seeds) / len(seeds))
    low, high = wilson(k, n)
    number = {"measured": percents.mean(), "k": k, "n": n, "low": low, "high": high, "sd": percents.std()}
    return number | {"seeds": len(seeds), "flags": [flags for _, _, flags in seeds]}


def _worst_case(table: Table, results: list[Result]) -> list[dict[str, Any]]:
    """The seeds' worst case over the paper's columns, as a cell; none where there are fewer than two attacks."""
    attacks = {column.name: column.attack for column in table.columns}
    cases = [worst_case([a for a in result.accuracies if a.column.name in attacks]) for result in results]
    known = [one for one in cases if one is not None and sum(attacks[name] != "clean" for name in one.of) > 1]
    behind = [{"column": "Worst case", "attack": f"all of {', '.join(one.of)}"} for one in known[:1]]
    return [line | _mean([(one.k, one.n, one.flags) for one in known]) for line in behind]


def _provenance(table: Table, results: list[Result]) -> dict[str, Any]:
    """What the results were made with, whoever reads them."""
    made = [facts for result in results for facts in result.made]
    return {key: sorted({str(facts[key]) for facts in made if key in facts}) for key in MADE_WITH} | {
        "scale": table.scale_name,
        "settings": asdict(table.scale),
        "data_sha256": table.data.sha256,
        "teachers": {name: network_digest(net, table.data) for name, net in table.teachers.items()},
        "runs": sorted({result.digest for result in results}),
    }
