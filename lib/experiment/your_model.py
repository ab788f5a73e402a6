"""A classifier of one's own, to be evaluated: its weights from a file, its normalisation as its first layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib import ROOT, data
from lib.data import Dataset
from lib.errors import UserError, choose
from lib.evaluate import PROTOCOLS
from lib.experiment.parameters import device_of, read_parameters
from lib.models import MODELS, build
from lib.models.checkpoints import load_state, read_state

MEANS, SPREADS = ("mean", "mu"), ("std", "sigma")  # what public files call a normalisation's two halves
WHERE = ("", "0.", "normalize.", "normalizer.", "norm.")  # and where they keep it


@dataclass(frozen=True)
class Classifier:
    """The parameters of evaluate_your_model, with their defaults."""

    weights: str = ""
    model: str = "ResNet8-w8"
    dataset: str = "digits"
    protocol: str = "common"
    radius: float = 38.0
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


class Normalised(nn.Module):
    """net((x - mean) / std), per channel: images stay in [0, 1] outside of it."""

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.net = net
        self.register_buffer("mean", mean.float().reshape(1, -1, 1, 1))
        self.register_buffer("std", std.float().reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.net((x - self.mean) / self.std)


def validate(namespace: Mapping[str, Any]) -> Classifier:
    """The notebook's parameters out of its globals, each of its declared type.

    Raises:
        UserError: an unknown name, a wrong type, or no such model or protocol.
    """
    given = read_parameters(namespace, Classifier)
    choose("model", given.model, MODELS)
    choose("protocol", given.protocol, PROTOCOLS)
    if given.images < 0:
        raise UserError(f"images wants 0 or more, got {given.images}")
    return given


def load_data(given: Classifier) -> Dataset:
    """The data set that the parameters name, on their device."""
    folder = ROOT / Path(given.data_dir).expanduser()
    found = data.load(given.dataset, data_dir=folder, download=given.download, cache_dir=ROOT / given.outputs / "cache")
    return found.to(device_of(given.device))


def load(given: Classifier, dataset: Dataset, weights: str | Path) -> nn.Module:
    """The network of the parameters with the weights of a file: in eval mode, its normalisation in front.

    The file is a state dict in this companion's names or RobustBench's: wrapped or not, with "module." or not, and with
    a normalisation in it or not; `mean` and `std` say one that is not in it.

    Raises:
        UserError: the file is missing, damaged, wants to run code, or does not fit; or half a normalisation is given.
    """
    net = build(given.model, classes=len(dataset.classes), channels=dataset.channels)
    path = ROOT / Path(weights).expanduser()
    state, found = _without_normalisation(read_state(path), set(net.state_dict()))
    load_state(net, state, path)
    mean, std = _normalisation(given, found, dataset.channels)
    if mean is not None and std is not None:
        net = Normalised(net, mean, std)
    return net.to(dataset.test.images.device).to(memory_format=torch.channels_last).eval()


def _without_normalisation(state: dict[str, Tensor], own: set[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's own tensors, and the mean and the std that the file keeps beside them."""
    found, rest = {}, dict(state)
    for place in WHERE:
        for half, names in (("mean", MEANS), ("std", SPREADS)):
            for name in (place + name for name in names):
                if name in rest and name not in own:
                    found[half] = rest.pop(name)
    if found and all(name.startswith("1.") for name in rest):  # nn.Sequential(normalisation, network)
        rest = {name.removeprefix("1."): tensor for name, tensor in rest.items()}
    return rest, found


def _normalisation(
    given: Classifier, found: Mapping[str, Tensor], channels: int
) -> tuple[Tensor | None, Tensor | None]:
    mean = torch.tensor(given.mean) if given.mean else found.get("mean")
    std = torch.tensor(given.std) if given.std else found.get("std")
    if (mean is None) != (std is None):
        raise UserError("a normalisation wants both mean and std; one is missing")
    for half in (mean, std):
        if half is not None and half.numel() not in (1, channels):
            raise UserError(f"a normalisation wants one number or one per channel ({channels}), got {half.numel()}")
    if std is not None and not bool((std > 0).all()):
        raise UserError(f"a normalisation's std wants positive numbers, got {std.flatten().tolist()}")
    return mean, std
