"""The optimiser's step of one weight at a time, as soon as its gradient is there."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor


@contextmanager
def stepped_in_backward(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, a backward pass steps every parameter as its gradient comes, and frees the gradient."""
    handles = [p.register_post_accumulate_grad_hook(partial(step_alone, optimizer)) for p in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def step_alone(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """The optimiser's step of one weight, whose gradient goes with it."""
    (group,) = optimizer.param_groups
    whole, group["params"] = group["params"], [parameter]
    try:
        optimizer.step()
    finally:
        group["params"] = whole
    parameter.grad = None
