"""Losses as pure functions of logits: one value per image, (N,). The training loop takes the mean, once.

Where nothing else is written, logits and targets are (N, C), y holds class indices (N,), (N,) is returned, and gradient
flows into every argument.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_c t_c log p_c, with p = softmax(logits) and target (N,) class indices or (N, C) probabilities."""
    return F.cross_entropy(logits, target, reduction="none")


def kl(target: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || q) = sum_c p_c (log p_c - log q_c), with p = softmax(target / T) and q = softmax(logits / T).

    Both are logits. The result is not multiplied by T^2: a method that wants it does so itself.
    """
    log_p = (target / temperature).log_softmax(1)
    log_q = (logits / temperature).log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def kl_floored(target: Tensor, logits: Tensor, floor: float) -> Tensor:
    """sum_c p_c (log p_c - log(q_c + floor)), with p = softmax(target) and q = softmax(logits) (MART's code)."""
    p, q = target.softmax(1), logits.softmax(1)
    return (p * (target.log_softmax(1) - (q + floor).log())).sum(1)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1 - max_{j != y} p_j), with p = softmax(logits) and 1 the code's 1.0001 + 1e-12 (MART)."""
    others = logits.softmax(1).scatter(1, y[:, None], float("-inf"))
    return cross_entropy(logits, y) - (1.0001 - others.amax(1) + 1e-12).log()


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y: positive where the image is misclassified (Carlini & Wagner 2017)."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.amax(1) - own.squeeze(1)


def swap_labels(logits: Tensor, y: Tensor) -> Tensor:
    """Exchange the largest logit with the true class's; equal to swapping the probabilities (DGAD eqs. 6, 7).

    Where the prediction is already y nothing changes. Returns (N, C), a copy.
    """
    top, own = logits.argmax(1, keepdim=True), y[:, None]
    swapped = logits.scatter(1, top, logits.gather(1, own))
    return swapped.scatter(1, own, logits.gather(1, top))


def smooth_labels(logits: Tensor, y: Tensor, share: float) -> Tensor:
    """Where the prediction is not y: log((1 - a) onehot(y) + a / C), a = share; elsewhere the logits as they are.

    Returns (N, C), to be used as logits. share in (0, 1]. DGAD's Table 3, first row.
    """
    classes = logits.shape[1]
    smooth = torch.full_like(logits, share / classes).scatter(1, y[:, None], 1 - share + share / classes)
    return torch.where((logits.argmax(1) != y)[:, None], smooth.log(), logits)


def mix_labels(logits: Tensor, y: Tensor, share: float) -> Tensor:
    """Where the prediction is not y: log(a p + (1 - a) onehot(y)), p = softmax(logits), a = share; else the logits.

    Returns (N, C), to be used as logits. share in (0, 1]. DGAD's Table 3, second row.
    """
    p = share * logits.softmax(1)
    mixed = p.scatter_add(1, y[:, None], torch.full_like(p[:, :1], 1 - share))
    return torch.where((logits.argmax(1) != y)[:, None], mixed.log(), logits)


def softmax_mse(a: Tensor, b: Tensor) -> Tensor:
    """(1/C) ||softmax(a) - softmax(b)||_2^2 (DGAD's consistency term as its code has it)."""
    return (a.softmax(1) - b.softmax(1)).square().mean(1)


def softmax_distance(a: Tensor, b: Tensor) -> Tensor:
    """||softmax(a) - softmax(b)||_2, not squared (DGAD's consistency as printed); its gradient at a = b is set to 0."""
    squared = (a.softmax(1) - b.softmax(1)).square().sum(1)
    return squared.clamp_min(1e-12).sqrt()


def logit_mse(a: Tensor, b: Tensor) -> Tensor:
    """(1/C) ||a - b||_2^2 of the logits themselves (LBGAT)."""
    return (a - b).square().mean(1)


def reinforce(log_prob: Tensor, reward: Tensor) -> Tensor:
    """-r log p(a) (N,), r detached: minus its mean's gradient is an unbiased estimate of grad E[r] (Williams 1992)."""
    return -reward.detach() * log_prob


def smoothed_target(y: Tensor, classes: int, true_share: float) -> Tensor:
    """(N, C) probabilities: true_share in (0, 1] for the true class, (1 - true_share) / (C - 1) for every other one."""
    rest = (1 - true_share) / (classes - 1)
    return torch.full((len(y), classes), rest, device=y.device).scatter(1, y[:, None], true_share)


def smoothed_cross_entropy(logits: Tensor, y: Tensor, true_share: float) -> Tensor:
    """-sum_c t_c log p_c, with t the smoothed target of y and p = softmax(logits)."""
    return cross_entropy(logits, smoothed_target(y, logits.shape[1], true_share).to(logits.dtype))
