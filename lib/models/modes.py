"""A network in train or eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def mode(net: nn.Module, train: bool) -> Iterator[None]:
    """`net` in train or eval mode inside the block; afterwards every module as it was."""
    before = [(module, module.training) for module in net.modules()]
    net.train(train)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """No parameter of `net` requires a gradient inside the block."""
    before = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    net.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
