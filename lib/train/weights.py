"""What is done to weights and batch-norm statistics in a step: perturbation (AWP), noise, averages (EMA)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from lib.attacks.pgd import Net
from lib.errors import UserError

Loss = Callable[[Net], Tensor]


@dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation of relative size gamma, from `warmup` (a share of the training) on.

    `method` names the method whose loss the perturbation maximises, with its `weights`; "" is the method's own.
    """

    gamma: float = 0.01
    warmup: float = 0.0
    method: str = ""
    weights: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.gamma > 0 or not 0 <= self.warmup <= 1:
            raise UserError(f"AWP wants gamma > 0 and a warmup in [0, 1], got {self}")


def freeze_bn(net: nn.Module) -> Net:
    """`net` in its present mode and with its weights, as a function of images that moves none of its buffers."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    return lambda x: functional_call(net, buffers, (x,))


@contextmanager
def perturbed(net: nn.Module, loss: Loss, gamma: float) -> Iterator[None]:
    """w + gamma ||w|| g / ||g|| inside the block, g = d loss / d w, per weight tensor; the same amount off afterwards.

    Neither batch-norm nor biases are perturbed. `loss` gets the network in its present mode, without effect on
    batch-norm statistics. An optimiser's step inside acts on the perturbed weights, weight decay included, as in the
    authors' code (Wu et al. 2020), whose proxy's step size cancels in the normalisation.
    """
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    with torch.enable_grad():
        slopes = torch.autograd.grad(loss(freeze_bn(net)), weights, allow_unused=True, materialize_grads=True)
    with ExitStack() as afterwards:
        for w, g in zip((weight.detach() for weight in weights), slopes, strict=True):
            step = gamma * w.norm() / (g.norm() + 1e-20) * g
            w.add_(step)
            afterwards.callback(w.sub_, step)
        yield


@contextmanager
def jittered(net: nn.Module, std: float, generator: Generator) -> Iterator[None]:
    """w + n inside the block, n ~ N(0, std^2), for the weights of all convolutions (RAT); afterwards as they were."""
    with ExitStack() as afterwards:
        for w in [module.weight.detach() for module in net.modules() if isinstance(module, nn.Conv2d)]:
            afterwards.callback(w.copy_, w.clone())
            w.add_(std * torch.randn(w.shape, generator=generator, device=w.device, dtype=w.dtype))
        yield


@contextmanager
def as_if_forwarded(net: nn.Module, times: int) -> Iterator[None]:
    """Inside, one train-mode forward moves batch-norm's statistics as `times` equal ones would: 1 - (1 - m)^times."""
    with ExitStack() as afterwards:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
                afterwards.callback(setattr, module, "momentum", module.momentum)
                module.momentum = 1 - (1 - module.momentum) ** times
        yield


class EMA(nn.Module):
    """a <- d a + (1 - d) w (Gowal et al. 2020), d = min(decay, (1 + t) / (10 + t)) as in its re-implementation."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.net, self.decay = deepcopy(net).eval().requires_grad_(False), decay
        self.steps = nn.Buffer(torch.tensor(0))  # stays on the CPU, where it costs no synchronisation

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the network's weights after a step; the buffers are its own."""
        decay = min(self.decay, (1 + int(self.steps)) / (10 + int(self.steps)))
        for own, new in zip(self.net.parameters(), net.parameters(), strict=True):
            own.lerp_(new, 1 - decay)
        for buffer, current in zip(self.net.buffers(), net.buffers(), strict=True):
            buffer.copy_(current)
        self.steps.add_(1)
