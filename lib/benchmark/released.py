"""What people run today, written out plainly: attacks and training steps with the work that released code wastes.

Nothing here is fast, and nothing here is used to make a result: it is what the benchmark holds the library against,
and what tests hold it equal to. Nets hold modules. Images in [0, 1], radii in the same unit; every form takes the
attack's start x_start (N, C, H, W) from outside, so that both sides can begin at the same images.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lib.data import Split
from lib.losses import smoothed_target, swap_labels

Inner = Callable[["PlainNets", Tensor, Tensor, Tensor], Tensor]  # (nets, x, x', y) -> what the attack maximises
Outer = Callable[["PlainNets", Tensor, Tensor, Tensor], Tensor]  # (nets, x, x', y) -> what training minimises
Gradient = Callable[[Tensor, Tensor], Tensor]  # (loss, x') -> d loss / d x'

D2R_FLOOR = 1e-5  # under the logarithm of the released code's entropies
LAS_TRUE_SHARE = 0.7  # of the smoothed labels in LAS-PGD-AT's code


@dataclass
class PlainNets:
    """The student, and the second network that the method has: a frozen teacher, or a guide that is trained too."""

    student: nn.Module
    other: nn.Module = field(default_factory=nn.Identity)


@dataclass(frozen=True)
class Ball:
    """Radius, step size and number of steps: numbers, or tensors (N,) where every image has its own."""

    epsilon: float | Tensor
    step_size: float | Tensor
    steps: int | Tensor


class Released(NamedTuple):
    """A training step as its authors run it; `other_attacked` is the other network's mode during the attack."""

    inner: Inner
    gradient: Gradient
    outer: Outer
    other_attacked: str = "eval"


def by_backward(loss: Tensor, x_adv: Tensor) -> Tensor:
    """loss.backward(): every weight's gradient is computed as well, and piles up."""
    loss.backward()
    assert x_adv.grad is not None
    return x_adv.grad


def by_grad(loss: Tensor, x_adv: Tensor) -> Tensor:
    """The input's gradient alone; weights that want one keep their activations all the same."""
    return torch.autograd.grad(loss, x_adv)[0]


def attack(inner: Callable[[Tensor], Tensor], gradient: Gradient, x: Tensor, x_start: Tensor, ball: Ball) -> Tensor:
    """The loop of the released codes: every image takes part in every pass, also when its own steps are over."""
    epsilon, step_size, steps = (_like(value, x) for value in (ball.epsilon, ball.step_size, ball.steps))
    x_adv = x_start
    for t in range(int(steps.max())):
        x_adv = x_adv.detach().requires_grad_()
        slope = gradient(inner(x_adv), x_adv)
        x_adv = x_adv.detach() + (t < steps) * step_size * slope.sign()
        x_adv = torch.min(torch.max(x_adv, x - epsilon), x + epsilon).clamp(0, 1)
    return x_adv.detach()


def pgd_with_backward(net: nn.Module, x: Tensor, y: Tensor, x_start: Tensor, ball: Ball) -> Tensor:
    """PGD on the mean cross-entropy by `loss.backward()` (LAS-AT's and Rice's code)."""
    return attack(lambda z: F.cross_entropy(net(z), y), by_backward, x, x_start, ball)


def pgd_by_torchattacks(net: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """torchattacks' PGD, whose uniform start comes from torch's global generator."""
    import torchattacks

    return torchattacks.PGD(net, eps=ball.epsilon, alpha=ball.step_size, steps=ball.steps)(x, y)


def torchattacks_start(x: Tensor, epsilon: float) -> Tensor:
    """The start that `pgd_by_torchattacks` draws next, if the global generator is set back after this."""
    return (x + torch.empty_like(x).uniform_(-epsilon, epsilon)).clamp(0, 1)


def train_step(
    name: str, nets: PlainNets, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, x_start: Tensor, ball: Ball
) -> tuple[Tensor, Tensor]:
    """One step of RELEASED[name] in fp32; returns x' and the loss that training minimised."""
    form = RELEASED[name]
    nets.student.eval()
    with _mode(nets.other, form.other_attacked):
        x_adv = attack(lambda z: form.inner(nets, x, z, y), form.gradient, x, x_start, ball)
    nets.student.train()
    optimizer.zero_grad()
    loss = form.outer(nets, x, x_adv, y)
    loss.backward()
    optimizer.step()
    return x_adv, loss.detach()


def _fool_label(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(nets.student(x_adv), y)


def _leave_clean(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """TRADES: the clean output is computed anew for every step."""
    return _kl(F.softmax(nets.student(x), 1), nets.student(x_adv))


def _fool_guides_answer(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """DYNAT-Inner: the guide is forwarded, in train mode, for every step; its answer is the same each time."""
    return F.cross_entropy(nets.student(x_adv), nets.other(x).argmax(1))


def _leave_other(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """D2R-CAG: the guide's clean output is computed anew for every step."""
    return _kl(F.softmax(nets.other(x), 1), nets.student(x_adv))


def _part_from_other(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """AdaAD, DGAD: the teacher's weights want gradients, so the teacher's activations are all kept."""
    return _kl(F.softmax(nets.other(x_adv), 1), nets.student(x_adv))


def _pgd_at(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(nets.student(x_adv), y)


def _las_pgd_at(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    logits = nets.student(x_adv)
    return F.cross_entropy(logits, smoothed_target(y, logits.shape[1], LAS_TRUE_SHARE))


def _trades(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """x is forwarded twice: once for the label, once as the divergence's target."""
    student, student_adv, again = nets.student(x), nets.student(x_adv), nets.student(x)
    return F.cross_entropy(student, y) + 6.0 * _kl(F.softmax(again, 1), student_adv)


def _dynat(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """The target's clean forward serves batch-norm only, and keeps its activations."""
    student_adv, unused, guide = nets.student(x_adv), nets.student(x), nets.other(x)
    loss = F.cross_entropy(guide, y) + F.cross_entropy(student_adv, guide.argmax(1))
    del unused
    return loss


def _d2r(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    student_adv, student, guide = nets.student(x_adv), nets.student(x), nets.other(x)
    unlike = (_floored(student, guide) - _floored(guide, student)).abs()
    loss = F.cross_entropy(guide, y) + F.mse_loss(student_adv, guide)
    return loss + 30 * _floored(student_adv, guide) + 20 * unlike


def _adaad(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """The clean term has weight 0, and is computed and differentiated."""
    with torch.no_grad():
        teacher, teacher_adv = nets.other(x), nets.other(x_adv)
    student, student_adv = nets.student(x), nets.student(x_adv)
    return 1.0 * _kl(F.softmax(teacher_adv, 1), student_adv) + 0.0 * _kl(F.softmax(teacher, 1), student)


def _dgad(nets: PlainNets, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        teacher, teacher_adv = nets.other(x), nets.other(x_adv)
    student, student_adv = nets.student(x), nets.student(x_adv)
    wrong, count = teacher.argmax(1) != y, len(y)
    loss = 5.0 * F.mse_loss(student_adv.softmax(1), student.softmax(1))
    for part, told, answer in ((wrong, teacher, student), (~wrong, teacher_adv, student_adv)):
        if part.any():
            loss = loss + part.sum() / count * _kl(F.softmax(swap_labels(told, y)[part], 1), answer[part])
    return loss


RELEASED: dict[str, Released] = {
    "pgd_at_uniform": Released(_fool_label, by_backward, _pgd_at),
    "trades_as_released": Released(_leave_clean, by_grad, _trades),
    "dynat_inner": Released(_fool_guides_answer, by_grad, _dynat, "train"),
    "d2r_as_released": Released(_leave_other, by_grad, _d2r),
    "adaad": Released(_part_from_other, by_grad, _adaad),
    "dgad": Released(_part_from_other, by_grad, _dgad),
    "pgd_at_smoothed": Released(_fool_label, by_backward, _las_pgd_at),
}
"""By the name that the method has in lib.methods; LAS-PGD-AT is pgd_at_smoothed with settings per image."""


def _kl(p: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, 1), p, reduction="batchmean")


def _floored(target: Tensor, logits: Tensor) -> Tensor:
    p = F.softmax(target, 1)
    return (p * (p + D2R_FLOOR).log() - p * F.log_softmax(logits, 1)).mean()


def _like(value: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(value, device=x.device, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))


@contextmanager
def _mode(net: nn.Module, wanted: str) -> Iterator[None]:
    """A guide is put back into train mode; a teacher was never in it."""
    before = net.training
    net.train(before and wanted == "train")
    try:
        yield
    finally:
        net.train(before)


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Images cropped and flipped one at a time, as a worker of a DataLoader does it."""

    def __init__(self, split: Split, padding: int = 4) -> None:
        self.images, self.labels, self.padding = split.images.cpu(), split.labels.tolist(), padding

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = F.pad(self.images[i], [self.padding] * 4)
        top, left = torch.randint(2 * self.padding + 1, (2,)).tolist()
        height, width = self.images.shape[2:]
        image = image[:, top : top + height, left : left + width]
        return (image.flip(2) if torch.rand(()) < 0.5 else image).float() / 255, self.labels[i]


def loader(split: Split, batch_size: int, workers: int = 0) -> Any:
    """(x, y) batches by torch's DataLoader, the images augmented one by one and copied to the device by the caller."""
    return DataLoader(OneByOne(split), batch_size, shuffle=True, num_workers=workers)
