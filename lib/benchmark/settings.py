"""What the speed notebook can be told, checked by name and type before anything runs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lib import ROOT
from lib.benchmark.cases import TITLES
from lib.benchmark.measure import Timer
from lib.errors import UserError, choose
from lib.experiment.parameters import device_of, read_parameters
from lib.files import disk_errors
from lib.models import MODELS

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BATCHES = {"cpu": 64, "cuda": 128}
CURVES = {
    "cpu": (
        {"batch": 8, "steps": 4, "width": 16, "side": 32},
        {"batch": [4, 8, 16, 32], "steps": [2, 4, 8], "width": [8, 16, 32], "side": [16, 32]},
    ),
    "cuda": (
        {"batch": 256, "steps": 4, "width": 64, "side": 32},
        {"batch": [128, 256, 512, 1024], "steps": [2, 4, 8], "width": [32, 64, 128], "side": [32, 64]},
    ),
}
SMALLEST = {"batch": 1, "steps": 2, "width": 1, "side": 8}


@dataclass(frozen=True)
class SpeedParameters:
    """The parameters of benchmark_speed, with their defaults: twenty minutes on two cores."""

    device: str = "auto"
    clock: str = "wall"
    model: str = "ResNet18"
    methods: list[str] = field(default_factory=list)
    batch_size: int = 0
    side: int = 32
    steps: int = 20
    attack_steps: int = 10
    repeats: int = 3
    small_batch: int = 8
    small_repeats: int = 3
    curve: dict[str, list[int]] = field(default_factory=dict)
    curve_repeats: int = 9
    epochs: int = 4
    outputs: str = "outputs"

    @property
    def titles(self) -> dict[str, str]:
        """The methods that are measured, by name."""
        return {name: title for name, title in TITLES.items() if not self.methods or title in self.methods}

    def on(self, device: torch.device) -> int:
        """The batch size: as given, or the bars' own."""
        return self.batch_size or BATCHES.get(device.type, BATCHES["cpu"])

    def as_asked(self, device: torch.device) -> bool:
        """Whether the sizes are those that the bars were set for, whatever the network."""
        wanted = BATCHES.get(device.type, BATCHES["cpu"]), 32, 20, 10
        return (self.on(device), self.side, self.steps, self.attack_steps) == wanted

    def points(self, device: torch.device) -> tuple[dict[str, int], dict[str, list[int]]]:
        """Where the curves cross, and their points: as given, or sizes that keep this device at work."""
        base, along = CURVES.get(device.type, CURVES["cpu"])
        return base, self.curve or along


def validate(namespace: Mapping[str, Any]) -> tuple[SpeedParameters, Timer]:
    """The notebook's parameters out of its globals, each of its declared type, and what times work on the device.

    Raises:
        UserError: an unknown name, a wrong type, a number that is too small, no such model, method or device, or
            outputs that cannot be written.
    """
    settings = read_parameters(namespace, SpeedParameters)
    choose("model", settings.model, MODELS)
    choose("clock", settings.clock, CLOCKS)
    for title in settings.methods:
        choose("method", title, dict.fromkeys(TITLES.values()))
    least = {"side": 8, "steps": 2, "attack_steps": 1, "batch_size": 0, "small_batch": 1, "epochs": 1}
    least |= {"repeats": 1, "small_repeats": 1, "curve_repeats": 1}
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise UserError(f"parameter {name} wants {low} or more, got {getattr(settings, name)}")
    for axis, points in settings.curve.items():
        low = choose("axis of the curves", axis, SMALLEST)
        if len(points) < 2 or min(points) < low:
            raise UserError(f"parameter curve wants two points or more of {axis}, each at least {low}, got {points}")
    folder = ROOT / settings.outputs
    with disk_errors(folder):  # before anything is measured
        (folder / "tables").mkdir(parents=True, exist_ok=True)
    device = device_of(settings.device)
    if settings.clock == "cpu" and device.type != "cpu":
        raise UserError(f"the clock cpu says nothing of work on {device}; choose wall")
    return settings, Timer(device, CLOCKS[settings.clock])
