"""A network, in eval mode, looked at closely: by radius and steps, the loss around an image, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor, nn

from lib.attacks.folding import folded
from lib.attacks.pgd import input_gradient
from lib.evaluate.attacks import objective_of
from lib.evaluate.sanity import Evidence, percent
from lib.losses import cross_entropy

BINS = 15  # of confidence


def against_radius(net: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float]) -> list[float]:
    """Accuracy in % under PGD-20 at every radius, a quarter of it a step; at radius 0 it is the clean accuracy."""
    return [Evidence(net, x, y, radius, batch_size=len(x)).attacked(folded(net)) for radius in radii]


def against_steps(net: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> list[float]:
    """Accuracy in % at every iterate of one PGD, the start first: steps + 1 numbers."""
    return [percent(right) for right in Evidence(net, x, y, epsilon, batch_size=len(x)).path(folded(net), steps=steps)]


def surface(net: nn.Module, x: Tensor, y: Tensor, epsilon: float, points: int = 21) -> tuple[Tensor, Tensor]:
    """The loss of one image over the plane of its gradient's sign and a random sign: (offsets (P,), losses (P, P)).

    Offsets run from -epsilon to epsilon along both; rows are the gradient's direction. Pixels are cut to [0, 1].
    """
    gradient = input_gradient(objective_of(net, cross_entropy, y), x).sign()
    generator = Generator(x.device).manual_seed(0)
    random = 2 * torch.randint(2, x.shape, generator=generator, device=x.device).to(x.dtype) - 1
    offsets, labels = torch.linspace(-epsilon, epsilon, points, device=x.device), y.expand(points)
    planes = [x + a * gradient + offsets.view(-1, 1, 1, 1) * random for a in offsets]
    with torch.no_grad():
        return offsets, torch.stack([cross_entropy(net(images.clamp(0, 1)), labels) for images in planes])


def calibration_error(logits: Tensor, y: Tensor) -> float:
    """The expected calibration error in points, sum_b |B_b| / N |accuracy(B_b) - confidence(B_b)|, of BINS equal bins.

    Logits (N, K), labels (N,); a bin has the images whose largest probability lies in it (Guo et al. 2017).
    """
    confidence, answer = logits.softmax(1).max(1)
    gap = (answer == y).float() - confidence
    bin_of = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    return 100 * float(torch.zeros(BINS).index_add(0, bin_of.cpu(), gap.cpu()).abs().sum()) / len(y)


def rescued(answers: Mapping[str, Tensor], y: Tensor, k: int = 3) -> tuple[list[int], pd.DataFrame]:
    """k images that the first two of three networks have right and the third wrong; how often every such case occurs.

    `answers` are name -> logits (N, C), y (N,) the true classes. The images are those, of all where there is none, that
    the second network believes most strongly over the third.
    """
    first, second, third = right = [logits.argmax(1) == y for logits in answers.values()]
    wanted = first & second & ~third
    _, belief, other = (logits.softmax(1).gather(1, y[:, None]).squeeze(1) for logits in answers.values())
    lead = (belief - other).masked_fill(~wanted & wanted.any(), -torch.inf)
    images = lead.topk(min(k, int(wanted.sum()) or 1)).indices.tolist()
    cases = pd.DataFrame(dict(zip(answers, np.where(torch.stack(right), "right", "wrong"), strict=True)))
    return images, cases.value_counts().rename("images").reset_index()
