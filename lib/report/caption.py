"""What a reader has to know of a table's numbers: where they come from and what stands in for what."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lib.evaluate import describe_all
from lib.experiment.spec import RunSpec
from lib.experiment.table import Table
from lib.methods import METHODS

TEST_IMAGES = 10_000  # what the papers' numbers were measured on
INFERRED = " (inferred)"  # ends the name of a source in a row's `quoted` that no one names
MARKS_EXPLAINED = (
    "In brackets the 95 % Wilson interval; best in bold and second underlined within student and teacher, shared "
    "by all that a test paired by image (McNemar's at 5 %; with several seeds one that counts their spread) cannot "
    "tell from the leader, and among reported numbers where two independent sets of images may differ so: "
    "much bold means that little can be told apart."
)


def caption(table: Table, frame: pd.DataFrame, worst: Mapping[str, Any]) -> str:
    """The text above a table; `frame` has its cells, `worst` is one of its worst cases, or empty."""
    file, item = table.file, table.file.item.rpartition(".")[2]
    attacks = [column for column in table.columns if column.attack != "clean"]
    data, stand_ins = dict.fromkeys(cell.data.name for cell in table.cells), _stand_ins(table)
    nets = {name: net for name, net in table.teachers.items() if isinstance(net, RunSpec)}
    trained = [f"{name} by {METHODS[net.method].title}" for name, net in nets.items()]
    replaced = sorted(table.parameters.settings.keys() - {"execution"})  # each run's is in the provenance
    reported = bool(frame["reported"].notna().any())
    warning = "The difference compares different conditions, so it says nothing about the paper."
    parts = [
        f"{file.title}{f' ({file.paper.upper()}, {item})'.replace('_', '-') if item else ''}, accuracy in %.",
        f"Reported: {_behind_reported(table)}." if reported else "",
        f"Measured at scale '{table.scale_name}': {table.scale.title}; data: {', '.join(data)}.",
        f"Settings replaced: {', '.join(replaced)}." if replaced else "",
        f"Stand-ins: {', '.join(stand_ins)}." if stand_ins else "",
        f"Teachers trained here: {', '.join(trained)}." if trained else "",
        *(f"{mark} {_origin(source)}." for source, mark in source_marks(frame).items()),
        MARKS_EXPLAINED,
        f"Attacks: {describe_all(attacks)}." if attacks else "",
        f"Worst case: right under {worst['attack']}, per image, on the first {worst['n']}." if worst else "",
        _first_images(frame, [column.name for column in attacks if column.attack in ("pgd", "pgd_frozen")]),
        warning if reported and (stand_ins or replaced) else "",
    ]
    return " ".join(filter(None, parts))


def source_marks(frame: pd.DataFrame) -> dict[str, str]:
    """A mark for each source that rows are quoted from."""
    return dict(zip(sorted({*frame["quoted"]} - {""}), "†‡§¶", strict=False))


def _origin(source: str) -> str:
    if source.endswith(INFERRED):
        return f"protocol and digits suggest that it is quoted from {source.removesuffix(INFERRED)}"
    return f"equal to {source}'s table to the digit, or said to be from it: quoted"


def _behind_reported(table: Table) -> str:
    """The data, network and number of images that the reported numbers were measured on."""
    entry, own = table.reported, {"the paper's own rows": table.file.own_images}
    what = entry.get("title") or ", ".join(str(entry[key]) for key in ("dataset", "target") if key in entry)
    fewer = own | {f"rows from {name.removesuffix(INFERRED)}": n for name, n in table.file.quoted_images.items()}
    parts = [f"{rows}: {', '.join(f'{name} {n:,}' for name, n in ns.items())}" for rows, ns in fewer.items() if ns]
    return "; ".join([f"{what}, {TEST_IMAGES:,} test images".strip(", "), *parts])


def _stand_ins(table: Table) -> list[str]:
    """The networks of this scale that stand in for the paper's."""
    used = {*table.students, *table.teacher_names, table.file.student_model}
    used |= {name for cell in table.cells for name in (cell.row.model, cell.row.guide)}
    strategies = [cell.network.strategy for cell in table.cells if isinstance(cell.network, RunSpec)]
    used |= {"ResNet18" for strategy in strategies if strategy and strategy.model}  # the strategy network
    return [f"{own} for {paper}" for paper, own in table.scale.models.items() if own != paper and paper in used]


def _first_images(frame: pd.DataFrame, iterated: list[str]) -> str:
    """What PGD, on as many images as it has here, leaves of the first n that other columns have; "" without such."""
    pgd = frame[frame["column"].isin(iterated) & (frame["n"] > 0)]
    counts = sorted(n for n in {*frame["n"]} if 0 < n <= pgd["n"].max())
    if len(counts) < 2:
        return ""
    name, most = pgd.loc[pgd["n"].idxmax(), ["column", "n"]]
    flags = pgd[(pgd["column"] == name) & (pgd["n"] == most)]["flags"].explode()
    shares = {n: [100 * one[:n].count("1") / n for one in flags] for n in counts}
    parts = [f"{min(each):.1f} to {max(each):.1f} % of the first {n}" for n, each in shares.items()]
    return f"A column on fewer images may have easier ones: {name} leaves {', '.join(parts)} right."
