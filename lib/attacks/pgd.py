"""Attacks maximise a per-image function of the input; they know neither labels nor networks.

    x_adv = pgd(lambda z: cross_entropy(net(z), y), x, epsilon=8 / 255, step_size=2 / 255, steps=10)

Images live in [0, 1] and radii in the same unit. Randomness comes from the generator that is handed in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from lib.errors import UserError

Net = Callable[[Tensor], Tensor]  # x (N, C, H, W) -> logits (N, K)
Objective = Callable[[Tensor], Tensor]  # x' (N, C, H, W) -> (N,), to be maximised
Start = Callable[[Tensor, float | Tensor, Generator | None], Tensor]  # (x, epsilon, generator) -> x'
Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_adv (n, C, H, W), the gradient there, index (n,)) -> (n,) bool: which images go on; False is for good."""


@dataclass(frozen=True)
class PerImage:
    """value(x', *constants), the constants per image (N, ...), so that it can be evaluated on a part of the batch.

    pgd takes images that have finished out of the batch, so the network has to treat images one by one: eval mode. A
    plain function still gets the whole batch at every step.
    """

    value: Callable[..., Tensor]
    constants: tuple[Tensor, ...] = ()

    def __call__(self, x_adv: Tensor) -> Tensor:
        return self.value(x_adv, *self.constants)

    def take(self, index: Tensor) -> "PerImage":
        """The same objective for the images at `index`."""
        return replace(self, constants=tuple(constant[index] for constant in self.constants))


def at_image(x: Tensor, epsilon: float | Tensor, generator: Generator | None = None) -> Tensor:
    """x itself."""
    return x


def uniform(x: Tensor, epsilon: float | Tensor, generator: Generator | None = None) -> Tensor:
    """x + u with u ~ U(-epsilon, epsilon) per pixel; may leave [0, 1] until the first projection."""
    return x + epsilon * (2 * torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) - 1)


def gaussian(x: Tensor, epsilon: float | Tensor, generator: Generator | None = None) -> Tensor:
    """x + 0.001 n with n ~ N(0, 1) per pixel (TRADES); may leave [0, 1] until the first projection."""
    return x + 0.001 * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


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
    jitter: Start = at_image,
) -> Tensor:
    """x' <- P(x' + step_size sign(grad objective(x'))), P the projection to the epsilon-ball of x and to [0, 1].

    FGSM is steps=1 from `at_image` with step_size=epsilon. The last iterate is returned, detached.
    Shapes: x (N, C, H, W) in [0, 1]; epsilon, step_size and steps are numbers or per-image tensors (N,).
    An image stops after its own number of steps, or for good where the `criterion` is False (see `PerImage`).
    `jitter` is applied after every signed step, before the projection: `gaussian` is FAT's code.
    Only the gradient of the input is taken: no parameter's `.grad` is touched. Networks' modes are the caller's.
    """
    if any((value.min() if isinstance(value, Tensor) else value) < 0 for value in (epsilon, step_size, steps)):
        raise UserError(f"an attack's radius, step size and steps must be >= 0, got {epsilon}, {step_size}, {steps}")
    radius, size = (per_image(v, x) if isinstance(v, Tensor) else v for v in (epsilon, step_size))
    x_adv = start(x, radius, generator)
    if criterion is not None or isinstance(steps, Tensor):
        moved = _moving_images(
            objective, x, x_adv, (radius, size, steps), criterion, lambda z, radius: jitter(z, radius, generator)
        )
        return project(moved, x, radius)
    for _ in range(int(steps)):  # without a synchronisation with the device
        moved = x_adv + size * input_gradient(objective, x_adv).sign()
        x_adv = project(jitter(moved, radius, generator), x, radius)
    return project(x_adv, x, radius)


def _moving_images(
    objective: Objective,
    x: Tensor,
    x_adv: Tensor,
    settings: tuple[float | Tensor, ...],
    criterion: Criterion | None,
    noise: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """PGD on the images that still move; the others wait outside of the batch, or inside if the objective wants all."""
    radius, size, steps = (per_image(value, x) for value in settings)
    x_adv, index = x_adv.clone(), torch.arange(len(x), device=x.device)
    for t in range(int(steps.max())):
        index = index[steps[index].flatten() > t]
        if not len(index):
            break
        if isinstance(objective, PerImage):
            gradient = input_gradient(objective.take(index), x_adv[index])
        else:
            gradient = input_gradient(objective, x_adv)[index]
        if criterion is not None:
            going = criterion(x_adv[index], gradient, index)
            index, gradient = index[going], gradient[going]
        moved = noise(x_adv[index] + size[index] * gradient.sign(), radius[index])
        x_adv[index] = project(moved, x[index], radius[index])
    return x_adv


def input_gradient(objective: Objective, x: Tensor) -> Tensor:
    """d objective_i / d x_i for every image i of the batch; no gradient for anything else."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(objective(x).sum(), x)[0]


def project(x_adv: Tensor, x: Tensor, epsilon: float | Tensor) -> Tensor:
    """The nearest point to x_adv with max|x_adv - x| <= epsilon and pixels in [0, 1]."""
    return torch.minimum(torch.maximum(x_adv, x - epsilon), x + epsilon).clamp(0, 1).detach()


def per_image(value: float | Tensor, x: Tensor) -> Tensor:
    """A number or one per image (N,) as a tensor (N, 1, 1, 1) of x's type."""
    ones = [1] * (x.dim() - 1)
    return torch.as_tensor(value, device=x.device, dtype=x.dtype).reshape(-1, *ones).expand(len(x), *ones)
