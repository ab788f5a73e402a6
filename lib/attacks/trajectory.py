"""PGD's accuracies after several numbers of steps from one run: the shorter attacks are prefixes of the longest."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from lib.attacks.pgd import PerImage, input_gradient, project, uniform_in_image

Net = Callable[[Tensor], Tensor]


def snapshots(
    net: Net,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    epsilon: float,
    step_size: float,
    at: Sequence[int],
    freeze: bool,
    batch_size: int,
    generator: Generator,
) -> dict[int, Tensor]:
    """{n: x' (N, C, H, W)} after n steps of PGD on loss(net(x'), y) for every n in `at`, from one uniform start.

    Equal to one `pgd` per n and batch with equally seeded generators: the starts are drawn batch by batch. With
    `freeze` an image stays where it is first misclassified and leaves; the next one in line takes its place, so that
    every pass but the last is of a full batch. `net` has to treat images one by one. Shapes: x (N, C, H, W), y (N,).
    """
    radius = x.new_tensor(epsilon)
    x_adv = torch.cat([uniform_in_image(part, radius, generator) for part in x.split(batch_size)])
    found = {n: x_adv.clone() for n in at}
    steps, last = torch.zeros_like(y), max(at)
    waiting = torch.arange(len(x), device=x.device)
    while len(waiting):
        index, rest = waiting[:batch_size], waiting[batch_size:]
        going = _step(net, x, y, loss, x_adv, index, epsilon, step_size, freeze)
        steps[index] += 1
        for n in at:
            behind = index[steps[index] <= n]  # a frozen image is at its end for every n to come
            found[n][behind] = x_adv[behind]
        waiting = torch.cat([index[going & (steps[index] < last)], rest])
    return {n: project(images, x, radius) for n, images in found.items()}


def _step(
    net: Net,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    x_adv: Tensor,
    index: Tensor,
    epsilon: float,
    step_size: float,
    freeze: bool,
) -> Tensor:
    """Move the images at `index` in place; which of them go on, (n,) bool."""
    answers: list[Tensor] = []

    def value(z: Tensor, labels: Tensor) -> Tensor:
        logits = net(z)
        answers.append(logits.detach())
        return loss(logits, labels)

    gradient = input_gradient(PerImage(value, (y[index],)), x_adv[index])
    going = answers[0].argmax(1) == y[index] if freeze else torch.ones_like(index, dtype=torch.bool)
    moving = index[going]
    x_adv[moving] = project(x_adv[moving] + step_size * gradient[going].sign(), x[moving], epsilon)
    return going
