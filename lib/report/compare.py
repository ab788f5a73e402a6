"""Reported beside measured, cell by cell, and the notes that say where the numbers come from."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from lib.data import TITLES
from lib.errors import UserError
from lib.evaluate import ATTACKS, Accuracy, WorstCase, contradictions, describe_all, worst_case
from lib.experiment import kept
from lib.experiment.networks import network_digest
from lib.experiment.planning import Result
from lib.experiment.reference import REFERENCE, index
from lib.experiment.spec import RunSpec
from lib.experiment.table import Table
from lib.experiment.table_file import Row
from lib.methods import METHODS
from lib.report.differences import PAPERS, marks, mean_of, measurements
from lib.report.render import Comparison
from lib.report.reported import lines, reported

TEST_IMAGES = 10_000  # what the papers' numbers were measured on
WORST = "Worst case"
INFERRED = " (inferred)"  # ends the name of a source in a row's `quoted` that no one names
MARKS_EXPLAINED = (
    "in small the 95 % Wilson interval; bold, within student and teacher, is the best and all that a test paired by "
    "image (McNemar's at 5 %; with several seeds one that counts their spread) cannot tell from it, and among reported "
    "numbers all that two independent sets of images may differ by. Where these are more than half, none is bold"
)
COMPARABLE = ("gpu", "paper")  # the scales whose data are the paper's: elsewhere a difference is of other conditions
MADE_WITH = ("commit", "uncommitted_changes", "python", "packages", "device", "threads", "tf32", "execution")


def compare(table: Table, results: list[Result]) -> Comparison:
    """Reported, kept and measured for every cell of the table; a mark is shared inside the noise.

    From scale gpu on the difference as well, where reported and measured are of one data set.
    """
    records, beside = [], []
    all_kept, why_none = _kept_of(table)
    for student, teacher, row in lines(table):
        own, own_kept = (_of_line(each, student, teacher, row) for each in (results, all_kept))
        line = {"student": student, "teacher": teacher, "row": row.row}
        for column in table.file.columns:
            cell = _cell(table, own, student, teacher, row, column)
            theirs = [a for a in _accuracies(own_kept) if a.column.name == column]
            records.append(line | cell | _as_kept(mean_of(theirs)))
        cases = {name: _as_kept(numbers) for name, numbers in _same_images(table, own_kept, all_kept).items()}
        for name, numbers in (_same_images(table, own, results) | _worst_case(table, own)).items():
            cases[name] = cases.get(name, {}) | numbers
        beside += [line | {"column": name} | numbers for name, numbers in cases.items()]
    frame = pd.DataFrame(records).astype({"reported": float})
    source_marks = dict(zip(sorted({*frame["quoted"]} - {""}), "†‡§¶", strict=False))
    frame["source_mark"] = frame["quoted"].map({"": ""} | source_marks)
    blocks = [block for _, block in frame.groupby(["student", "teacher", "column"], sort=False)]
    for kind in ("reported", "measured"):
        frame[f"{kind}_mark"] = pd.concat([marks(block, kind) for block in blocks])
    cells, measured = [r for r in results if r.role == "cell"], measurements(table, results)
    worst = next((case for case in beside if case["column"] == WORST), {})
    behind_kept = _behind_kept(all_kept) if all_kept else ""
    return Comparison(
        table.name,
        frame if table.scale_name in COMPARABLE else frame.drop(columns="difference"),
        table.headings() if results else {name: name for name in table.file.columns},
        _caption(table, frame, behind_kept),
        _verdict(frame, "measured"),
        _notes(table, frame, behind_kept or why_none, worst, source_marks),
        _provenance(table, results),
        beside=pd.DataFrame(beside),
        findings={_label(result): result.findings for result in results if result.findings},  # controls' as well
        contradictions={_label(r): found for r in cells if (found := contradictions(r.accuracies))},
        other_protocol=measured[measured["protocol"] != PAPERS].drop(columns="reduced"),
    )


def kept_results(table: Table) -> list[Result]:
    """The kept accuracies of the table's rows; none where there is no evidence that can be shown."""
    return _kept_of(table)[0]


def _kept_of(table: Table) -> tuple[list[Result], str]:
    """What is kept of the table, and why that is nothing where it is."""
    try:
        return kept.results(table), "No evidence is kept for these rows yet (make evidence)."
    except UserError as error:
        return [], f"{error}."


def _behind_kept(results: list[Result]) -> str:
    scales = sorted({result.role for result in results})
    made = [facts for result in results for facts in result.made]
    data = sorted({name for scale in scales for name in index(REFERENCE / scale)["data"]})
    days = sorted({facts["date"][:10] for facts in made})
    counts = {one.column.name: one.n for one in _accuracies(results)}
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


def reported_and_kept(table: Table) -> Comparison:
    """The paper's numbers and beside each what is kept for the row, folded: the table itself has all three."""
    return replace(compare(table, []), folded=True)


def _label(result: Result) -> str:
    taught = f" ← {result.teacher}" if result.teacher else ""
    return f"{result.row}, {result.student}{taught}" + (f", seed {result.seed}" if result.seed else "")


def _accuracies(results: Iterable[Result]) -> list[Accuracy]:
    return [one for result in results for one in result.accuracies]


def _of_line(results: list[Result], student: str, teacher: str, row: Row) -> list[Result]:
    """The results of one line, a seed each; a network without a teacher stands under every one."""
    return [r for r in results if (r.student, r.row) == (student, row.row) and r.teacher in ("", teacher)]


def _cell(table: Table, results: list[Result], student: str, teacher: str, row: Row, column: str) -> dict[str, Any]:
    """What a line has in one column: the paper's number and the seeds' mean, with what is behind them."""
    printed = reported(table.file, student, teacher, row, column)
    source = row.quoted.get(student, "")
    images = (table.file.quoted_images.get(source, {}) if source else table.file.own_images).get(column, TEST_IMAGES)
    accuracies = [a for a in _accuracies(results) if a.column.name == column]
    measured = mean_of(accuracies)
    value = measured["measured"]
    return {
        "column": column,
        "reported": printed,
        "reported_n": images,
        "quoted": source,
        **measured,
        **(accuracies[0].column.settings() if accuracies else {}),
        "difference": None if printed is None or value is None else value - printed,
    }


def _worst_case(table: Table, results: list[Result]) -> dict[str, dict[str, Any]]:
    """The seeds' worst case over the paper's columns; none where there are fewer than two attacks."""
    attacks = {column.name: column.attack for column in table.columns}
    cases = [worst_case([a for a in result.accuracies if a.column.name in attacks]) for result in results]
    known = [one for one in cases if one is not None and sum(attacks[name] != "clean" for name in one.of) > 1]
    return {WORST: {"attack": f"all of {', '.join(known[0].of)}"} | mean_of(known)} if known else {}


def _same_images(table: Table, own: list[Result], results: list[Result]) -> dict[str, dict[str, Any]]:
    """What the strongest attack on all images leaves of those that columns on fewer take, which may be easier ones."""
    found = _accuracies(r for r in results if own and r.role == own[0].role)  # kept ones may be of other scales
    made = [a for a in found if a.column.name in table.file.columns]
    most = max((a.n for a in made), default=0)
    strong = [a for a in found if ATTACKS[a.column.attack].bounded and a.n == most]
    if not strong:
        return {}
    name = min(reversed(strong), key=lambda one: one.percent).column.name
    whole, cells = [a for a in _accuracies(own) if a.column.name == name], {}
    for n in sorted({a.n for a in made} - {most}):
        parts = [WorstCase(a.flags[:n].count("1"), n, (name,), a.flags[:n]) for a in whole if a.n >= n]
        cells[f"{name}, first {n}"] = {"attack": name} | mean_of(parts)
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


def _as_kept(numbers: dict[str, Any]) -> dict[str, Any]:
    behind = {f"kept_{key}": numbers.get(key) for key in ("low", "high", "sd", "n", "seeds")}
    return {"kept": numbers["measured"]} | behind


def _caption(table: Table, frame: pd.DataFrame, kept: str) -> str:
    """The two lines above a table: what it is, and on what."""
    file, item = table.file, table.file.item.rpartition(".")[2]
    item = re.sub(r"^(tab|fig)\D*", lambda found: {"tab": "Table ", "fig": "Figure "}[found[1]], item)
    there = [kind for kind in ("reported", "kept", "measured") if frame[kind].notna().any()]
    where = f" ({file.paper.upper().replace('_', '-')}, {item})" if item else ""
    kept = "; ".join(kept.split("; ")[: 2 if "measured" in there else None])
    measured = f"Measured at scale {table.scale_name}: {table.scale.title}, {frame['n'].max()} images."
    on = [measured if "measured" in there else "Nothing is measured here yet.", f"{kept.rstrip('.')}." if kept else ""]
    return f"{file.title}{where}, accuracy in %: {' / '.join(there)}.\n{' '.join(filter(None, on))}"


def _verdict(frame: pd.DataFrame, kind: str) -> str:
    """Where nothing is marked because more than half of a column cannot be told from its best; "" where nowhere."""
    blocks = frame.groupby(["column", "student", "teacher"], sort=False)
    known, untold = blocks[kind].count() > 1, blocks[f"{kind}_mark"].agg(lambda marks: "untold" in {*marks})
    by_column = pd.DataFrame({"of": known, "untold": untold}).groupby("column", sort=False).sum()
    some = by_column[by_column["untold"] > 0]
    here = "This scale" if kind == "measured" else "The reported number of images"
    if (by_column["of"] == by_column["untold"]).all():
        return f"{here} cannot tell the best from most rows: no {kind} number is marked." if len(some) else ""
    names = ", ".join(n if u == of else f"{n} ({u} of {of} blocks)" for n, of, u in some.itertuples())
    return f"{here} cannot tell the best from most rows in {names}: nothing is marked there." if names else ""


def _notes(
    table: Table, frame: pd.DataFrame, kept: str, worst: Mapping[str, Any], source_marks: Mapping[str, str]
) -> dict[str, str]:
    """What is folded below a table, title -> text; `worst` is a worst case of one of its lines, or empty."""
    attacks = [column for column in table.columns if column.attack != "clean"]
    data = dict.fromkeys(TITLES.get(cell.data.name, cell.data.name) for cell in table.cells)
    stand_ins, nets = _stand_ins(table), table.teachers.items()
    trained = [f"{name} by {METHODS[net.method].title}" for name, net in nets if isinstance(net, RunSpec)]
    replaced = sorted(table.parameters.settings.keys() - {"execution"})  # each run's is in the provenance
    reported = bool(frame["reported"].notna().any())
    difference = "compares different conditions, so it says nothing about the paper"
    notes = {
        "Reported": f"{_behind_reported(table)}. {_verdict(frame, 'reported')}" if reported else "",
        "Kept": kept.removeprefix("Kept: "),
        "Measured": f"scale {table.scale_name}: {table.scale.title}; data: {', '.join(data)}",
        "Reduced": ", ".join(name for name in table.headings().values() if " (" in name),
        "Stand-ins": ", ".join(stand_ins),
        "Teachers trained here": ", ".join(trained),
        "Sources": "; ".join(f"{mark} {_origin(source)}" for source, mark in source_marks.items()),
        "Marks": MARKS_EXPLAINED,
        "Attacks": describe_all(attacks) if attacks else "",
        "Worst case": f"right under {worst['attack']}, per image, on the first {worst['n']}" if worst else "",
        "Difference": difference if reported and table.scale_name in COMPARABLE and (stand_ins or replaced) else "",
    }
    return {title: f"{text.rstrip('. ')}." for title, text in notes.items() if text}


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
