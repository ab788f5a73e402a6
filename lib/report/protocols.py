"""What stands beside the paper's table: controls, teachers, and the same networks under another protocol."""

from collections import defaultdict
from statistics import fmean

import pandas as pd
from IPython.display import Markdown

from lib.evaluate import PROTOCOLS, AttackSpec, heading
from lib.experiment.planning import Result
from lib.experiment.spec import GivenWeights
from lib.experiment.table import Table
from lib.methods import METHODS

NETWORK = ["student", "teacher", "row", "seed"]
PAPERS = "the paper's"  # protocol


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
        origin = (
            f"a given file of a {net.model}"
            if isinstance(net, GivenWeights)
            else f"trained here by {METHODS[net.method].title}"
        )
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
