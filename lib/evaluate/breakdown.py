"""An accuracy taken apart: by class, and by how sure the network is of its answers."""

import torch
from torch import Tensor


def per_class(flags: str, labels: Tensor, classes: int) -> Tensor:
    """The accuracy of every class in %, (classes,), from an accuracy's flags and the images' labels (N,).

    A class without an image is NaN.
    """
    right = torch.tensor([100.0 * (flag == "1") for flag in flags])
    own = labels[: len(flags)].cpu()
    return torch.stack([right[own == c].mean() for c in range(classes)])


def calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """The expected calibration error in points, sum_b |B_b| / N |accuracy(B_b) - confidence(B_b)|, of equal-width bins.

    Logits (N, K), labels (N,); a bin has the images whose largest probability lies in it (Guo et al. 2017).
    """
    confidence, answer = logits.softmax(1).max(1)
    gap = (answer == y).float() - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return 100 * float(torch.zeros(bins).index_add(0, bin_of.cpu(), gap.cpu()).abs().sum()) / len(y)
