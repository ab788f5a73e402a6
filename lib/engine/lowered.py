"""A network in bf16 whose weights are cast once, not at every pass, and whose last layer and logits are fp32."""

from copy import deepcopy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_LOWERED: "WeakKeyDictionary[nn.Module, Lowered | None]" = WeakKeyDictionary()


class Lowered(nn.Module):
    """The convolutions of `net` in bf16, batch-norm's and linear layers' weights in fp32; logits come out in fp32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = deepcopy(net).requires_grad_(False)
        for module in list(self.net.modules()):
            if isinstance(module, nn.Conv2d):
                module.to(torch.bfloat16)
            elif isinstance(module, nn.Linear):
                module.register_forward_pre_hook(_widened)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.to(torch.bfloat16))
        return logits.float()

    @torch.no_grad()
    def refresh(self, net: nn.Module) -> "Lowered":
        """The same, with the weights that `net` has now."""
        for own, new in ((self.net.parameters(), net.parameters()), (self.net.buffers(), net.buffers())):
            for old, present in zip(own, new, strict=True):
                old.copy_(present)
        self.train(net.training)
        return self


def lowered(net: nn.Module, x: Tensor) -> nn.Module | None:
    """`net` in bf16 with its weights as they are now, or None if it cannot answer x (1, C, H, W) that way.

    The copy lives as long as the network.
    """
    if net not in _LOWERED:
        _LOWERED[net] = _try(net, x)
    found = _LOWERED[net]
    return None if found is None else found.refresh(net)


def _try(net: nn.Module, x: Tensor) -> Lowered | None:
    try:
        made = Lowered(net)
        with torch.no_grad():
            made(x)
    except (RuntimeError, TypeError):  # weights of a user's own that do not mix with bf16: autocast serves it
        return None
    return made


def _widened(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in given)
