"""What a strategy costs and what it picked: LAS-AT's times and policies."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lib.experiment.networks import Network
from lib.experiment.planning import Result
from lib.experiment.spec import GivenWeights, RunSpec
from lib.experiment.table import Table

HERE = {"backward": 1, "restarts": 1, "forwards": 3}  # `las_at_passes` of this library


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
            total = spec.schedule.steps(len(table.workspace.dataset(spec.data).train.labels) - held_out)
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


def picks_per_epoch(histories: Mapping[str, Path], setting: str) -> dict[str, list[dict[str, Any]]]:
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
    for name, epochs in picks_per_epoch(histories, setting).items():
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
