"""A classifier and images as they are given: refused in a sentence, or made what an evaluation wants, with remarks."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.evaluate.accuracy import check_logits
from lib.evaluate.attacks import wrong_unit
from lib.evaluate.sanity import SLACK_IMAGES, percent
from lib.models.checkpoints import NORMALISATION
from lib.models.deepmind import NORMALISATIONS, Normalise

MORE = 5.0  # points that another normalisation has to gain before it is named
IN_BATCHES = 8  # images whose answers are asked for one by one too
STATISTICS = {  # mean and std per channel, for images in [0, 1]
    "no normalisation": ((0.0,) * 3, (1.0,) * 3),
    "CIFAR-10's": NORMALISATIONS[10],
    "0.5 and 0.5": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Float32(nn.Module):
    """`net` with ordinary float32 logits, whatever precision or mode it answers in."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of x (N, C, H, W)."""
        logits: Tensor = self.net(x).float()
        return logits.clone() if logits.is_inference() else logits


def usable(model: Any) -> tuple[nn.Module, list[str]]:
    """The model without torch.compile's wrapper, in float32: itself where it is, else a copy; and a note on that."""
    model = getattr(model, "_orig_mod", model)  # a compiled module has no truth value, and cannot be traced
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, got {type(model).__name__}; let one's forward call it")
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        raise UserError("the model was made under torch.inference_mode(), so it has no gradients: make it outside")
    others = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"}
    if not others:
        return model, []
    note = f"The model has weights in {' and '.join(sorted(others))}; a copy of it in float32 was evaluated."
    return deepcopy(model).float(), [note]


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """Gradients can be had and nothing is cast, whatever the caller's context is."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


def validate(x: Tensor, y: Tensor, epsilon: Any, seed: Any) -> None:
    """UserError for images, labels and settings that would make the numbers meaningless."""
    if not isinstance(epsilon, Real):
        raise UserError(f"epsilon must be a number in (0, 1], such as 8 / 255, got {str(epsilon)[:30]!r}")
    if not (isinstance(seed, int | Integral) and 0 <= int(seed) < 2**63):
        raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, got {str(seed)[:30]}")
    if x.dim() != 4 or not len(x):
        raise UserError(f"images must have the shape (N, C, H, W) with N >= 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise UserError(f"images must be floats in [0, 1], got {x.dtype}; bytes are divided by 255 first")
    low, high = float(x.min()), float(x.max())  # NaN where any value is
    if not (low >= 0 and high <= 1):
        hint = "a normalisation belongs into the network"
        raise UserError(f"images must have values in [0, 1], got {low:.4g} to {high:.4g}; {hint}")
    if y.shape != (len(x),) or y.is_floating_point() or y.dtype == torch.bool:
        raise UserError(f"labels must be one whole number per image ({len(x)}), got {tuple(y.shape)} of {y.dtype}")
    if int(y.min()) < 0:
        raise UserError(f"labels must be numbers from 0, got {int(y.min())}")
    if not 0 < float(epsilon) <= 1:
        raise UserError(f"the radius lies in (0, 1], got {epsilon}; 8/255 is {8 / 255:.5f}")
    if problem := wrong_unit(float(epsilon), "epsilon"):
        raise UserError(problem)


def check_devices(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """UserError where model, images and labels are not on one device."""
    devices = {str(tensor.device) for tensor in (*net.parameters(), x, y)}
    if len(devices) > 1:
        raise UserError(f"model, images and labels must be on one device, they are on {', '.join(sorted(devices))}")


def answers(net: nn.Module, x: Tensor) -> Tensor:
    """net(x) without gradients; UserError where it fails, or writes into the images."""
    own = x.clone()
    try:
        with torch.no_grad():
            logits: Tensor = net(own)
    except UserError:
        raise
    except Exception as error:  # a user's network may fail in any way
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        shape = f"{tuple(x.shape)}, which are (N, channels, height, width) in float32"
        raise UserError(f"the network fails on images of the shape {shape}: {why}") from error
    if not own.equal(x):
        raise UserError("the network's forward writes into its images (as x -= 0.5 does); write x = x - 0.5")
    return logits


def in_float32(net: nn.Module, x: Tensor, y: Tensor, highest: int) -> tuple[nn.Module, list[str]]:
    """`net` with float32 logits, those of x (N, C, H, W) being sound logits of the labels y, of which the `highest`."""
    logits = answers(net, x)
    check_logits(logits, y, highest)
    if logits.dtype == torch.float32:
        return Float32(net).eval() if logits.is_inference() else net, []
    name = str(logits.dtype).removeprefix("torch.")
    return Float32(net).eval(), [f"The model answers in {name}, which its weights are not in; read as float32."]


def depends_on_batch(net: nn.Module, x: Tensor) -> list[str]:
    """One sentence where the answer to an image depends on what else is in its batch; else nothing."""
    x = x[:IN_BATCHES]
    together, again, alone = answers(net, x), answers(net, x), [answers(net, one) for one in x.split(1)]
    if any(each.shape != together[:1].shape for each in alone):
        got = tuple(alone[0].shape)
        raise UserError(f"of one image the network's outputs must have the shape {(1, together.shape[1])}, got {got}")
    size, noise = max(1.0, float(together.abs().max())), float((together - again).abs().max())
    differs = (float((together - torch.cat(alone)).abs().max()) - 2 * noise) / size
    if differs <= 1e-3:  # what two equal forwards differ by is another check's
        return []
    amount = f"by {differs:.2g} of the largest logit"
    why = "as with batch statistics in eval mode (track_running_stats=False)"
    return [f"The answer to an image depends on the others of its batch, {amount}, {why}: no accuracy here is defined."]


def other_normalisation(net: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """One sentence where the network has more right under another normalisation than the one it has; else nothing."""
    mean, std = _own(net, x)
    right, accuracies = percent(answers(net, x).argmax(1) == y), {"": 0.0}
    for name, statistics in STATISTICS.items():
        halves = (torch.tensor(half, device=x.device) for half in statistics)
        usual = Normalise(*(half if x.shape[1] == 3 else half.mean() for half in halves)).to(x.device)
        with suppress(UserError):  # a network may refuse values out of [0, 1]
            accuracies[name] = percent(answers(net, usual(x) * std + mean).argmax(1) == y)
    name, best = max(accuracies.items(), key=lambda each: each[1])
    if best - right <= max(MORE, 100 * SLACK_IMAGES / len(y)):
        return []
    found = f"{best:.1f} % of {len(y)} images right, as it was evaluated {right:.1f} %"
    how = "a normalisation is the network's own first layer (in evaluate_your_model: mean and std)"
    return [f"Another normalisation is probably meant: with {name} the network has {found}; {how}."]


def _own(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The statistics of the network's own normalisation, that of the first module that has any; else 0 and 1."""
    for module in net.modules():
        known = {half: getattr(module, name) for name, half in NORMALISATION.items() if _numbers(module, name)}
        halves = {half: torch.as_tensor(numbers).to(x).reshape(-1, 1, 1) for half, numbers in known.items()}
        if len(halves) == 2 and all(len(half) in (1, x.shape[1]) for half in halves.values()):
            return halves["mean"], halves["std"]
    return torch.zeros(1, 1, 1).to(x), torch.ones(1, 1, 1).to(x)


def _numbers(module: nn.Module, name: str) -> bool:
    half = getattr(module, name, None)
    return isinstance(half, Tensor) or (isinstance(half, list | tuple) and all(isinstance(n, Real) for n in half))
