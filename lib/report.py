"""Reported beside measured: the comparison, the leads, the controls, and what they were made with."""

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import dedent
from typing import Any

import pandas as pd
import torch
from IPython.display import Markdown
from pandas.io.formats.style import Styler
from torch import Tensor

from lib.evaluate import Accuracy, wilson
from lib.experiment import Result
from lib.methods import METHODS
from lib.parameters import PARAMS, read_yaml
from lib.render import Comparison
from lib.render import save as save
from lib.runs import Network, network_digest
from lib.spec import GivenWeights, RunSpec
from lib.table import Row, Table, show_path

TEST_IMAGES = 10_000  # what the papers' numbers were measured on
ITERATED = ("pgd", "pgd_frozen")
HERE = {"backward": 1, "restarts": 1, "forwards": 3}  # `las_at_passes` of this library
INFERRED = " (inferred)"  # ends the name of a source in a row's `quoted` that no one names
COMMON = " (common)"  # ends the name of a column of the protocol that all tables share
IN_WORDS = {
    "pgd": "PGD on the cross-entropy, last iterate",
    "pgd_frozen": "PGD on the cross-entropy, an image stays where it is first wrong",
    "cw": "PGD on the margin, last iterate",
    "cw_frozen": "PGD on the margin, an image stays where it is first wrong",
    "autoattack": "AutoAttack",
}
MADE_WITH = ("commit", "uncommitted_changes", "python", "packages", "device", "threads", "tf32")


def compare(table: Table, results: list[Result]) -> Comparison:
    """Reported, measured and their difference for every cell of the table; a mark is shared inside the noise."""
    records = [
        _record(table, results, student, teacher, row, column)
        for student in table.students
        for teacher in table.teacher_names
        for row in table.rows
        if _stands(row, student)
        for column in table.file.columns
    ]
    frame = pd.DataFrame(records)
    block = frame.groupby(["student", "teacher", "column"], sort=False)
    for kind in ("reported", "measured"):
        bounds = "reported_low" if kind == "reported" else "low"
        frame[f"{kind}_mark"] = pd.concat([_marks(part[kind], part[bounds]) for _, part in block]).reindex(frame.index)
    return Comparison(table.name, frame, table.headings(), _caption(table, results, frame), _provenance(table, results))


def reported_table(table: Table) -> pd.DataFrame:
    """The paper's numbers alone, as params/reported/ has them; a cell that is lost stays empty."""
    keys = [(s, t, row) for s in table.students for t in table.teacher_names for row in table.rows if _stands(row, s)]
    values = [[_reported(table, s, t, row, column) for column in table.file.columns] for s, t, row in keys]
    index = pd.MultiIndex.from_tuples([(s, t, row.row) for s, t, row in keys], names=["student", "teacher", "method"])
    return pd.DataFrame(values, index=index, columns=table.file.columns, dtype=float)


def printed(entry: Mapping[str, Any], columns: Iterable[str] = ()) -> pd.DataFrame:
    """All rows of an entry of the paper's whose rows are a list, whichever of them are run here; a dash is missing."""
    rows = {row_key(one): one["values"] for one in entry["rows"]}
    return pd.DataFrame(rows, index=list(columns or entry["columns"])).T.replace("-", None).astype(float)


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
    """What each row adds to another, per column, as reported and as measured, with 1.96 standard errors.

    The error is that of two independent sets of n test images. The rows share theirs, which makes it smaller, and the
    spread between trainings, which nothing here shows, makes it larger.
    """
    columns = list(comparison.headings)
    lines = {}
    for student, block in comparison.frame.groupby("student", sort=False):
        cells = block.set_index(["row", "column"])
        for row, other in pairs:
            for kind in ("reported", "measured"):
                both = [[_share(cells, name, column, kind) for name in (row, other)] for column in columns]
                lines[student, f"{row} over {other}", kind] = [_added(*pair) for pair in both]
    names = ["student", "", ""]
    index = pd.MultiIndex.from_tuples(lines, names=names) if lines else pd.MultiIndex.from_arrays([[]] * 3, names=names)
    return pd.DataFrame(list(lines.values()), index=index, columns=columns)


def _share(cells: pd.DataFrame, row: str, column: str, kind: str) -> tuple[float, float] | None:
    """A cell's accuracy in percent and the images it was measured on, None where there is none."""
    if (row, column) not in cells.index or pd.isna(value := cells.loc[(row, column), kind]):
        return None
    return float(value), float(cells.loc[(row, column), "reported_n" if kind == "reported" else "n"])


def _added(own: tuple[float, float] | None, other: tuple[float, float] | None) -> str:
    if own is None or other is None:
        return "–"
    error = math.sqrt(sum(value * (100 - value) / n for value, n in (own, other)))
    return f"{own[0] - other[0]:+.2f} ± {1.96 * error:.1f}"


def las_at_passes(
    *, steps: float = 14, backward: float = 2, restarts: int = 2, forwards: float = 6
) -> tuple[float, float, float]:
    """What a step costs: PGD-AT's, LAS-PGD-AT's, and what its strategy network adds every k-th time.

    In forward passes of the target, a backward being `backward` in an attack and 2 elsewhere. PGD-AT is ten attack
    steps and a forward and backward (3) for the weights. LAS-AT has `steps` attack steps and a forward of a strategy
    network as large as the target; every k-th step also an attack, the copy's step (3), `restarts` judging attacks of
    ten steps, 3 for the strategy network, and `forwards` for the rewards: two for L1, one to judge each restart, one
    each for L2 and L3. The defaults are the released code's: images that are done stay in the batch, and every attack
    step differentiates the weights too. `HERE` is what this library makes, one forward for each of the three.
    """
    attack, plain = steps * (1 + backward), 10 * (1 + backward) + 3
    strategy_step = attack + 3 + restarts * 10 * (1 + backward) + forwards + 3
    return plain, attack + 3 + 1, strategy_step


def las_at_cost(every: float, **passes: Any) -> float:
    """The cost of a step of LAS-PGD-AT with this k over one of PGD-AT; `passes` are those of `las_at_passes`."""
    plain, own, strategy_step = las_at_passes(**passes)
    return (own + strategy_step / every) / plain


def strategy_steps(table: Table) -> dict[str, int]:
    """How many steps the strategy networks that learn make in a training, per row."""
    steps = {}
    for cell in table.cells:
        spec = cell.network
        if isinstance(spec, RunSpec) and spec.strategy and spec.strategy.kind.startswith("learned"):
            held_out = spec.data.held_out if spec.selection == "held_out" else 0
            total = spec.schedule.steps(len(table.place.dataset(spec.data).train.labels) - held_out)
            steps[cell.row.row] = min(total, spec.max_steps or total) // spec.strategy.every
    return steps


def times(table: Table, results: list[Result], base: str = "PGD-AT") -> pd.DataFrame:
    """Training time over `base`'s: the paper's, counted for the released code and for this library, measured here.

    Here the attack's gradient leaves the weights out, and an image that has made its steps leaves the batch, so a step
    costs the options' mean.
    """
    printed = dict(zip(table.reported["columns"], table.reported["rows"]["Time(min)"], strict=True))
    taken: dict[str, list[float]] = {}
    for result in results:
        taken.setdefault(result.row, []).extend(facts["seconds"] for facts in result.made if "seconds" in facts)
    seconds = {name: sum(each) / len(each) for name, each in taken.items() if each}  # the mean of the seeds
    records = {}
    for cell in table.cells:
        name = cell.row.row
        records[name] = {
            "paper, min": printed.get(name),
            "paper": _over(printed, name, base),
            "released code, counted": _counted(cell.network),
            "this library, counted": _counted(cell.network, as_here=True),
            "measured, s": seconds.get(name),
            "measured": _over(seconds, name, base),
        }
    return pd.DataFrame(records).T.astype(float).round(2)


def _over(values: Mapping[str, float], name: str, base: str) -> float | None:
    return values[name] / values[base] if {name, base} <= set(values) else None


def _counted(network: Network, as_here: bool = False) -> float | None:
    """None for given weights, which cost nothing here, and for the searches, which the count does not model."""
    if isinstance(network, GivenWeights):
        return None
    if (strategy := network.strategy) is None:
        return 1.0
    learns, options = strategy.kind.startswith("learned"), dict(strategy.options).get("steps")
    if options is None or not (learns or strategy.kind in ("random", "frozen")):
        return None
    every = strategy.every if learns else math.inf
    return las_at_cost(every, steps=sum(options) / len(options), **HERE) if as_here else las_at_cost(every)


def histories(table: Table) -> dict[str, Path]:
    """Where the history.json of every row's training lies, the seed in the name where there are several.

    Given weights have none.
    """
    several = len({cell.seed for cell in table.cells}) > 1
    folders = {
        cell.row.row + (f", seed {cell.seed}" if several else ""): table.place.store.folder(cell.network.digest)
        for cell in table.cells
        if isinstance(cell.network, RunSpec)
    }
    return {label: folder / "history.json" for label, folder in folders.items()}


def told_picks(histories: Mapping[str, Path], setting: str) -> dict[str, list[dict[str, Any]]]:
    """Each training's epochs as its strategy told them, without those that picked no such setting from options."""
    epochs = {
        name: [row.get("strategy", {}) for row in json.loads(path.read_text())] for name, path in histories.items()
    }
    return {
        name: told for name, told in epochs.items() if told and all(setting in one.get("chosen", {}) for one in told)
    }


def picked(histories: Mapping[str, Path], setting: str = "epsilon") -> pd.DataFrame:
    """How a strategy's picks moved from the first epoch to the last, from history.json: mean, spread, and reward.

    `largest three` is the share of the three largest options; entropy is in nats. Trainings without picks are left out.
    """
    records = []
    for name, epochs in told_picks(histories, setting).items():
        for which, told in (("first epoch", epochs[0]), ("last epoch", epochs[-1])):
            counts = pd.Series({float(v): c for v, c in told["chosen"][setting].items()}).sort_index()
            share = counts / counts.sum()
            unit = 255 if setting in ("epsilon", "step_size") else 1
            records.append(
                {
                    "run": name,
                    "": which,
                    "mean": round(unit * float((share * share.index).sum()), 2),
                    "largest three": round(float(share.iloc[-3:].sum()), 3),
                    "entropy": round(-sum(p * math.log(p) for p in share if p), 3),
                    "entropy if uniform": round(math.log(len(share)), 3),
                    "reward": None if told["reward"] is None else round(told["reward"], 3),
                }
            )
    return pd.DataFrame(records)


def paper(name: str) -> dict[str, Any]:
    """All of params/reported/<name>.yaml: the paper's tables, what its prose claims, and what others print."""
    return read_yaml(PARAMS / "reported" / f"{name}.yaml")


def choices(paper: str) -> pd.DataFrame:
    """What paper and code leave open, what was chosen here and why: params/choices/<paper>.yaml."""
    given = read_yaml(PARAMS / "choices" / f"{paper}.yaml")
    return pd.DataFrame(given["choices"])[["question", "choice", "reason"]]


def source(*functions: Any) -> Markdown:
    """The source of some functions of the library, so that what is read is what runs."""
    code = "\n\n".join(dedent(inspect.getsource(function)).strip() for function in functions)
    return Markdown(f"```python\n{code}\n```")


def provenance_table(comparison: Comparison, saved: list[Path]) -> Styler:
    """What a result was made with, and where it was written, for the end of a notebook."""
    facts = {k: v for k, v in comparison.provenance.items() if k not in ("settings", "runs")}
    facts = {k: ", ".join(v) if isinstance(v, list) else v for k, v in facts.items()}
    facts |= {"runs": f"{len(comparison.provenance['runs'])} networks", "written": ", ".join(map(show_path, saved))}
    return pd.DataFrame({"": facts.values()}, index=list(facts)).style.set_properties(**{"text-align": "left"})


def floor(table: Table, results: list[Result]) -> pd.DataFrame:
    """What the controls show: per student and attack, the undefended network beside the weakest of the table's rows."""
    records = []
    for control in (r for r in results if r.row in {cell.row.row for cell in table.controls}):
        for own in control.accuracies:
            rivals = {
                f"{r.row} ← {r.teacher}" if r.teacher else r.row: a.percent
                for r in results
                if r.student == control.student and r.row in {row.row for row in table.rows}
                for a in r.accuracies
                if a.column == own.column
            }
            weakest = min(rivals, key=lambda name: rivals[name])
            records.append(
                {
                    "student": control.student,
                    "attack": own.column.name,
                    control.row: own.percent,
                    "weakest row": weakest,
                    "its accuracy": rivals[weakest],
                }
            )
    return pd.DataFrame(records)


def also_measured(table: Table, results: list[Result]) -> pd.DataFrame:
    """The columns that the table's networks were measured under beside the paper's, with the published ones again."""
    records = [
        {"student": r.student, "teacher": r.teacher, "row": r.row, "seed": r.seed}
        | {a.column.name: round(a.percent, 1) for a in r.accuracies}
        for r in results
        if r.row in {row.row for row in table.rows}
    ]
    return pd.DataFrame(records)


def protocols(table: Table) -> pd.DataFrame:
    """What is behind every attack column: as the paper's authors measured it, and as all tables here do."""
    images = len(table.place.dataset(table.data).test.labels)
    columns = dict.fromkeys(column for cell in table.cells for column in cell.columns if column.attack != "clean")
    records = [
        {
            "column": column.name.removesuffix(COMMON),
            "protocol": "common" if column.name.endswith(COMMON) else "the paper's",
            "attack": IN_WORDS.get(column.attack, column.attack)
            + (": " + ", ".join(column.stages).upper() if column.attack == "autoattack" else ""),
            "radius": f"{255 * column.epsilon:.3f}/255",
            "step": f"{255 * column.step_size:.3f}/255" if column.step_size else "its own",
            "steps": column.steps or "its own",
            "images": column.images or images,
        }
        for column in columns
    ]
    return pd.DataFrame(records)


def under_both(table: Table, results: list[Result]) -> pd.DataFrame:
    """The common protocol's accuracies with their intervals, each beside the paper's own column of that name."""
    images = len(table.place.dataset(table.data).test.labels)
    lines = {}
    for result in (r for r in results if r.row in {row.row for row in table.rows}):
        measured = {a.column.name: a for a in result.accuracies}
        line: dict[tuple[str, str], str] = {}
        for name in ("Clean", *table.file.control_columns):
            base = name.removesuffix(COMMON)
            both = {"": "Clean"} if name == "Clean" else {"the paper's": base, "common": name}
            for protocol, column in both.items():
                if column in measured:
                    reduced = measured[column].column.heading(images).removeprefix(column)
                    line[base, protocol + reduced] = _with_interval(measured[column])
        lines[result.student, result.row, result.seed] = line
    index = pd.MultiIndex.from_tuples(lines, names=["student", "row", "seed"])
    frame = pd.DataFrame(list(lines.values()), index=index)
    return frame.set_axis(pd.MultiIndex.from_tuples(frame.columns), axis=1)


def _with_interval(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{accuracy.percent:.1f} [{low:.1f}, {high:.1f}]"


def followed(histories: Mapping[str, Path]) -> pd.DataFrame:
    """Runs of a target with a guide, epoch by epoch, from history.json: accuracies in %, one line per run and epoch.

    `label right` is how often the guide's answer, which is DYNAT's label, was the true class in the epoch's batches;
    unseen images are those the epoch is picked on, and PGD-20 is on at most a thousand of them.
    """
    records = []
    for name, path in histories.items():
        for row in json.loads(path.read_text()):
            told = row.get("followed", {"target": {}, "guide": {}, "label": None})
            line = {"run": name, "epoch": row["epoch"], "target under PGD-10": row["score"]}
            line["target under PGD-20"] = told["target"].get("PGD-20")
            for net, part in ((n, p) for n in ("target", "guide") for p in ("train", "unseen")):
                line[f"{net}, {part} images"] = told[net].get(part)
            records.append(line | {"label right": told["label"]})
    return pd.DataFrame(records)


def rescued(answers: Mapping[str, Tensor], y: Tensor) -> tuple[int, pd.DataFrame]:
    """How often the first two of three networks are right and the third is wrong, beside all other cases; and where.

    `answers` are name -> logits (N, C), y (N,) the true classes. The image is the one of that kind, or of all where
    there is none, that the second network believes most strongly over the third.
    """
    right = pd.DataFrame({name: (logits.argmax(1) == y).tolist() for name, logits in answers.items()})
    _, with_, without = (logits.softmax(1).gather(1, y[:, None]).squeeze(1) for logits in answers.values())
    wanted = torch.tensor((right.iloc[:, 0] & right.iloc[:, 1] & ~right.iloc[:, 2]).to_numpy())
    gap = with_ - without
    index = int(gap.masked_fill(~wanted, -torch.inf).argmax() if wanted.any() else gap.argmax())
    counts = right.value_counts().rename("images").reset_index()
    return index, counts.replace({True: "right", False: "wrong"})


def teachers_table(table: Table, results: list[Result]) -> pd.DataFrame:
    """The teachers' own accuracies, and where each came from."""
    records = []
    for result in (r for r in results if r.row == "teacher"):
        net = table.teachers[result.student]
        origin = "a given file" if isinstance(net, GivenWeights) else f"trained here by {METHODS[net.method].title}"
        values = {table.headings()[a.column.name]: round(a.percent, 1) for a in result.accuracies}
        records.append({"teacher": result.student, "weights": origin, **values})
    return pd.DataFrame(records)


def _stands(row: Row, student: str) -> bool:
    return not row.only_students or student in row.only_students


def _record(table: Table, results: list[Result], student: str, teacher: str, row: Row, column: str) -> dict[str, Any]:
    reported = _reported(table, student, teacher, row, column)
    images = TEST_IMAGES if student in row.quoted else table.file.own_images.get(column, TEST_IMAGES)
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
        "reported": reported,
        "reported_n": images,
        "reported_low": None if reported is None else wilson(round(reported * images / 100), images)[0],
        "quoted": row.quoted.get(student, ""),
        "measured": measured,
        "k": k,
        "n": n,
        "low": low,
        "high": high,
        "sd": spread,
        "seeds": len(accuracies),
        "difference": None if reported is None or measured is None else measured - reported,
    }


def _reported(table: Table, student: str, teacher: str, row: Row, column: str) -> float | None:
    """The paper's number for a cell, whichever of its tables' shapes it stands in; None where there is none."""
    entry, key = table.reported_for(student), row.reported or row.row
    rows = entry.get("rows", entry.get(student, {}))
    if key in entry.get("columns", ()):  # the paper's columns are the rows here
        return rows[column][entry["columns"].index(key)] if column in rows else None
    if isinstance(rows, list):
        rows = {row_key(one): one["values"] for one in rows}
    values = rows.get(key)
    if isinstance(values, dict):
        values = values.get(teacher)
    value = None if values is None else values[table.file.columns.index(column)]
    return None if value in (None, "-") else float(value)


def row_key(one: Mapping[str, Any]) -> str:
    """What a row of the paper's is called in a table file, where the paper's rows are a list."""
    parts = ("dataset", "database", "teacher", "model", "method")
    return one.get("id") or "/".join(one[part] for part in parts if part in one)


def _marks(values: pd.Series, lows: pd.Series) -> pd.Series:
    """best, second or "" for each value; a value inside the leader's 95 % interval shares its mark."""
    values = values.astype(float)
    marks = pd.Series("", index=values.index)
    for mark in ("best", "second"):
        rest = values[marks == ""].dropna()
        if rest.empty:
            break
        marks[rest.index[rest >= lows[rest.idxmax()]]] = mark
    return marks


def _caption(table: Table, results: list[Result], frame: pd.DataFrame) -> str:
    used = {*table.students, *table.teacher_names, table.file.student_model}
    used |= {name for cell in table.cells for name in (cell.row.model, cell.row.guide)}
    specs = [cell.network for cell in table.cells if isinstance(cell.network, RunSpec)]
    used |= {"ResNet18"} if any(spec.strategy and spec.strategy.model for spec in specs) else set()
    data = dict.fromkeys(cell.data.name for cell in table.cells)
    stand_ins = [f"{own} for {paper}" for paper, own in table.scale.models.items() if own != paper and paper in used]
    trained: dict[str, list[str]] = {}
    for name, net in table.teachers.items():
        if not isinstance(net, GivenWeights):
            trained.setdefault(METHODS[net.method].title, []).append(name)
    quoted = sorted(set(frame["quoted"]) - {""})
    inferred = [name.removesuffix(INFERRED) for name in quoted if name.endswith(INFERRED)]
    sources = [name for name in quoted if not name.endswith(INFERRED)]
    teachers = [f"by {how}: {', '.join(names)}" for how, names in trained.items()]
    told, paper = bool(frame["reported"].notna().any()), table.file.paper.upper().replace("_", "-")
    parts = [
        f"{table.file.title} ({paper}, {table.file.item.rpartition('.')[2]}), accuracy in %.",
        f"Reported: {_said_of(table)}." if told else "",
        f"Measured at scale '{table.scale_name}': {table.scale.title}; data: {', '.join(data)}.",
        f"Settings replaced: {', '.join(sorted(table.replaced))}." if table.replaced else "",
        f"Stand-ins: {', '.join(stand_ins)}." if stand_ins else "",
        f"Teachers trained here {'; '.join(teachers)}." if teachers else "",
        f"† equal to {', '.join(sources)}'s table to the digit, or said to be from it: quoted." if sources else "",
        f"† also rows that protocol and digits suggest are quoted from {', '.join(inferred)}." if inferred else "",
        "In brackets the 95 % Wilson interval; best in bold and second underlined within student and teacher, shared "
        "by all that lie inside the leader's interval: much bold means that little can be told apart.",
        _first_images(table, results),
    ]
    if told and (stand_ins or table.replaced):
        parts.append("The difference compares different conditions, so it says nothing about the paper.")
    return " ".join(part for part in parts if part)


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
    return f"{what}, {TEST_IMAGES:,} test images".strip(", ") + (f"; the paper's own rows: {fewer}" if fewer else "")


def _provenance(table: Table, results: list[Result]) -> dict[str, Any]:
    made = [facts for result in results for facts in result.made]
    shared = {key: sorted({str(facts[key]) for facts in made}) for key in MADE_WITH}
    return shared | {
        "scale": table.scale_name,
        "settings": asdict(table.scale),
        "data_sha256": table.data.sha256,
        "teachers": {name: network_digest(net, table.data) for name, net in table.teachers.items()},
        "runs": sorted({result.digest for result in results}),
    }
