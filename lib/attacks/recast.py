"""Weights that autocast made bf16 are not kept for the backward pass: they are cast again when it needs them.

A network's bf16 copy of its weights is half of their size, once for every forward whose gradient is still to come.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Cast(NamedTuple):
    """What stands for a saved tensor: the parameter that it was cast from, as it was then, and the type."""

    parameter: Tensor
    version: int
    dtype: torch.dtype


def recast() -> saved_tensors_hooks:
    """Inside, a parameter's cast is saved as the parameter; everything else as always.

    The backward pass raises RuntimeError where the parameter has been changed in between.
    """
    return saved_tensors_hooks(_pack, _unpack)


def _pack(tensor: Tensor) -> Tensor | Cast:
    parameter = _cast_from(tensor)
    return tensor if parameter is None else Cast(parameter, parameter._version, tensor.dtype)


def _unpack(saved: Tensor | Cast) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    if saved.parameter._version != saved.version:
        raise RuntimeError("a weight was changed between the forward pass and its backward pass")
    return saved.parameter.detach().to(saved.dtype)


def _cast_from(tensor: Tensor) -> Tensor | None:
    """The parameter that `tensor` is a cast of, or None."""
    node = tensor.grad_fn
    if node is None or node.name() != "ToCopyBackward0":
        return None
    source = getattr(node.next_functions[0][0], "variable", None)
    same = isinstance(source, nn.Parameter) and source.shape == tensor.shape and source.dtype != tensor.dtype
    return source if same else None
