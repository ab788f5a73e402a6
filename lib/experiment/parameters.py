"""The parameters of a table notebook and the settings of a scale; both validated by name and type before anything runs.

Radii and step sizes are in 1/255 in every file, and their keys end in `_255`.
"""

import ast
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml

from lib import ROOT
from lib.attacks.fast import EXECUTIONS, PRECISIONS
from lib.errors import T, UserError, check_type, choose, typed
from lib.evaluate import PRESETS, PROTOCOLS, AttackSpec, at_radius, changed, wrong_unit
from lib.methods import METHODS
from lib.methods.strategy import UNITS
from lib.models import architecture
from lib.train import Schedule
from lib.train.devices import Parallel

PARAMS = ROOT / "params"
EXECUTORS = "local", "ray"  # in processes of this machine, or on a Ray cluster
PAPER_RADIUS_255 = 8.0  # the radius that papers' lengths are given at


@dataclass(frozen=True)
class Parameters:
    """The parameters of every table notebook, with their defaults; empty means: what the scale or the table says."""

    scale: str = "quick"
    rows: list[str] = field(default_factory=list)
    students: list[str] = field(default_factory=list)
    teachers: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    teacher_files: dict[str, str] = field(default_factory=dict)
    data_dir: str = "data"
    download: bool = False
    device: str = "auto"
    workers: int = 0
    executor: str = "local"
    address: str = "auto"  # of a Ray cluster, where that is the executor; and what a run takes of it
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    outputs: str = "outputs"
    protocol: str = ""  # whose attacks the networks are measured under as well
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seeds, workers = self.seeds, self.workers
        problems = {
            "outputs is empty; name a folder, such as outputs": not self.outputs,
            "seeds is empty; give at least one, such as [0]": not seeds,
            f"seeds must be 0 or more, got {seeds}": min(seeds, default=0) < 0,
            f"workers must be 0 or more, got {workers}": workers < 0,
            f"cpus_per_run must be 0.01 or more, got {self.cpus_per_run}": self.cpus_per_run < 0.01,
            f"gpus_per_run must lie in [0, 1], got {self.gpus_per_run}": not 0 <= self.gpus_per_run <= 1,
            "executor ray takes gpus_per_run in place of device and workers": self.executor == "ray"
            and (self.device not in ("auto", "cpu") or workers > 0),
        }
        refuse("parameters", problems)
        choose("executor", self.executor, dict.fromkeys(EXECUTORS))
        if self.protocol:
            choose("protocol", self.protocol, PROTOCOLS)


@dataclass(frozen=True)
class Scale:
    """The sizes of everything: the `settings` of a file in params/; raises UserError for a number out of range."""

    title: str
    datasets: dict[str, str]  # the paper's name -> the data set that stands for it here
    models: dict[str, str]  # the paper's name -> the network that stands for it here
    epsilon_255: float
    step_size_255: float
    attack_steps: int
    schedules: dict[str, dict[str, Any]]  # "default", and any method that has its own
    columns: dict[str, dict[str, Any]]  # a preset of lib/evaluate/protocols.py -> what this scale changes in it
    sanity_images: int  # how many the sanity checks use; 0: no checks
    selection: str = "test"
    held_out: int = 0
    train_images: int = 0
    test_images: int = 0
    precision: str = "fp32"
    max_steps: int = 0  # stop every training after so many optimisation steps; 0: never
    sustained_tflops: float = 0.0
    execution: str = "fast"
    batch_norm: str = ""  # whose batch statistics, where a run is trained on several devices
    devices: int = 0  # how many, where each has its own

    def __post_init__(self) -> None:
        counts = ("attack_steps", "train_images", "test_images", "held_out", "max_steps", "sanity_images")
        lengths = {name: getattr(self, name) for name in ("epsilon_255", "step_size_255")}
        problems = {f"{name} must be >= 0, got {getattr(self, name)}": getattr(self, name) < 0 for name in counts}
        problems |= {f"{n} is in 1/255 and must lie in (0, 255], got {v}": not 0 < v <= 255 for n, v in lengths.items()}
        problems |= {
            p: True for n, v in lengths.items() if v > 0 and (p := wrong_unit(v / 255, n.removesuffix("_255")))
        }
        problems["selection held_out requires held_out > 0 images"] = self.selection == "held_out" and not self.held_out
        refuse("settings", problems)
        for name, known in (("selection", ("test", "held_out")), ("precision", PRECISIONS), ("execution", EXECUTIONS)):
            choose(name, getattr(self, name), dict.fromkeys(known))
        for name in self.models.values():
            architecture(name)
        _ = self.parallel

    @property
    def parallel(self) -> Parallel | None:
        """How its runs are trained on several devices; None: on one."""
        refuse("settings", {"devices goes with batch_norm: per_device": self.devices and not self.batch_norm})
        return Parallel(self.batch_norm, self.devices) if self.batch_norm else None

    def from_paper(self, length_255: float) -> float:
        """A length in [0, 1] from one in 1/255 at the papers' radius of 8/255, in proportion to this scale's radius."""
        return length_255 / PAPER_RADIUS_255 * self.epsilon_255 / 255

    def schedule(self, method: str) -> Schedule:
        """The method's own schedule, or the default one."""
        name = method if method in self.schedules else "default"
        return typed(Schedule, choose("schedule", name, self.schedules), f"schedule {name}")

    def column(self, name: str) -> AttackSpec:
        """The preset of this name at the scale's radius, with what the scale changes in it.

        A name that no preset has is a column of the settings' own and says which `attack` it is.
        """
        given = dict(self.columns.get(name, {}))
        refuse(f"column {name}", {f"{key} is given as {key}_255, in 1/255": key in given for key in UNITS})
        radius, step = self.epsilon_255 / 255, self.step_size_255 / 255
        if "attack" in given and name not in PRESETS:
            base = AttackSpec(name, "clean", radius, step, preset=name)
        else:
            base = at_radius(choose("column", name, PRESETS), radius, step)
        check_type(given.get("images", 0), int, f"column {name}: images")
        if self.test_images:
            given["images"] = min(given.get("images") or base.images or self.test_images, self.test_images)
        return changed(base, given)


def refuse(where: str, problems: Mapping[str, object]) -> None:
    """Raise a UserError with the first problem whose value is true."""
    for problem, there in problems.items():
        if there:
            raise UserError(f"{where}: {problem}")


def validate(namespace: Mapping[str, Any], kind: type[T] = Parameters) -> T:  # type: ignore[assignment]
    """A notebook's parameters from its globals, as the dataclass that declares them, each of its declared type.

    A notebook may declare fewer, and names of its own; a missing name has its default. papermill only warns about a
    name that the notebook does not declare; here the cell that it injected is read, and refused by a UserError.
    """
    types: dict[str, Any] = {f.name: f.type for f in fields(kind)}  # type: ignore[arg-type]
    declared, injected = declared_and_injected(namespace.get("In", []))
    for name in injected:
        if name not in (declared or types):
            raise UserError(f"unknown parameter {name!r}; choose from: {', '.join(declared or types)}")
    values = {name: namespace[name] for name in types if name in namespace}
    for name, value in values.items():
        check_type(value, types[name], f"parameter {name}")
    return kind(**values)


def declared_and_injected(cells: list[str]) -> tuple[list[str], list[str]]:
    """The names that the parameters' cell assigns and those of papermill's cell right after it, from the history."""
    at = [index for index, cell in enumerate(cells) if cell.lstrip().startswith("# Parameters\n")]
    declared = _assigned(cells[at[0] - 1]) if at and at[0] else []
    return declared, [name for index in at for name in _assigned(cells[index])]


def _assigned(cell: str) -> list[str]:
    nodes = [node for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    return [target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)]


def load_scale(parameters: Parameters) -> Scale:
    """params/<scale>.yaml with the parameters' `settings` laid over it, mappings entry by entry, and all tried out."""
    given = merged(choose("scale", parameters.scale, scales()), parameters.settings)
    scale = typed(Scale, given, "settings")
    for name in scale.schedules:
        choose("method", name, {"default": None, **METHODS, **paper_schedules()})
        scale.schedule(name)
    for name in scale.columns:
        scale.column(name)
    return scale


def scales() -> dict[str, dict[str, Any]]:
    """The settings of every scale, by its name."""
    files = {path.stem: read_yaml(path) for path in sorted(PARAMS.glob("*.yaml"))}
    return {name: file["settings"] for name, file in files.items() if "settings" in file}


def paper_schedules() -> dict[str, Any]:
    """The schedules of scale `paper`, which has all that a row may name; a smaller scale may have the default alone."""
    return dict(scales()["paper"]["schedules"])


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over`, and of the mappings inside, in place of its own."""
    both = {k: merged(base[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return {**base, **over, **both}


def device_of(name: str) -> torch.device:
    """The device of this name on this machine; "auto" is the GPU where there is one."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    known = ["auto", "cpu", *(["cuda", *gpus] if gpus else []), *["mps"] * torch.backends.mps.is_available()]
    if name not in known:
        raise UserError(f"no device {name!r} here; choose from: {', '.join(known)}")
    return torch.device(name if name != "auto" else "cuda" if gpus else "cpu")


class Loader(yaml.SafeLoader):
    """YAML without aliases, a few of which can stand for more than fits into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias, *{self.peek_event().anchor}: write out what it stands for")
        return super().compose_node(parent, index)


@lru_cache
def _parsed(path: Path, changed: int) -> Any:
    return yaml.load(path.read_text("utf-8"), Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file; raises UserError for anything else."""
    try:
        value = deepcopy(_parsed(path, path.stat().st_mtime_ns))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({str(error) or type(error).__name__})") from error
    check_type(value, dict, str(path))
    return value
