"""Attacks maximise a per-image function of the input; they know neither labels nor networks.

    x_adv = pgd(lambda z: cross_entropy(net(z), y), x, epsilon=8 / 255, step_size=2 / 255, steps=10)

Images live in [0, 1] and radii in the same unit. Randomness comes from the generator that is handed in.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from lib.errors import UserError

Objective = Callable[[Tensor], Tensor]  # x' (N, C, H, W) -> (N,), to be maximised
Start = Callable[[Tensor, Tensor, Generator | None], Tensor]  # (x, epsilon, generator) -> x'


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
) -> Tensor:
    """x' <- P(x' + step_size sign(grad objective(x'))), P the projection to the epsilon-ball of x and to [0, 1].

    FGSM is steps=1 from `at_image` with step_size=epsilon. The last iterate is returned, detached.
    Shapes: x (N, C, H, W) in [0, 1]; epsilon, step_size and steps are numbers or per-image tensors (N,).
    Only the gradient of the input is taken: no parameter's `.grad` is touched. Networks' modes are the caller's.

    Raises:
        UserError: a radius, step size or number of steps is negative.
    """
    radius, size, count = (_per_image(value, x) for value in (epsilon, step_size, steps))
    if min(radius.min(), size.min(), count.min()) < 0:
        raise UserError(f"an attack's radius, step size and steps must be >= 0, got {epsilon}, {step_size}, {steps}")
    x_adv = start(x, radius, generator)
    for t in range(int(count.max())):
        x_adv = x_adv + (t < count) * size * input_gradient(objective, x_adv).sign()
        x_adv = project(x_adv, x, radius)
    return project(x_adv, x, radius)


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


def _per_image(value: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(value, device=x.device, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))
