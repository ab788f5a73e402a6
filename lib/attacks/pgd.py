"""Attacks maximise a per-image function of the input; they know neither labels nor networks.

    x_adv = pgd(lambda z: cross_entropy(net(z), y), x, epsilon=8 / 255, step_size=2 / 255, steps=10)

Images live in [0, 1] and radii in the same unit. Randomness comes from the generator that is handed in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from lib.errors import UserError

Objective = Callable[[Tensor], Tensor]  # x' (N, C, H, W) -> (N,), to be maximised
Start = Callable[[Tensor, Tensor, Generator | None], Tensor]  # (x, epsilon, generator) -> x'


@dataclass(frozen=True)
class PerImage:
    """value(x', *constants), the constants per image (N, ...), so that a part of the batch can be asked.

    Where images finish at different times, pgd takes those that have finished out of the batch; a plain function
    still gets the whole batch at every step. The network has to treat images one by one: eval mode.
    """

    value: Callable[..., Tensor]
    constants: tuple[Tensor, ...] = ()

    def __call__(self, x_adv: Tensor) -> Tensor:
        return self.value(x_adv, *self.constants)

    def take(self, index: Tensor) -> "PerImage":
        """The same objective for the images at `index`."""
        return replace(self, constants=tuple(constant[index] for constant in self.constants))


class Criterion(Protocol):
    """Which of the moving images go on: asked before every step, with the gradient that the step would take."""

    def __call__(self, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        """(n,) bool for the images at `index` (n,) of the batch, at x_adv (n, C, H, W); False is for good."""


def at_image(x: Tensor, epsilon: Tensor, generator: Generator | None = None) -> Tensor:
    """x itself."""
    return x


def uniform(x: Tensor, epsilon: Tensor, generator: Generator | None = None) -> Tensor:
    """x + u with u ~ U(-epsilon, epsilon) per pixel; may leave [0, 1] until the first projection."""
    return x + epsilon * (2 * _like(torch.rand, x, generator) - 1)


def gaussian(x: Tensor, epsilon: Tensor, generator: Generator | None = None) -> Tensor:
    """x + 0.001 n with n ~ N(0, 1) per pixel (TRADES); may leave [0, 1] until the first projection."""
    return x + 0.001 * _like(torch.randn, x, generator)


def clipped(start: Start) -> Start:
    """The same start, cut to [0, 1] before the first gradient is taken."""
    return lambda x, epsilon, generator: start(x, epsilon, generator).clamp(0, 1)


uniform_in_image = clipped(uniform)
gaussian_in_image = clipped(gaussian)


def pgd(
    objective: Objective,
    x: Tensor,
    *,
    epsilon: float | Tensor,
    step_size: float | Tensor,
    steps: int | Tensor,
    start: Start = uniform_in_image,
    generator: Generator | None = None,
    criterion: Criterion | None = None,
) -> Tensor:
    """x' <- P(x' + step_size sign(grad objective(x'))), P the projection to the epsilon-ball of x and to [0, 1].

    FGSM is steps=1 from `at_image` with step_size=epsilon. The last iterate is returned, detached.
    Shapes: x (N, C, H, W) in [0, 1]; epsilon, step_size and steps are numbers or per-image tensors (N,).
    An image stops after its own number of steps, or for good when `criterion` says so (`PerImage`: what that saves).
    Only the gradient of the input is taken: no parameter's `.grad` is touched. Networks' modes are the caller's.

    Raises:
        UserError: a radius, step size or number of steps is negative.
    """
    radius, size, count = (per_image(value, x) for value in (epsilon, step_size, steps))
    if min(radius.min(), size.min(), count.min()) < 0:
        raise UserError(f"an attack's radius, step size and steps must be >= 0, got {epsilon}, {step_size}, {steps}")
    x_adv = start(x, radius, generator)
    if criterion is None and count.numel() == 1:
        return project(ascend(objective, x, x_adv, radius, size, int(count)), x, radius)
    return _pgd_while(objective, x, x_adv, radius, size, count, criterion or _always)


def ascend(objective: Objective, x: Tensor, x_adv: Tensor, radius: Tensor, size: Tensor, steps: int) -> Tensor:
    """`steps` signed steps of the whole batch from x_adv; nothing in it asks the device for a number.

    Shapes: x and x_adv (N, C, H, W); radius and size broadcast against them.
    """
    for _ in range(steps):
        x_adv = project(x_adv + size * input_gradient(objective, x_adv).sign(), x, radius)
    return x_adv


def _pgd_while(
    objective: Objective, x: Tensor, x_adv: Tensor, radius: Tensor, size: Tensor, count: Tensor, criterion: Criterion
) -> Tensor:
    """PGD on the images that still move; the others wait outside of the batch, or inside if the objective wants all."""
    radius, size, count = (value.expand(len(x), *value.shape[1:]) for value in (radius, size, count))
    index = torch.arange(len(x), device=x.device)
    for t in range(int(count.max())):
        index = index[count[index].flatten() > t]
        if not len(index):
            break
        gradient = _gradient_at(objective, x_adv, index)
        going = criterion(x_adv[index], gradient, index)
        index, gradient = index[going], gradient[going]
        x_adv = x_adv.index_copy(
            0, index, project(x_adv[index] + size[index] * gradient.sign(), x[index], radius[index])
        )
    return project(x_adv, x, radius)


def _gradient_at(objective: Objective, x_adv: Tensor, index: Tensor) -> Tensor:
    if isinstance(objective, PerImage):
        return input_gradient(objective if len(index) == len(x_adv) else objective.take(index), x_adv[index])
    return input_gradient(objective, x_adv)[index]


def _always(x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
    return torch.ones_like(index, dtype=torch.bool)


def input_gradient(objective: Objective, x: Tensor) -> Tensor:
    """d objective_i / d x_i for every image i of the batch; no gradient for anything else."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(objective(x).sum(), x)[0]


def project(x_adv: Tensor, x: Tensor, epsilon: float | Tensor) -> Tensor:
    """The nearest point to x_adv with max|x_adv - x| <= epsilon and pixels in [0, 1]."""
    return torch.minimum(torch.maximum(x_adv, x - epsilon), x + epsilon).clamp(0, 1).detach()


def _like(draw: Callable[..., Tensor], x: Tensor, generator: Generator | None) -> Tensor:
    return draw(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def per_image(value: float | Tensor, x: Tensor) -> Tensor:
    """A number or one per image (N,) as a tensor that broadcasts against x (N, C, H, W)."""
    return torch.as_tensor(value, device=x.device, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))
