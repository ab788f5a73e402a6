"""What an evaluation refuses: images, labels and logits whose numbers would mean nothing, each with the reason."""

from typing import Any

import torch
from torch import Tensor

from lib.errors import UserError


def check_images(x: Tensor) -> None:
    """That x is (N, C, H, W), N >= 1, of floats in [0, 1].

    Raises:
        UserError: it is not.
    """
    _check_tensor("images", x)
    if x.dim() != 4 or not len(x):
        raise UserError(f"images must have the shape (N, C, H, W) with N >= 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise UserError(f"images must be floats in [0, 1], got {x.dtype}; bytes are divided by 255 first")
    if not bool(torch.isfinite(x).all()):
        raise UserError("images hold values that are not finite")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise UserError(
            f"images must have values in [0, 1], got {low:.4g} to {high:.4g}; a normalisation belongs into the network"
        )


def check_labels(y: Tensor, images: int) -> None:
    """That y is (N,), whole numbers from 0.

    Raises:
        UserError: it is not.
    """
    _check_tensor("labels", y)
    if y.shape != (images,) or y.is_floating_point() or y.dtype == torch.bool:
        raise UserError(f"labels must be one whole number per image ({images}), got {tuple(y.shape)} of {y.dtype}")
    if int(y.min()) < 0:
        raise UserError(f"labels must be numbers from 0, got {int(y.min())}")


def check_logits(logits: Tensor, y: Tensor) -> None:
    """That the outputs are finite, (N, C), with a class for every label.

    Raises:
        UserError: they are not.
    """
    _check_tensor("the network's outputs", logits)
    if logits.dim() != 2 or len(logits) != len(y):
        raise UserError(f"the network's outputs must have the shape ({len(y)}, classes), got {tuple(logits.shape)}")
    if not bool(torch.isfinite(logits).all()):
        wrong = int((~torch.isfinite(logits)).any(1).sum())
        raise UserError(f"the network's outputs are not finite (NaN or infinite) on {wrong} of {len(y)} images")
    if logits.shape[1] < 2 or int(y.max()) >= logits.shape[1]:
        raise UserError(f"the network has {logits.shape[1]} outputs, the labels go up to {int(y.max())}")


def are_probabilities(logits: Tensor) -> bool:
    """Whether every row is non-negative and sums to 1, to 1e-4."""
    return bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all())


def _check_tensor(what: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        hint = "; torch.from_numpy makes one of an array" if type(value).__name__ == "ndarray" else ""
        raise UserError(f"{what} must be a torch tensor, got {type(value).__name__}{hint}")
