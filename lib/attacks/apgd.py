"""Auto-PGD (Croce & Hein 2020) on the cross-entropy and, target by target, on the difference-of-logits ratio.

An image leaves its run when it is first misclassified. A batch whose images have mostly left is filled up with the
targets that come next: their random starts depend on how many images are left by then, so these runs are a bet that
nothing more is broken before them. A bet that is lost costs what was computed; the flags are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Generator, Tensor

from lib.attacks.batches import Batch, Net, Setting
from lib.attacks.pgd import input_gradient
from lib.losses import cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits (n, C), labels (n,), targets (n,)) -> (n,)
EVERY = {"cpu": 1}  # how many iterations a broken image stays for: elsewhere to ask is to wait for the device
SELDOM = 10


def apgd_ce(net: Net, batch: Batch, setting: Setting) -> Tensor:
    """x' of APGD on the cross-entropy."""
    x, y = batch
    start = _random_start(x, setting.epsilon, Generator().manual_seed(setting.seed))
    runs = _begin(x, start, y, y, torch.zeros_like(y), setting)
    return _filled(x, torch.arange(len(x), device=x.device), _ascend(net, runs, _ce, setting.steps))


def apgd_t(net: Net, batch: Batch, setting: Setting) -> Tensor:
    """x' of APGD on the targeted DLR loss, targets from the likeliest wrong class on."""
    x, y = batch
    with torch.no_grad():
        ranking = net(x).sort(1).indices
    x_adv, left = x.clone(), torch.arange(len(x), device=x.device)
    generator, target = Generator().manual_seed(setting.seed), 0
    while target < setting.targets and len(left):
        count = max(1, min(setting.targets - target, setting.width // len(left)))
        states, starts = [], []
        for _ in range(count):
            starts.append(_random_start(x[left], setting.epsilon, generator))
            states.append(generator.get_state())
        images, order = left.repeat(count), torch.arange(count, device=x.device).repeat_interleave(len(left))
        wanted = ranking[images, ranking.shape[1] - 2 - target - order]
        runs = _begin(x[images], torch.cat(starts), y[images], wanted, order, setting)
        where, found = _ascend(net, runs, dlr_targeted, setting.steps)
        first = int(order[where].min()) if len(where) else count - 1
        valid = order[where] == first
        broken = images[where[valid]]
        x_adv[broken] = found[valid]
        left = left[~torch.isin(left, broken)]
        generator.set_state(states[first])
        target += first + 1
    return x_adv


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), with z_(1) >= z_(2) >= ... the sorted logits; (n,)."""
    ordered, each = logits.sort(1).values, torch.arange(len(logits), device=logits.device)
    spread = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12
    return -(logits[each, y] - logits[each, target]) / spread


def _ce(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(logits, y)


def _random_start(x: Tensor, epsilon: float, generator: Generator) -> Tensor:
    """x + epsilon u / max|u| with u ~ U(-1, 1), cut to [0, 1]; drawn on the CPU, as the authors draw it."""
    u = (2 * torch.rand(x.shape, generator=generator) - 1).to(x.device)
    largest = u.abs().flatten(1).amax(1).view(-1, *[1] * (x.dim() - 1))
    return (x + epsilon * (u / (largest + 1e-12))).clamp(0, 1)


@dataclass(frozen=True)
class _Runs:
    """Runs of Auto-PGD side by side, one per image and target; every field has one entry per run."""

    number: Tensor  # in the order that they were begun in
    order: Tensor  # of its target: a broken image makes the runs for later targets void
    y: Tensor
    target: Tensor
    low: Tensor  # the ball, cut to [0, 1]
    high: Tensor
    x_adv: Tensor
    x_before: Tensor
    best: Tensor  # the iterate of the highest loss
    best_gradient: Tensor
    gradient: Tensor
    loss: Tensor
    best_loss: Tensor
    best_loss_at_check: Tensor
    step: Tensor  # (n, 1, 1, 1)
    halved: Tensor  # at the last check
    rises: Tensor  # of the loss, since the last check
    broken: Tensor
    found: Tensor  # the last misclassified iterate

    def take(self, keep: Tensor) -> "_Runs":
        return _Runs(*(getattr(self, field.name)[keep] for field in fields(self)))


def _begin(x: Tensor, start: Tensor, y: Tensor, target: Tensor, order: Tensor, setting: Setting) -> _Runs:
    """Runs at their starts, nothing evaluated yet."""
    epsilon, zero = setting.epsilon, torch.zeros(len(x), device=x.device)
    number, never = torch.arange(len(x), device=x.device), torch.zeros_like(y, dtype=torch.bool)
    low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    step = torch.full((len(x), *[1] * (x.dim() - 1)), 2 * epsilon, device=x.device)
    images = (low, high, start, start, start, start, start)
    return _Runs(number, order, y, target, *images, zero, zero, zero, step, ~never, zero, never, start)


def _ascend(net: Net, runs: _Runs, loss: Loss, steps: int) -> tuple[Tensor, Tensor]:
    """The numbers of the runs that found a misclassified point, and the points; `runs` are at their starts."""
    every, checks = EVERY.get(runs.x_adv.device.type, SELDOM), checkpoints(steps)
    runs = _evaluated(net, runs, loss)
    runs = replace(runs, best_gradient=runs.gradient, best_loss=runs.loss, best_loss_at_check=runs.loss)
    zero = torch.zeros_like(runs.loss)
    runs = replace(runs, loss=zero, rises=zero)  # the authors compare the first step's loss with 0, not the start's
    numbers, points = [], []
    for i in range(steps + 1):
        if (i % every == 0 or i == steps) and bool(runs.broken.any()):
            numbers.append(runs.number[runs.broken])
            points.append(runs.found[runs.broken])
            runs = runs.take(~runs.broken & (runs.order <= runs.order[runs.broken].min()))
        if i == steps or not len(runs.y):
            break
        runs = _improved(_evaluated(net, _moved(runs, first=i == 0), loss))
        if window := checks.get(i):
            runs = _checked(runs, window)
    return torch.cat([runs.number[:0], *numbers]), torch.cat([runs.x_adv[:0], *points])


def _evaluated(net: Net, runs: _Runs, loss: Loss) -> _Runs:
    """Loss and gradient at the iterates, and whether they are misclassified."""
    kept: list[Tensor] = []

    def objective(z: Tensor) -> Tensor:
        logits = net(z)
        kept.extend((logits.detach(), loss(logits, runs.y, runs.target)))
        return kept[1]

    gradient = input_gradient(objective, runs.x_adv)
    logits, value = kept[0], kept[1].detach()
    wrong = logits.argmax(1) != runs.y
    found = torch.where(_wide(wrong, runs.x_adv), runs.x_adv, runs.found)
    rises = runs.rises + (value > runs.loss)
    return replace(runs, gradient=gradient, loss=value, rises=rises, broken=runs.broken | wrong, found=found)


def _moved(runs: _Runs, first: bool) -> _Runs:
    """A signed step from the iterate, and from there a quarter back in favour of the last step."""
    x_adv, weight = runs.x_adv, 1.0 if first else 0.75
    stepped = (x_adv + runs.step * runs.gradient.sign()).clamp(runs.low, runs.high)
    last = x_adv - runs.x_before
    moved = (x_adv + (stepped - x_adv) * weight + last * (1 - weight)).clamp(runs.low, runs.high)
    return replace(runs, x_adv=moved, x_before=x_adv)


def _improved(runs: _Runs) -> _Runs:
    better = runs.loss > runs.best_loss
    wide = _wide(better, runs.x_adv)
    return replace(
        runs,
        best=torch.where(wide, runs.x_adv, runs.best),
        best_gradient=torch.where(wide, runs.gradient, runs.best_gradient),
        best_loss=torch.where(better, runs.loss, runs.best_loss),
    )


def _checked(runs: _Runs, window: int) -> _Runs:
    """Half the step, from the best point on, where the loss rose too seldom or the best is that of the last check."""
    seldom = runs.rises <= 0.75 * window
    stuck = ~runs.halved & (runs.best_loss_at_check >= runs.best_loss)
    halved = seldom | stuck
    wide = _wide(halved, runs.x_adv)
    return replace(
        runs,
        step=torch.where(_wide(halved, runs.step), runs.step / 2, runs.step),
        x_adv=torch.where(wide, runs.best, runs.x_adv),
        gradient=torch.where(wide, runs.best_gradient, runs.gradient),
        halved=halved,
        best_loss_at_check=runs.best_loss,
        rises=torch.zeros_like(runs.rises),
    )


def checkpoints(steps: int) -> dict[int, int]:
    """{iteration: length of the window that ends with it} at which step sizes are reconsidered."""
    window, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = {}, window - 1
    while at < steps:
        found[at] = window
        window = max(window - less, least)
        at += window
    return found


def _filled(x: Tensor, images: Tensor, found: tuple[Tensor, Tensor]) -> Tensor:
    x_adv = x.clone()
    x_adv[images[found[0]]] = found[1]
    return x_adv


def _wide(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (like.dim() - 1))
