"""What happened while networks were trained, from their history.json: guides, strategies and what these cost."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from scipy.stats import entropy

from lib.experiment.networks import Network
from lib.experiment.planning import Result
from lib.experiment.spec import RunSpec
from lib.experiment.table import Table
from lib.methods.strategy import UNITS

THIS_LIBRARY = {"backward": 1, "restarts": 1, "forwards": 3}  # `las_at_passes` of this library

FOLLOWED = {  # what history.json calls it -> and a reader
    "score": "target under PGD-10",
    "followed.target.PGD-20": "target under PGD-20",
    "followed.target.train": "target, train images",
    "followed.target.unseen": "target, unseen images",
    "followed.guide.train": "guide, train images",
    "followed.guide.unseen": "guide, unseen images",
    "followed.label": "label right",
}


def histories(table: Table) -> dict[str, Path]:
    """Where the history.json of every row's training lies, by row, and by student, teacher, seed if there are more."""
    several = {key: len({getattr(cell, key) for cell in table.cells}) > 1 for key in ("student", "seed")}
    several["teacher"] = len({cell.teacher for cell in table.cells} - {""}) > 1
    found = {}
    for cell in table.cells:
        place = {"student": cell.student, "teacher": cell.teacher and f"← {cell.teacher}", "seed": f"seed {cell.seed}"}
        name = ", ".join([cell.row.row, *(text for key, text in place.items() if text and several[key])])
        if isinstance(cell.network, RunSpec):
            found[name] = table.workspace.store.folder(cell.digest) / "history.json"
    return found


def followed(histories: Mapping[str, Path]) -> pd.DataFrame:
    """Runs of a target with a guide: accuracies in %, one line per run and epoch.

    `label right` is how often the guide's answer, which is DYNAT's label, was the true class in the epoch's batches;
    unseen images are those the epoch is picked on, and PGD-20 is on at most a thousand of them.
    """
    runs = {name: pd.json_normalize(json.loads(path.read_text())) for name, path in histories.items()}
    frame = pd.concat(runs, names=["run", ""]).reset_index("run")
    return frame.reindex(columns=["run", "epoch", *FOLLOWED]).rename(columns=FOLLOWED)


def picks(histories: Mapping[str, Path], setting: str = "epsilon") -> pd.DataFrame:
    """What strategies picked from their options: a line per run, epoch and option with its share of the draws.

    Radii and step sizes in 1/255; `reward` is the epoch's mean, or missing. Runs that picked no such setting are left
    out.
    """
    records, unit = [], UNITS.get(setting, 1)
    for name, path in histories.items():
        epochs = [row.get("strategy", {}) for row in json.loads(path.read_text())]
        if all(setting in epoch.get("chosen", {}) for epoch in epochs):
            for number, epoch in enumerate(epochs, 1):
                counts, line = epoch["chosen"][setting], {"run": name, "epoch": number, "reward": epoch["reward"]}
                shares = {round(unit * float(value), 3): n / sum(counts.values()) for value, n in counts.items()}
                records += [line | {"option": option, "share": share} for option, share in sorted(shares.items())]
    return pd.DataFrame(records, columns=["run", "epoch", "reward", "option", "share"])


def picks_summary(histories: Mapping[str, Path]) -> pd.DataFrame:
    """How the radii that a strategy picks move from the first epoch to the last: mean, entropy in nats, and reward."""
    records = []
    for name, run in picks(histories).groupby("run", sort=False):
        for which, epoch in (("first epoch", run["epoch"].min()), ("last epoch", run["epoch"].max())):
            own = run[run["epoch"] == epoch]
            record = {"run": name, "": which, "mean": round((own["share"] * own["option"]).sum(), 2)}
            record["largest three"] = round(own["share"].tail(3).sum(), 3)
            record["entropy"] = round(float(entropy(own["share"])), 3)
            record["entropy if uniform"] = round(math.log(len(own)), 3)
            records.append(record | {"reward": own["reward"].astype(float).round(3).iloc[0]})
    return pd.DataFrame(records)


def strategy_steps(table: Table) -> dict[str, int]:
    """How many steps the strategy networks that learn make in a training, per row."""
    steps = {}
    for cell in table.cells:
        spec = cell.network
        if isinstance(spec, RunSpec) and spec.strategy and spec.strategy.kind.startswith("learned"):
            total = spec.schedule.steps(len(table.workspace.dataset(spec.data).train.labels) - spec.data.held_out)
            steps[cell.row.row] = min(total, spec.max_steps or total) // spec.strategy.every
    return steps


def las_at_passes(
    *, steps: float = 14, backward: float = 2, restarts: float = 2, forwards: float = 6
) -> tuple[float, float, float]:
    """What a step costs in forward passes: PGD-AT's, LAS-PGD-AT's, and what its strategy network adds every k-th time.

    A backward is `backward` in an attack and 2 elsewhere. PGD-AT is ten attack steps and a forward and backward (3) for
    the weights. LAS-AT has `steps` attack steps and a forward of a strategy network as large as the target; every k-th
    step also an attack, the copy's step (3), `restarts` judging attacks of ten steps, 3 for the strategy network, and
    `forwards` for the rewards. The defaults are the released code's: it also attacks images that are done.
    """
    attack, plain = steps * (1 + backward), 10 * (1 + backward) + 3
    strategy_step = attack + 3 + restarts * 10 * (1 + backward) + forwards + 3
    return plain, attack + 3 + 1, strategy_step


def times(table: Table, results: list[Result]) -> pd.DataFrame:
    """Training time over PGD-AT's: the paper's, counted for the released code and here, and the seeds' measured mean.

    Here the attack's gradient leaves the weights out, and an image that has made its steps leaves the batch.
    """
    logged = [(r.row, facts["seconds"]) for r in results for facts in r.made if "seconds" in facts]
    seconds = pd.DataFrame(logged, columns=["row", "seconds"]).groupby("row")["seconds"].mean()
    minutes = pd.Series(dict(zip(table.reported["columns"], table.reported["rows"]["Time(min)"], strict=True)))
    networks = {cell.row.row: cell.network for cell in table.cells}
    frame = pd.DataFrame(index=list(networks))
    frame["paper, min"], frame["paper"] = minutes, minutes / minutes["PGD-AT"]
    frame["released code, counted"] = [_counted(network) for network in networks.values()]
    frame["this library, counted"] = [_counted(network, as_here=True) for network in networks.values()]
    frame["measured, s"], frame["measured"] = seconds, seconds / seconds.get("PGD-AT", math.nan)
    return frame.astype(float).round(2)


def _counted(network: Network, as_here: bool = False) -> float | None:
    """A step's cost over PGD-AT's; None for given weights and for the searches, which the count does not model."""
    strategy = network.strategy if isinstance(network, RunSpec) else None
    if strategy is None:
        return 1.0 if isinstance(network, RunSpec) else None
    learns, options = strategy.kind.startswith("learned"), dict(strategy.options).get("steps")
    if options is None or not (learns or strategy.kind in ("random", "frozen")):
        return None
    own = {"steps": sum(options) / len(options), **THIS_LIBRARY} if as_here else {}
    plain, step, strategy_step = las_at_passes(**own)
    return (step + strategy_step / (strategy.every if learns else math.inf)) / plain
