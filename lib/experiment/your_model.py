"""A classifier of one's own, to be evaluated: its weights from a file, its normalisation as its first layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib import ROOT, data
from lib.data import Dataset
from lib.errors import choose
from lib.evaluate import PROTOCOLS
from lib.experiment.parameters import device_of, read_parameters, refuse
from lib.experiment.reference import weights_path
from lib.models import architecture, build
from lib.models.checkpoints import load_state, read_state

LAYERS = ("", "0.", "normalize.", "normalizer.", "norm.")  # where public files keep a normalisation,
HALVES = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}  # and what they call its two halves
NORMALISATION = {layer + name: half for layer in LAYERS for name, half in HALVES.items()}


@dataclass(frozen=True)
class Classifier:
    """The parameters of evaluate_your_model, with their defaults."""

    weights: str = ""
    model: str = "ResNet8-w8"
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
        architecture(self.model)
        choose("protocol", self.protocol, PROTOCOLS)
        refuse("parameters", {f"images wants 0 or more, got {self.images}": self.images < 0})


class Normalised(nn.Module):
    """net((x - mean) / std), per channel: images stay in [0, 1] outside of it."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", mean.float().reshape(1, -1, 1, 1))
        self.register_buffer("std", std.float().reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.net((x - self.mean) / self.std)


def validate(namespace: Mapping[str, Any]) -> Classifier:
    """The notebook's parameters out of its globals, each of its declared type."""
    return read_parameters(namespace, Classifier)


def load_data(given: Classifier) -> Dataset:
    """The data set that the parameters name, on their device."""
    folder, cache = ROOT / Path(given.data_dir).expanduser(), ROOT / given.outputs / "cache"
    dataset = data.load(given.dataset, data_dir=folder, download=given.download, cache_dir=cache)
    return dataset.to(device_of(given.device))


def load(given: Classifier, dataset: Dataset, weights: str | Path) -> nn.Module:
    """The network of the parameters with the weights of a file: in eval mode, its normalisation in front.

    The file is a state dict in this companion's names or RobustBench's: wrapped or not, with "module." or not, and with
    a normalisation in it or not; `mean` and `std` give one that is not in it. Raises a UserError for what does not fit.
    """
    net = build(given.model, classes=len(dataset.classes), channels=dataset.channels)
    path, channels = weights_path(str(weights)), dataset.channels
    state = read_state(path)
    names = [name for name in state if name in NORMALISATION and name not in net.state_dict()]
    halves = {NORMALISATION[name]: state.pop(name) for name in names}
    halves |= {half: torch.tensor(values) for half, values in (("mean", given.mean), ("std", given.std)) if values}
    if names and all(name.startswith("1.") for name in state):  # nn.Sequential(normalisation, network)
        state = {name.removeprefix("1."): tensor for name, tensor in state.items()}
    load_state(net, state, path)
    counts = [half.numel() for half in halves.values()]
    problems = {
        "it needs both mean and std; one is missing": len(halves) == 1,
        f"it has one number or one per channel ({channels}), got {max(counts, default=1)}": {*counts} - {1, channels},
        "its std must be positive numbers": not (halves.get("std", torch.ones(1)) > 0).all(),
    }
    refuse("normalisation", problems)
    net = Normalised(net, **halves) if halves else net
    return net.to(dataset.test.images.device).to(memory_format=torch.channels_last).eval()
