"""Reported beside measured, cell by cell, with what a reader has to know of the numbers."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pandas as pd

from lib.evaluate import WorstCase, contradictions, describe_all, paired, wilson, worst_case
from lib.experiment.networks import network_digest
from lib.experiment.planning import Result
from lib.experiment.spec import GivenWeights, RunSpec
from lib.experiment.table import Table
from lib.experiment.table_file import Row
from lib.methods import METHODS
from lib.report.protocols import other_protocol
from lib.report.render import Comparison
from lib.report.reported import reported, stands

TEST_IMAGES = 10_000  # what the papers' numbers were measured on
ITERATED = ("pgd", "pgd_frozen")
INFERRED = " (inferred)"  # ends the name of a source in a row's `quoted` that no one names
MADE_WITH = ("commit", "uncommitted_changes", "python", "packages", "device", "threads", "tf32")


def compare(table: Table, results: list[Result]) -> Comparison:
    """Reported, measured and their difference for every cell of the table; a mark is shared inside the noise."""
    records = [
        _record(table, results, student, teacher, row, column)
        for student in table.students
        for teacher in table.teacher_names
        for row in table.rows
        if stands(row, student)
        for column in table.file.columns
    ]
    frame = pd.DataFrame(records)
    marks = _source_marks(frame)
    frame["source_mark"] = [marks.get(source, "") for source in frame["quoted"]]
    block = frame.groupby(["student", "teacher", "column"], sort=False)
    markers = {"reported": _marks_of_reported, "measured": _marks_of_measured}
    for kind, marked in markers.items():
        frame[f"{kind}_mark"] = pd.concat([marked(part) for _, part in block]).reindex(frame.index)
    flags = {(r["student"], r["teacher"], r["row"], r["column"]): r["flags"] for r in records}
    return Comparison(
        table.name,
        frame.drop(columns="flags"),
        table.headings(),
        _caption(table, results, frame),
        _provenance(table, results),
        flags=flags,
        worst=_worst(table, results),
        findings={_name(result): result.findings for result in results if result.findings},  # controls' as well
        also=other_protocol(table, results),
        contradictions={_name(r): said for r in _rows(table, results) if (said := contradictions(r.accuracies))},
    )


def _source_marks(frame: pd.DataFrame) -> dict[str, str]:
    """A mark for each source that rows are quoted from."""
    return dict(zip(sorted(set(frame["quoted"]) - {""}), "†‡§¶", strict=False))


def _said_of_source(source: str) -> str:
    if source.endswith(INFERRED):
        return f"protocol and digits suggest that it is quoted from {source.removesuffix(INFERRED)}"
    return f"equal to {source}'s table to the digit, or said to be from it: quoted"


def _rows(table: Table, results: list[Result]) -> list[Result]:
    return [result for result in results if result.role == "cell"]


def _name(result: Result) -> str:
    taught = f" ← {result.teacher}" if result.teacher else ""
    return f"{result.row}, {result.student}{taught}" + (f", seed {result.seed}" if result.seed else "")


def _worst(table: Table, results: list[Result]) -> dict[tuple[str, str, str], list[WorstCase]]:
    """Per line the worst case of every seed, over the paper's columns; none where there are fewer than two attacks."""
    found: dict[tuple[str, str, str], list[WorstCase]] = {}
    names = {column.name: column.attack for column in table.columns}
    for result in _rows(table, results):
        worst = worst_case([a for a in result.accuracies if a.column.name in names])
        if worst is not None and sum(names[name] != "clean" for name in worst.of) > 1:
            for teacher in [result.teacher] if result.teacher else table.teacher_names:
                found.setdefault((result.student, teacher, result.row), []).append(worst)
    return found


def _record(table: Table, results: list[Result], student: str, teacher: str, row: Row, column: str) -> dict[str, Any]:
    printed = reported(table, student, teacher, row, column)
    source = row.quoted.get(student, "")
    behind = table.file.quoted_images.get(source, {}) if source else table.file.own_images
    images = behind.get(column, TEST_IMAGES)
    mine = [r for r in results if r.student == student and r.row == row.row and r.teacher in ("", teacher)]
    accuracies = [a for r in mine for a in r.accuracies if a.column.name == column]
    percents = [a.percent for a in accuracies]
    n = accuracies[0].n if accuracies else 0  # the seeds share their test images, so these count once
    k = round(sum(a.k for a in accuracies) / len(accuracies)) if accuracies else 0
    low, high = wilson(k, n) if n else (None, None)
    measured = sum(percents) / len(percents) if percents else None
    spread = pd.Series(percents).std() if len(percents) > 1 else None
    return {
        "student": student,
        "teacher": teacher,
        "row": row.row,
        "column": column,
        "reported": printed,
        "reported_n": images,
        "reported_low": None if printed is None else wilson(round(printed * images / 100), images)[0],
        "quoted": source,
        "measured": measured,
        "k": k,
        "n": n,
        "low": low,
        "high": high,
        "sd": spread,
        "seeds": len(accuracies),
        "flags": [a.flags for a in accuracies],
        **(accuracies[0].column.settings() if accuracies else {}),
        "difference": None if printed is None or measured is None else measured - printed,
    }


def _marks_of_reported(block: pd.DataFrame) -> pd.Series:
    """best, second or "" for each number of a column; shared where two independent sets of images may differ so."""
    variance = block["reported"].astype(float) * (100 - block["reported"].astype(float)) / block["reported_n"]
    gap = block["reported"].astype(float)
    return _marks(
        block["reported"],
        lambda value, leader: gap[leader] - gap[value] <= 1.96 * (variance[leader] + variance[value]) ** 0.5,
    )


def _marks_of_measured(block: pd.DataFrame) -> pd.Series:
    """The same, shared by those that a paired test on the same images cannot tell from the leader."""
    flags = block["flags"]
    return _marks(block["measured"], lambda value, leader: not paired(flags[leader], flags[value]).told_apart)


def _marks(values: pd.Series, shares: Callable[[Any, Any], bool]) -> pd.Series:
    values = values.astype(float)
    marks = pd.Series("", index=values.index)
    for mark in ("best", "second"):
        rest = values[marks == ""].dropna()
        if rest.empty:
            break
        leader = rest.idxmax()
        marks[[value for value in rest.index if value == leader or shares(value, leader)]] = mark
    return marks


def _caption(table: Table, results: list[Result], frame: pd.DataFrame) -> str:
    used = {*table.students, *table.teacher_names, table.file.student_model}
    used |= {name for cell in table.cells for name in (cell.row.model, cell.row.guide)}
    specs = [cell.network for cell in table.cells if isinstance(cell.network, RunSpec)]
    used |= {"ResNet18"} if any(spec.strategy and spec.strategy.model for spec in specs) else set()
    attacks = [column for column in table.columns if column.attack != "clean"]
    data = dict.fromkeys(cell.data.name for cell in table.cells)
    stand_ins = [f"{own} for {paper}" for paper, own in table.scale.models.items() if own != paper and paper in used]
    trained: dict[str, list[str]] = {}
    for name, net in table.teachers.items():
        if not isinstance(net, GivenWeights):
            trained.setdefault(METHODS[net.method].title, []).append(name)
    quoted = _source_marks(frame)
    teachers = [f"by {how}: {', '.join(names)}" for how, names in trained.items()]
    replaced = sorted(table.parameters.settings.keys() - {"execution"})  # told below the table, run by run
    told, paper = bool(frame["reported"].notna().any()), table.file.paper.upper().replace("_", "-")
    parts = [
        f"{table.file.title} ({paper}, {table.file.item.rpartition('.')[2]}), accuracy in %."
        if table.file.item
        else f"{table.file.title}, accuracy in %.",
        f"Reported: {_said_of(table)}." if told else "",
        f"Measured at scale '{table.scale_name}': {table.scale.title}; data: {', '.join(data)}.",
        f"Settings replaced: {', '.join(replaced)}." if replaced else "",
        f"Stand-ins: {', '.join(stand_ins)}." if stand_ins else "",
        f"Teachers trained here {'; '.join(teachers)}." if teachers else "",
        *(f"{mark} {_said_of_source(source)}." for source, mark in quoted.items()),
        "In brackets the 95 % Wilson interval; best in bold and second underlined within student and teacher, shared "
        "by all that a test paired by image (McNemar's at 5 %; with several seeds one that counts their spread) cannot "
        "tell from the leader, and among reported numbers where two independent sets of images may differ so: "
        "much bold means that little can be told apart.",
        f"Attacks: {describe_all(attacks)}." if attacks else "",
        _worst_case_said(table, results),
        _first_images(table, results),
    ]
    if told and (stand_ins or replaced):
        parts.append("The difference compares different conditions, so it says nothing about the paper.")
    return " ".join(part for part in parts if part)


def _worst_case_said(table: Table, results: list[Result]) -> str:
    worst = next(iter(_worst(table, results).values()), None)
    if worst is None:
        return ""
    return f"Worst case: right under all of {', '.join(worst[0].of)}, per image, on the first {worst[0].n}."


def _first_images(table: Table, results: list[Result]) -> str:
    """What PGD, on as many images as it has here, leaves of the first n that other columns have; "" without such."""
    names, rows = [column.name for column in table.columns], {row.row for row in table.rows}
    stored = [a for r in results if r.row in rows for a in r.accuracies if a.column.name in names]
    iterated = [a for a in stored if a.column.attack in ITERATED and len(a.flags) == a.n]
    if not iterated:
        return ""
    widest = max(iterated, key=lambda a: a.n)
    flags = [a.flags for a in iterated if a.column.name == widest.column.name and a.n == widest.n]
    fewer = sorted({a.n for a in stored if a.n < widest.n})
    told = ", ".join(f"{_range_right([f[:n] for f in flags])} of the first {n}" for n in fewer)
    whole = f"{_range_right(flags)} of all {widest.n}"
    if not fewer:
        return ""
    return f"A column on fewer images may have easier ones: {widest.column.name} leaves {told} right, and {whole}."


def _range_right(flags: list[str]) -> str:
    shares = sorted(100 * one.count("1") / len(one) for one in flags)
    return " to ".join(dict.fromkeys(f"{share:.1f}" for share in (shares[0], shares[-1]))) + " %"


def _said_of(table: Table) -> str:
    """What the reported numbers were measured on."""
    entry = table.reported
    what = entry.get("title") or ", ".join(str(entry[key]) for key in ("dataset", "target") if key in entry)
    fewer = ", ".join(f"{name} {count:,}" for name, count in table.file.own_images.items())
    quoted = {source: [f"{name} {n:,}" for name, n in ns.items()] for source, ns in table.file.quoted_images.items()}
    others = "".join(f"; rows from {source.removesuffix(INFERRED)}: {', '.join(ns)}" for source, ns in quoted.items())
    said = f"{what}, {TEST_IMAGES:,} test images".strip(", ")
    return said + (f"; the paper's own rows: {fewer}" if fewer else "") + others


def _provenance(table: Table, results: list[Result]) -> dict[str, Any]:
    made = [facts for result in results for facts in result.made]
    shared = {key: sorted({str(facts[key]) for facts in made}) for key in MADE_WITH}
    execution = sorted({facts["execution"] for facts in made if "execution" in facts})  # of trainings
    return shared | {
        "execution": execution,
        "scale": table.scale_name,
        "settings": asdict(table.scale),
        "data_sha256": table.data.sha256,
        "teachers": {name: network_digest(net, table.data) for name, net in table.teachers.items()},
        "runs": sorted({result.digest for result in results}),
    }
