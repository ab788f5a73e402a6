"""What an attack sees of a network: accuracy as the radius and the steps grow, and the loss around an image."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from lib.attacks.folding import folded
from lib.attacks.pgd import PerImage, input_gradient, pgd
from lib.losses import cross_entropy


class Scaled(nn.Module):
    """factor * net(x): the same answers, and a softmax so sure of itself that its gradient rounds to zero."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.factor * self.net(x)


def against_radius(
    net: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float], steps: int = 20, seed: int = 0
) -> list[float]:
    """Accuracy in % under PGD at every radius (in [0, 1]), a quarter of it a step; the network is in eval mode.

    Shapes: x (N, C, H, W) in [0, 1], y (N,). At radius 0 it is the clean accuracy, and a sound attack gets everything
    once any image may become any other.
    """
    crafting = folded(net)
    found = []
    for radius in radii:
        generator = Generator(x.device).manual_seed(seed)
        objective = PerImage(lambda z, labels: cross_entropy(crafting(z), labels), (y,))
        x_adv = pgd(objective, x, epsilon=radius, step_size=radius / 4, steps=steps, generator=generator)
        found.append(_accuracy(net, x_adv, y))
    return found


def against_steps(net: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int, seed: int = 0) -> list[float]:
    """Accuracy in % at every iterate of one PGD, the start first: steps + 1 numbers."""
    crafting, found = folded(net), []

    def look(x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        found.append(_accuracy(net, x_adv, y))
        return torch.ones_like(index, dtype=torch.bool)

    generator = Generator(x.device).manual_seed(seed)
    objective = PerImage(lambda z, labels: cross_entropy(crafting(z), labels), (y,))
    at_end = pgd(objective, x, epsilon=epsilon, step_size=epsilon / 4, steps=steps, generator=generator, criterion=look)
    return [*found, _accuracy(net, at_end, y)]


def surface(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    points: int = 21,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> tuple[Tensor, Tensor]:
    """The loss of one image over the plane of its gradient's sign and a random sign: (offsets (P,), losses (P, P)).

    Shapes: x (1, C, H, W), y (1,). Offsets run from -epsilon to epsilon along both; rows are the gradient's direction.
    Pixels are cut to [0, 1].
    """
    gradient = input_gradient(PerImage(lambda z, labels: loss(net(z), labels), (y,)), x).sign()
    generator = Generator(x.device).manual_seed(seed)
    random = 2 * torch.randint(2, x.shape, generator=generator, device=x.device).to(x.dtype) - 1
    offsets = torch.linspace(-epsilon, epsilon, points, device=x.device)
    with torch.no_grad():
        losses = [_losses(net, x + a * gradient + offsets.view(-1, 1, 1, 1) * random, y, loss) for a in offsets]
    return offsets, torch.stack(losses)


def _losses(net: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return loss(net(x.clamp(0, 1)), y.expand(len(x)))


def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).float().mean())
