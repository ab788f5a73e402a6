"""Reported beside measured, cell by cell, and the caption that says where the numbers come from."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from lib.data import TITLES
from lib.evaluate import ATTACKS, WorstCase, contradictions, describe_all, wilson, worst_case
from lib.experiment.networks import network_digest
from lib.experiment.planning import Result
from lib.experiment.spec import RunSpec
from lib.experiment.table import Table
from lib.experiment.table_file import Row
from lib.methods import METHODS
from lib.report.differences import marks, mean_of
from lib.report.kept import Place, kept_cells
from lib.report.protocols import PAPERS, measurements
from lib.report.render import Comparison
from lib.report.reported import lines, reported

TEST_IMAGES = 10_000  # what the papers' numbers were measured on
WORST = "Worst case"
INFERRED = " (inferred)"  # ends the name of a source in a row's `quoted` that no one names
MARKS_EXPLAINED = (
    "In brackets the 95 % Wilson interval; best in bold and second underlined within student and teacher, shared "
    "by all that a test paired by image (McNemar's at 5 %; with several seeds one that counts their spread) cannot "
    "tell from the leader, and among reported numbers where two independent sets of images may differ so: "
    "much bold means that little can be told apart."
)
MADE_WITH = ("commit", "uncommitted_changes", "python", "packages", "device", "threads", "tf32", "execution")


def compare(table: Table, results: list[Result]) -> Comparison:
    """Reported, measured and their difference for every cell of the table; a mark is shared inside the noise."""
    records, beside = [], []
    kept, behind_kept = kept_cells(table)
    for student, teacher, row in lines(table):
        own = [r for r in results if (r.student, r.row) == (student, row.row)]
        mine = [r for r in own if r.teacher in ("", teacher)]  # a network without one stands under every teacher
        line = {"student": student, "teacher": teacher, "row": row.row}
        for column in table.file.columns:
            cell = _cell(table, mine, student, teacher, row, column)
            records.append(line | cell | _kept(kept, (student, teacher, row.row, column)))
        beside += [line | case for case in (*_same_images(table, mine, results), *_worst_case(table, mine))]
    frame = pd.DataFrame(records).astype({"reported": float})
    source_marks = dict(zip(sorted({*frame["quoted"]} - {""}), "†‡§¶", strict=False))
    frame["source_mark"] = frame["quoted"].map({"": ""} | source_marks)
    blocks = [block for _, block in frame.groupby(["student", "teacher", "column"], sort=False)]
    for kind in ("reported", "measured"):
        frame[f"{kind}_mark"] = pd.concat([marks(block, kind) for block in blocks])
    cells, measured = [r for r in results if r.role == "cell"], measurements(table, results)
    worst = (case for case in beside if case["column"] == WORST)
    return Comparison(
        table.name,
        frame,
        table.headings(),
        _caption(table, frame, behind_kept if kept else "", next(worst, {}), source_marks),
        _provenance(table, results),
        beside=pd.DataFrame(beside),
        findings={_label(result): result.findings for result in results if result.findings},  # controls' as well
        contradictions={_label(r): found for r in cells if (found := contradictions(r.accuracies))},
        other_protocol=measured[measured["protocol"] != PAPERS].drop(columns="reduced"),
    )


def _label(result: Result) -> str:
    taught = f" ← {result.teacher}" if result.teacher else ""
    return f"{result.row}, {result.student}{taught}" + (f", seed {result.seed}" if result.seed else "")


def _cell(table: Table, results: list[Result], student: str, teacher: str, row: Row, column: str) -> dict[str, Any]:
    """What a line has in one column: the paper's number and the seeds' mean, with what is behind them."""
    printed = reported(table, student, teacher, row, column)
    source = row.quoted.get(student, "")
    images = (table.file.quoted_images.get(source, {}) if source else table.file.own_images).get(column, TEST_IMAGES)
    accuracies = [a for result in results for a in result.accuracies if a.column.name == column]
    measured = mean_of(accuracies)
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


def _worst_case(table: Table, results: list[Result]) -> list[dict[str, Any]]:
    """The seeds' worst case over the paper's columns, as a cell; none where there are fewer than two attacks."""
    attacks = {column.name: column.attack for column in table.columns}
    cases = [worst_case([a for a in result.accuracies if a.column.name in attacks]) for result in results]
    known = [one for one in cases if one is not None and sum(attacks[name] != "clean" for name in one.of) > 1]
    return [{"column": WORST, "attack": f"all of {', '.join(one.of)}"} | mean_of(known) for one in known[:1]]


def _same_images(table: Table, own: list[Result], results: list[Result]) -> list[dict[str, Any]]:
    """What the strongest attack on all images leaves of those that columns on fewer take, which may be easier ones."""
    bounded = {column.name for column in table.columns if ATTACKS[column.attack].bounded}
    made = [a for result in results for a in result.accuracies if a.column.name in table.file.columns]
    most = max((a.n for a in made), default=0)
    strong = [a for a in made if a.column.name in bounded and a.n == most]
    if not strong:
        return []
    name = min(reversed(strong), key=lambda one: one.percent).column.name
    whole = [a for result in own for a in result.accuracies if a.column.name == name]
    cells = []
    for n in sorted({a.n for a in made} - {most}):
        parts = [WorstCase(a.flags[:n].count("1"), n, (name,), a.flags[:n]) for a in whole]
        cells.append({"column": f"{name}, first {n}", "attack": name} | mean_of(parts))
    return cells


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


def _kept(kept: dict[Place, dict[str, Any]], place: Place) -> dict[str, Any]:
    """What is kept for a cell; a network without a teacher stands under every one."""
    student, _, row, column = place
    own = kept.get(place) or kept.get((student, "", row, column)) or mean_of([])
    return {"kept": own["measured"], **{f"kept_{key}": own.get(key) for key in ("low", "high", "sd", "n", "seeds")}}


def _caption(
    table: Table, frame: pd.DataFrame, kept: str, worst: Mapping[str, Any], source_marks: Mapping[str, str]
) -> str:
    """The text above a table; `frame` has its cells, `worst` is a worst case of one of its lines, or empty."""
    file, item = table.file, table.file.item.rpartition(".")[2]
    attacks = [column for column in table.columns if column.attack != "clean"]
    data = dict.fromkeys(TITLES.get(cell.data.name, cell.data.name) for cell in table.cells)
    stand_ins = _stand_ins(table)
    nets = table.teachers.items()
    trained = [f"{name} by {METHODS[net.method].title}" for name, net in nets if isinstance(net, RunSpec)]
    replaced = sorted(table.parameters.settings.keys() - {"execution"})  # each run's is in the provenance
    reported = bool(frame["reported"].notna().any())
    warning = "The difference compares different conditions, so it says nothing about the paper."
    parts = [
        f"{file.title}{f' ({file.paper.upper()}, {item})'.replace('_', '-') if item else ''}, accuracy in %.",
        f"Reported: {_behind_reported(table)}." if reported else "",
        f"Measured at scale '{table.scale_name}': {table.scale.title}; data: {', '.join(data)}.",
        kept,
        f"Settings replaced: {', '.join(replaced)}." if replaced else "",
        f"Stand-ins: {', '.join(stand_ins)}." if stand_ins else "",
        f"Teachers trained here: {', '.join(trained)}." if trained else "",
        *(f"{mark} {_origin(source)}." for source, mark in source_marks.items()),
        MARKS_EXPLAINED,
        f"Attacks: {describe_all(attacks)}." if attacks else "",
        f"Worst case: right under {worst['attack']}, per image, on the first {worst['n']}." if worst else "",
        warning if reported and (stand_ins or replaced) else "",
    ]
    return " ".join(filter(None, parts))


def _origin(source: str) -> str:
    if source.endswith(INFERRED):
        return f"protocol and digits suggest that it is quoted from {source.removesuffix(INFERRED)}"
    return f"equal to {source}'s table to the digit, or said to be from it: quoted"


def _behind_reported(table: Table) -> str:
    entry, own = table.reported, {"the paper's own rows": table.file.own_images}
    what = entry.get("title") or ", ".join(str(entry[key]) for key in ("dataset", "target") if key in entry)
    fewer = own | {f"rows from {name.removesuffix(INFERRED)}": n for name, n in table.file.quoted_images.items()}
    parts = [f"{rows}: {', '.join(f'{name} {n:,}' for name, n in ns.items())}" for rows, ns in fewer.items() if ns]
    return "; ".join([f"{what}, {TEST_IMAGES:,} test images".strip(", "), *parts])


def _stand_ins(table: Table) -> list[str]:
    used = {*table.students, *table.teacher_names, table.file.student_model}
    used |= {name for cell in table.cells for name in (cell.row.model, cell.row.guide)}
    strategies = [cell.network.strategy for cell in table.cells if isinstance(cell.network, RunSpec)]
    used |= {"ResNet18" for strategy in strategies if strategy and strategy.model}  # the strategy network
    return [f"{own} for {paper}" for paper, own in table.scale.models.items() if own != paper and paper in used]
