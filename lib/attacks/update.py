"""The optimiser's step of a few weights at a time, as soon as their gradients are there."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SHARE = 1 / 16  # of all weights: so many are waited for, since every call of the optimiser has its price


class Stepper:
    """The optimiser's step of the weights that were added, whenever they are SHARE of all; their gradients go with it.

    What still waits at the end is stepped by the optimiser itself, and `free` frees it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        (self.group,) = optimizer.param_groups
        self.optimizer, self.waiting = optimizer, list[Tensor]()
        self.enough = SHARE * sum(parameter.numel() for parameter in self.group["params"])

    def add(self, parameter: Tensor) -> None:
        """The gradient of this one is there."""
        self.waiting.append(parameter)
        if sum(one.numel() for one in self.waiting) >= self.enough:
            self._step()

    def free(self) -> None:
        """Forget the gradients of what waits."""
        for parameter in self.waiting:
            parameter.grad = None
        self.waiting.clear()

    def _step(self) -> None:
        whole, self.group["params"] = self.group["params"], self.waiting
        try:
            self.optimizer.step()
        finally:
            self.group["params"] = whole
        self.free()


@contextmanager
def stepped_in_backward(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, a backward pass steps most parameters as their gradients come, and frees these.

    The caller's `optimizer.step()` after it steps the rest; at the end of the block no gradient is left.
    """
    stepper = Stepper(optimizer)
    handles = [p.register_post_accumulate_grad_hook(stepper.add) for p in parameters]
    try:
        yield
    finally:
        stepper.free()
        for handle in handles:
            handle.remove()
