"""A classifier of one's own, to be evaluated: its weights from a file, its normalisation as its first layer."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from lib import data
from lib.data import Dataset, Split, to_float
from lib.data.core import fixed_order
from lib.errors import abridged, choose
from lib.evaluate import PROTOCOLS
from lib.evaluate.accuracy import check_logits
from lib.experiment.parameters import device_of, refuse
from lib.experiment.reference import KEPT, weights_of, weights_path
from lib.experiment.spec import digest_of
from lib.files import from_root
from lib.models import architecture, build
from lib.models.checkpoints import NORMALISATION, as_safetensors, bare, chosen, load_state, read_state
from lib.models.deepmind import DeepMindNet, Normalise
from lib.models.modes import mode

TELLING = 10.0  # points by which another order of classes has to be better before it is named


@dataclass(frozen=True)
class Classifier:
    """The parameters of evaluate_your_model, with their defaults."""

    weights: str = ""
    part: str = ""
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


def load_data(given: Classifier) -> Dataset:
    """The data set that the parameters name, on their device."""
    folder, cache = from_root(given.data_dir), from_root(given.outputs) / "cache"
    dataset = data.load(given.dataset, data_dir=folder, download=given.download, cache_dir=cache)
    return dataset.to(device_of(given.device))


def named(given: Classifier, weights: str | Path) -> Classifier:
    """`given` with the network whose keys the file has; UserError where none has, or several and `model` is not one."""
    path = weights_path(str(weights))
    return replace(given, model=chosen(_wanted(given, weights), _read(path, given)[0], path))


def load(given: Classifier, dataset: Dataset, weights: str | Path) -> nn.Module:
    """The network of the parameters with the weights of a file: in eval mode, its normalisation in front.

    The file is a state dict in this companion's names, RobustBench's or DeepMind's: wrapped or not, with prefixes or
    not, and with a normalisation in it or not, as Madry's and RobustBench's layers or beside the weights; `mean` and
    `std` give one that is not in it, or replace the one that a network of DeepMind's has inside. Raises a UserError
    for what does not fit.
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
    state = bare(read_state(path, given.part))
    if any(name.startswith("model.") for name in state):  # beside Madry's attacker, which holds the network once more
        state = {name: tensor for name, tensor in state.items() if not name.startswith("attacker.")}
    names = [name for name in state if name.rpartition(".")[2] in NORMALISATION]
    halves = {NORMALISATION[name.rpartition(".")[2]]: state.pop(name) for name in names}
    refuse(str(path), {f"it holds several normalisations: {abridged(names)}": len(names) > len(halves)})
    halves |= {half: torch.tensor(values) for half, values in (("mean", given.mean), ("std", given.std)) if values}
    state = bare(state)
    if halves and all(name.startswith("1.") for name in state):  # nn.Sequential(normalisation, network)
        state = {name.removeprefix("1."): tensor for name, tensor in state.items()}
    return bare(state), halves, any("." in name for name in names)


@torch.no_grad()
def use_threads_that_pay(net: nn.Module, dataset: Dataset) -> int:
    """How many torch threads are used from now on: on a CPU one, unless all of them answer a batch in less time."""
    x, seconds = to_float(dataset.test.images[:100]), dict[int, float]()
    with mode(net, train=False):
        for threads in dict.fromkeys((torch.get_num_threads(), 1)) if x.device.type == "cpu" else ():
            torch.set_num_threads(threads)
            net(x)
            begun = time.perf_counter()
            net(x)
            seconds[threads] = time.perf_counter() - begun
    torch.set_num_threads(min(seconds, key=seconds.__getitem__, default=torch.get_num_threads()))
    return torch.get_num_threads()


def key(given: Classifier, net: nn.Module, dataset: Dataset) -> str:
    """The digest of all that makes a report's numbers: the network, its normalisation, data, protocol, radius, seed."""
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())  # those that are in no state dict too
    size = f"{float(_outputs(net, dataset.test.take(slice(8))).abs().mean()):.2e}"  # equal weights, another forward
    network = [hashlib.sha256(as_safetensors(tensors)).hexdigest(), repr(net), size, dataset.digest()]
    return digest_of([asdict(replace(given, weights="", device="", outputs="", data_dir="", download=False)), network])


def remarks(given: Classifier, net: nn.Module, dataset: Dataset) -> tuple[str, ...]:
    """The order of the classes, and whether the network has another: what stands on top of a report."""
    names = [f"{i} {name}" for i, name in enumerate(dataset.classes)]
    more = f" ... ({len(names)} classes)" if len(names) > 12 else ""
    test = dataset.test.take(slice(given.images or None))
    return (f"Order of the classes: {', '.join(names[:12])}{more}.", *other_order(net, test, dataset.classes))


def other_order(net: nn.Module, test: Split, classes: Sequence[str]) -> tuple[str, ...]:
    """A sentence if the network's outputs stand for the classes in another order, else none.

    The order under which most images are right is found on one half of them and tried on the other, so that a
    weak network's errors are not taken for one.
    """
    answers, y = _outputs(net, test).argmax(1).cpu(), test.labels.cpu()
    halves = fixed_order(len(y)).tensor_split(2)
    size = max(len(classes), int(answers.max()) + 1)
    tried = [_matching(answers[one], y[one], size)[answers[other]] == y[other] for one, other in (halves, halves[::-1])]
    plain, best = (100 * float(right.float().mean()) for right in (answers == y, torch.cat(tried)))
    if best < plain + max(TELLING, 150 * len(y) ** -0.5):
        return ()
    order = _matching(answers, y, size).tolist()
    moved = [f"{i} is {classes[k]}" for i, k in enumerate(order[: len(classes)]) if i != k < len(classes)]
    return (
        f"The network seems to have the classes in another order: {plain:.1f} % are right without an attack, and "
        f"{best:.1f} % where its output {', '.join(moved[:8])}{' ...' if len(moved) > 8 else ''}.",
    )


def _matching(answers: Tensor, y: Tensor, size: int) -> Tensor:
    """The class of each output under which most of `answers` (N,) are right, each class once."""
    counts = torch.bincount(answers * size + y, minlength=size * size).view(size, size)
    return torch.from_numpy(linear_sum_assignment(counts.numpy(), maximize=True)[1])


@torch.no_grad()
def _outputs(net: nn.Module, test: Split) -> Tensor:
    with mode(net, train=False):
        logits = [net(x) for x, _ in test.batches(256)]
    check_logits(logits[0], test.labels[:256])
    return torch.cat(logits)
