"""A classifier of one's own, to be evaluated: its weights from a file, its normalisation as its first layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib import ROOT, data
from lib.data import Dataset
from lib.errors import choose
from lib.evaluate import PROTOCOLS
from lib.experiment.parameters import device_of, read_parameters, refuse
from lib.experiment.reference import KEPT, weights_of, weights_path
from lib.models import architecture, build
from lib.models.checkpoints import bare, chosen, load_state, read_state
from lib.models.deepmind import DeepMindNet, Normalise

LAYERS = ("", "0.", "normalize.", "normalizer.", "norm.")  # where public files keep a normalisation,
HALVES = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}  # and what they call its two halves
NORMALISATION = {layer + name: half for layer in LAYERS for name, half in HALVES.items()}


@dataclass(frozen=True)
class Classifier:
    """The parameters of evaluate_your_model, with their defaults."""

    weights: str = ""
    model: str = ""
    dataset: str = "digits"
    protocol: str = "common"
    epsilon_255: float = 38.0
    images: int = 0
    changes: dict[str, Any] = field(default_factory=lambda: {"AA": {"images": 64}})
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    unrelated: str = ""
    seed: int = 0
    data_dir: str = "data"
    download: bool = False
    device: str = "auto"
    outputs: str = "outputs"

    def __post_init__(self) -> None:
        if self.model:
            architecture(self.model)
        choose("protocol", self.protocol, PROTOCOLS)
        refuse("parameters", {f"images wants 0 or more, got {self.images}": self.images < 0})


def validate(namespace: Mapping[str, Any]) -> Classifier:
    """The notebook's parameters out of its globals, each of its declared type."""
    return read_parameters(namespace, Classifier)


def load_data(given: Classifier) -> Dataset:
    """The data set that the parameters name, on their device."""
    folder, cache = ROOT / Path(given.data_dir).expanduser(), ROOT / given.outputs / "cache"
    dataset = data.load(given.dataset, data_dir=folder, download=given.download, cache_dir=cache)
    return dataset.to(device_of(given.device))


def named(given: Classifier, weights: str | Path) -> Classifier:
    """`given` with the network whose keys the file has; UserError where none has, or several and `model` is not one."""
    path = weights_path(str(weights))
    return replace(given, model=chosen(_wanted(given, weights), _read(path, given)[0], path))


def load(given: Classifier, dataset: Dataset, weights: str | Path) -> nn.Module:
    """The network of the parameters with the weights of a file: in eval mode, its normalisation in front.

    The file is a state dict in this companion's names, RobustBench's or DeepMind's: wrapped or not, with "module." or
    not, and with a normalisation in it or not; `mean` and `std` give one that is not in it, or replace the one that a
    network of DeepMind's has inside. Raises a UserError for what does not fit.
    """
    path, channels = weights_path(str(weights)), dataset.channels
    state, halves, layer = _read(path, given)
    net = build(chosen(_wanted(given, weights), state, path), classes=len(dataset.classes), channels=channels)
    load_state(net, state, path)
    counts = [half.numel() for half in halves.values()]
    problems = {
        "it needs both mean and std; one is missing": len(halves) == 1,
        f"it has one number or one per channel ({channels}), got {max(counts, default=1)}": {*counts} - {1, channels},
        "its std must be positive numbers": not (halves.get("std", torch.ones(1)) > 0).all(),
    }
    refuse("normalisation", problems)
    if halves and isinstance(net, DeepMindNet) and not layer:
        net.normalise = Normalise(**halves)
    elif halves:
        net = nn.Sequential(Normalise(**halves), net)
    return net.to(dataset.test.images.device).to(memory_format=torch.channels_last).eval()


def _wanted(given: Classifier, weights: str | Path) -> str:
    """The network that the parameters name, or that a kept one is known to be."""
    name = str(weights)
    return given.model or (weights_of(name.removeprefix(KEPT))[1]["model"] if name.startswith(KEPT) else "")


def _read(path: Path, given: Classifier) -> tuple[dict[str, Tensor], dict[str, Tensor], bool]:
    """A file's tensors without prefixes, the halves of its normalisation, and whether that is a layer of its own."""
    state = bare(read_state(path))
    names = [name for name in state if name in NORMALISATION]
    halves = {NORMALISATION[name]: state.pop(name) for name in names}
    halves |= {half: torch.tensor(values) for half, values in (("mean", given.mean), ("std", given.std)) if values}
    if halves and all(name.startswith("1.") for name in state):  # nn.Sequential(normalisation, network)
        state = {name.removeprefix("1."): tensor for name, tensor in state.items()}
    return bare(state), halves, any("." in name for name in names)
