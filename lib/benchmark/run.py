"""The robust speed run: one recipe, several seeds, the time that it took and the accuracy that came of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lib import ROOT
from lib.errors import UserError
from lib.evaluate import AttackSpec, heading
from lib.experiment import runs
from lib.experiment.networks import Workspace, describe_data
from lib.experiment.parameters import Parameters, Scale, device_of
from lib.experiment.spec import DataSpec, RunSpec

REFERENCE = (  # ResNet-18 on CIFAR-10 at 8/255
    {"run": "FastAT Benchmark (2026): PGD-AT, averaged weights, 100 epochs", "training, s": 7027.0, "AA, %": 50.49},
    {"run": "LAS-AT's Table 1: PGD-AT, 110 epochs", "training, s": 261 * 60.0},
)
UNUSED = ("rows", "students", "teachers", "teacher_files", "workers", "protocol")
GOAL = {"training, s": 400.0, "AA, %": 50.5}  # on one H200, no extra data


def place_of(parameters: Parameters) -> Workspace:
    """Where the parameters say that runs are made.

    Raises:
        UserError: they name what only a table has.
    """
    for name in UNUSED:
        if getattr(parameters, name) != getattr(Parameters(), name):
            raise UserError(f"parameter {name} means nothing in the speed run; leave it out")
    execution = parameters.settings.get("execution", "fast")
    folders = (Path(folder) for folder in (parameters.outputs, parameters.data_dir))
    outputs, data_dir = (folder if folder.is_absolute() else ROOT / folder for folder in folders)
    return Workspace(outputs, data_dir, parameters.download, str(device_of(parameters.device)), execution=execution)


def data_of(scale: Scale, place: Workspace) -> DataSpec:
    """CIFAR-10, or what stands for it at this scale."""
    held_out = scale.held_out if scale.selection == "held_out" else 0
    return describe_data(place, scale.datasets["CIFAR10"], scale.train_images, held_out)


def make(recipe: RunSpec, seeds: Sequence[int], place: Workspace) -> list[RunSpec]:
    """The recipe's runs, one per seed, one after the other; those that are there already are not made again."""
    specs = [replace(recipe, seed=seed) for seed in seeds]
    for spec in specs:
        runs.make(spec, place)
    return specs


def table(specs: Sequence[RunSpec], place: Workspace, columns: tuple[AttackSpec, ...]) -> pd.DataFrame:
    """A line per seed: the seconds of all epochs, scoring included, the peak in MB, and % under every column.

    A column that is reduced says so in its heading, and stands apart from the goal's.
    """
    lines = []
    for spec in specs:
        costs = pd.read_json(place.store.folder(spec.digest) / "history.json")
        line = {"run": f"seed {spec.seed}", "training, s": costs.seconds.sum(), "peak, MB": costs.peak_mb.max()}
        found = runs.measure(spec, spec.data, place, columns, checkpoint="last")
        images = len(place.dataset(spec.data).test.labels)
        lines.append(line | {f"{heading(accuracy.column, images)}, %": accuracy.percent for accuracy in found})
    return pd.DataFrame(lines).set_index("run")


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """The mean over the seeds and its spread (the sample's standard deviation), beside the goal and what is known."""
    spread = {"mean of the seeds": found.mean(), "standard deviation": found.std()}
    others = pd.DataFrame(REFERENCE).set_index("run")
    goal = pd.DataFrame([{"run": "the goal, on one H200", **GOAL}]).set_index("run")
    return pd.concat([pd.DataFrame(spread).T, goal, others])
