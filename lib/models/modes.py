"""A network in train or eval mode for a while."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn


@contextmanager
def mode(net: nn.Module, train: bool) -> Iterator[None]:
    """`net` in train or eval mode inside the block; afterwards every module as it was."""
    with ExitStack() as afterwards:
        for module in net.modules():
            afterwards.callback(setattr, module, "training", module.training)
        net.train(train)
        yield


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """No parameter of `net` requires a gradient inside the block."""
    with ExitStack() as afterwards:
        for parameter in net.parameters():
            afterwards.callback(parameter.requires_grad_, parameter.requires_grad)
        net.requires_grad_(False)
        yield
