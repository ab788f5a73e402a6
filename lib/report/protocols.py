"""What stands beside the paper's table: controls, teachers, other columns, another protocol."""

import pandas as pd
from IPython.display import Markdown

from lib.evaluate import PROTOCOLS, Accuracy, AttackSpec, heading
from lib.experiment.planning import Result
from lib.experiment.spec import GivenWeights
from lib.experiment.table import Table
from lib.methods import METHODS


def undefended_control(table: Table, results: list[Result]) -> pd.DataFrame:
    """What the controls show: per student and attack, the undefended network beside the weakest of the table's rows."""
    records = []
    for control in (r for r in results if r.role == "control"):
        for own in control.accuracies:
            rivals = {
                f"{r.row} ← {r.teacher}" if r.teacher else r.row: a.percent
                for r in results
                if r.student == control.student and r.role == "cell"
                for a in r.accuracies
                if a.column == own.column
            }
            if not rivals:
                continue
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
        if r.role == "cell"
    ]
    return pd.DataFrame(records)


def protocols(table: Table) -> pd.DataFrame:
    """What is behind every attack column: as the paper's authors measured it, and under the other protocol."""
    behind: dict[AttackSpec, list[int]] = {}
    for cell in table.cells:
        images = len(table.workspace.dataset(cell.data).test.labels)
        for column in (column for column in cell.columns if column.attack != "clean"):
            behind.setdefault(column, []).append(column.images or images)
    records = [
        {
            "column": column.name.removesuffix(_ending(table)),
            "protocol": table.protocol if table.protocol and column.name.endswith(_ending(table)) else "the paper's",
        }
        | column.settings()
        | {"images": ", ".join(map(str, dict.fromkeys(counts)))}
        for column, counts in behind.items()
    ]
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
    lines = {}
    for result in (r for r in results if r.role == "cell"):
        measured = {a.column.name: a for a in result.accuracies}
        images = max(a.n for a in result.accuracies)
        line: dict[tuple[str, str], str] = {}
        for base in PROTOCOLS[table.protocol]:
            for protocol, column in (("the paper's", base), (table.protocol, base + _ending(table))):
                if column in measured and (base in table.file.columns or protocol == table.protocol):
                    reduced = heading(measured[column].column, images).removeprefix(column)
                    line[base, protocol + reduced] = _with_interval(measured[column])
        lines[result.student, result.teacher, result.row, result.seed] = line
    index = pd.MultiIndex.from_tuples(lines, names=["student", "teacher", "row", "seed"])
    frame = pd.DataFrame(list(lines.values()), index=index)
    return frame.set_axis(pd.MultiIndex.from_tuples(frame.columns), axis=1)


def other_protocol(table: Table, results: list[Result]) -> pd.DataFrame:
    """What was measured under the other protocol, a line per network and column with all settings; none without one."""
    records = []
    for result in (r for r in results if r.role == "cell" and table.protocol):
        cell = {"student": result.student, "teacher": result.teacher, "row": result.row, "seed": result.seed}
        for a in (a for a in result.accuracies if a.column.name.endswith(_ending(table))):
            low, high = a.interval
            number = {"measured": a.percent, "k": a.k, "n": a.n, "low": low, "high": high}
            name = {"protocol": table.protocol, "column": a.column.name.removesuffix(_ending(table))}
            records.append(cell | name | number | a.column.settings())
    return pd.DataFrame(records)


def _ending(table: Table) -> str:
    """What ends the names of the other protocol's columns."""
    return f" ({table.protocol})"


def _with_interval(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{accuracy.percent:.1f} [{low:.1f}, {high:.1f}]"


def teachers_table(table: Table, results: list[Result]) -> pd.DataFrame:
    """The teachers' own accuracies, and where each came from."""
    records = []
    for result in (r for r in results if r.role == "teacher"):
        net = table.teachers[result.student]
        origin = "a given file" if isinstance(net, GivenWeights) else f"trained here by {METHODS[net.method].title}"
        values = {table.headings()[a.column.name]: round(a.percent, 1) for a in result.accuracies}
        records.append({"teacher": result.student, "weights": origin, **values})
    return pd.DataFrame(records)
