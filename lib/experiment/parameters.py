"""What a table notebook can be told, and what a scale decides; both checked by name and type before anything runs."""

import ast
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from lib import ROOT
from lib.attacks.fast import EXECUTIONS, PRECISIONS
from lib.errors import UserError, check_type, choose, typed
from lib.evaluate import PRESETS, PROTOCOLS, AttackSpec, at_radius
from lib.methods import METHODS
from lib.models import MODELS
from lib.train import Schedule

PARAMS = ROOT / "params"
Kind = TypeVar("Kind")


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
    outputs: str = "outputs"
    protocol: str = ""  # whose attacks the networks are measured under as well
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How big everything is: the `settings` of a file in params/. Radii are in 1/255."""

    title: str
    datasets: dict[str, str]  # the paper's name -> the data set that stands for it here
    models: dict[str, str]  # the paper's name -> the network that stands for it here
    epsilon: float
    step_size: float
    attack_steps: int
    schedules: dict[str, dict[str, Any]]  # "default", and any method that has its own
    columns: dict[str, dict[str, Any]]  # a preset of lib/evaluate/presets.py -> what this scale changes in it
    sanity_images: int  # how many the sanity checks look at; 0: no checks
    selection: str = "test"
    held_out: int = 0
    train_images: int = 0
    test_images: int = 0
    precision: str = "fp32"
    max_steps: int = 0  # stop every training after so many optimisation steps; 0: never
    sustained_tflops: float = 0.0
    execution: str = "fast"  # or plain: how attacks are executed (lib/attacks/fast.py)

    def schedule(self, method: str) -> Schedule:
        """The method's own schedule, or the default one."""
        name = method if method in self.schedules else "default"
        return typed(Schedule, choose("schedule", name, self.schedules), f"schedule {name}")

    def column(self, name: str) -> AttackSpec:
        """The preset of this name at the scale's radius, with what the scale changes in it.

        A name that no preset has is a column of the settings' own and says which `attack` it is.
        """
        given = dict(self.columns.get(name, {}))
        for key in ("epsilon", "step_size"):
            if key in given:
                check_type(given[key], float, f"column {name}: {key}")
                given[key] /= 255
        radius = {"epsilon": self.epsilon / 255, "step_size": self.step_size / 255}
        if name in PRESETS:
            base = asdict(at_radius(PRESETS[name], **radius)) | {"stages": list(PRESETS[name].stages)}
        elif "attack" in given:
            base = {"name": name, "preset": name} | radius
        else:
            choose("column", name, PRESETS)
        if self.test_images:
            given["images"] = min(given.get("images") or base.get("images") or self.test_images, self.test_images)
        return typed(AttackSpec, base | given, f"column {name}")


def validate(namespace: Mapping[str, Any]) -> Parameters:
    """A notebook's parameters out of its globals, each of its declared type.

    papermill only warns about a name that no notebook parameter has; here the cell it injected is read, and refused.

    A name that the namespace lacks has its default.

    Raises:
        UserError: an unknown name or a wrong type.
    """
    parameters = read_parameters(namespace, Parameters)
    if not all(0 <= seed < 2**63 for seed in parameters.seeds):
        raise UserError(f"parameter seeds wants numbers from 0 to 2**63 - 1, got {parameters.seeds}")
    if parameters.protocol:
        choose("protocol", parameters.protocol, PROTOCOLS)
    if parameters.workers < 0:
        raise UserError(f"parameter workers wants 0 or more, got {parameters.workers}")
    return parameters


def read_parameters(namespace: Mapping[str, Any], kind: type[Kind]) -> Kind:
    """The parameters of a notebook as the dataclass that declares them, each of its declared type.

    Raises:
        UserError: an unknown name or a wrong type.
    """
    declared: dict[str, Any] = {f.name: f.type for f in fields(kind)}  # type: ignore[arg-type]
    for name in injected_names(namespace.get("In", [])):
        if name not in declared:
            raise UserError(f"unknown parameter {name!r}; choose from: {', '.join(declared)}")
    values = {name: namespace[name] for name in declared if name in namespace}
    for name, value in values.items():
        check_type(value, declared[name], f"parameter {name}")
    return kind(**values)


def injected_names(cells: list[str]) -> list[str]:
    """The names that papermill's injected cell assigns, read from the kernel's input history."""
    injected = [cell for cell in cells if cell.lstrip().startswith("# Parameters\n")]
    nodes = [node for cell in injected for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    return [target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)]


def load_scale(parameters: Parameters) -> Scale:
    """params/<scale>.yaml with the parameters' `settings` laid over it, mappings entry by entry.

    Raises:
        UserError: there is no such scale, a setting is unknown or of the wrong type, or a number makes no sense.
    """
    files = {path.stem: path for path in sorted(PARAMS.glob("*.yaml"))}
    given = read_yaml(choose("scale", parameters.scale, files))["settings"]
    given = merged(given, parameters.settings)
    scale: Scale = typed(Scale, given, "settings")
    _check_scale(scale)
    return scale


def _check_scale(scale: Scale) -> None:
    for name in (
        "epsilon",
        "step_size",
        "attack_steps",
        "train_images",
        "test_images",
        "held_out",
        "max_steps",
        "sanity_images",
    ):
        if not 0 <= getattr(scale, name) < math.inf:
            raise UserError(f"settings: {name} must be >= 0, got {getattr(scale, name)}")
    for name in ("epsilon", "step_size"):
        if not 0 < getattr(scale, name) <= 255:
            raise UserError(f"settings: {name} is in 1/255 and must lie in (0, 255], got {getattr(scale, name)}")
    choose("selection", scale.selection, dict.fromkeys(("test", "held_out")))
    if scale.selection == "held_out" and not scale.held_out:
        raise UserError("settings: selection held_out wants held_out > 0 images")
    choose("precision", scale.precision, dict.fromkeys(PRECISIONS))
    choose("execution", scale.execution, dict.fromkeys(EXECUTIONS))
    for model in scale.models.values():
        choose("model", model, MODELS)
    tables = [read_yaml(path) for path in (PARAMS / "tables").glob("*.yaml")]
    rows = [row for table in tables for part in table.values() if isinstance(part, list) for row in part]
    rows += [block for table in tables for block in table.get("blocks", {}).values()]
    named = {row["schedule"]: None for row in rows if isinstance(row, dict) and "schedule" in row}
    for name in scale.schedules:
        choose("method", name, {"default": None, **METHODS, **named})
        scale.schedule(name)
    for name in scale.columns:
        scale.column(name)


def paper_schedules() -> dict[str, Any]:
    """The schedules of scale `paper`, which has all that a row may name; a smaller scale may know the default alone."""
    return dict(read_yaml(PARAMS / "paper.yaml")["settings"]["schedules"])


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over`, and of the mappings inside, in place of its own."""
    both = {k: merged(base[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return {**base, **over, **both}


def device_of(name: str) -> torch.device:
    """The device of this name; "auto" is the GPU where there is one.

    Raises:
        UserError: no such device, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        choose("device", device.type, dict.fromkeys(("cpu", "cuda", "mps")))
    except (RuntimeError, AssertionError, UserError) as error:
        raise UserError(f"no device {name!r} here; choose from: auto, {', '.join(_devices())}") from error
    return device


def _devices() -> list[str]:
    """The devices of this machine."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *(["cuda"] if gpus else []), *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


@lru_cache
def _parsed(path: Path, changed: int) -> Any:
    return yaml.safe_load(path.read_text())


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        UserError: the file is not one.
    """
    try:
        value = deepcopy(_parsed(path, path.stat().st_mtime_ns))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no mapping")
    return value
