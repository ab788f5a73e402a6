"""A protocol as the papers' helpers run it: what the evaluation here is timed against, and has the flags of.

Every column is a run of its own, on the network as it is with parameters that want gradients; `loss.backward()`
differentiates them too; a frozen image stays in the batch. AutoAttack is pyautoattack's, as it comes.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from lib.attacks.pgd import project, uniform_in_image
from lib.data import Split, to_float
from lib.errors import UserError, choose
from lib.evaluate import STEPPED, Accuracy, AttackSpec
from lib.losses import cross_entropy
from lib.models.modes import mode

Loss = Callable[[Tensor, Tensor], Tensor]


def evaluate(net: nn.Module, test: Split, columns: tuple[AttackSpec, ...]) -> list[Accuracy]:
    """The accuracy of `net`, in eval mode, under every column: clean, FGSM, PGD and C&W, AutoAttack.

    Raises:
        UserError: a column's attack is none of these.
    """
    with mode(net, train=False):
        return [_accuracy(net, test, column) for column in columns]


def _accuracy(net: nn.Module, test: Split, column: AttackSpec) -> Accuracy:
    if column.restarts > 1 or column.crafting != "fp32":
        raise UserError(f"column {column.name}: the plain path has neither restarts nor another precision than fp32")
    attack = _autoattack if column.attack == "autoattack" else _batchwise
    part = test.take(slice(0, column.images or len(test.labels)))
    x_adv = attack(net, to_float(part.images), part.labels, column)
    with torch.no_grad():
        logits = torch.cat([net(images) for images in x_adv.split(column.batch_size)])
    right = (logits.argmax(1) == part.labels).tolist()
    net.zero_grad(set_to_none=True)
    return Accuracy(column, sum(right), len(right), "".join("01"[flag] for flag in right))


def _batchwise(net: nn.Module, x: Tensor, y: Tensor, column: AttackSpec) -> Tensor:
    attack = choose("attack of the plain path", column.attack, ATTACKS)
    generator = Generator(x.device).manual_seed(column.seed)
    batches = zip(x.split(column.batch_size), y.split(column.batch_size), strict=True)
    return torch.cat([attack(net, *batch, column, generator) for batch in batches])


def _clean(net: nn.Module, x: Tensor, y: Tensor, column: AttackSpec, generator: Generator) -> Tensor:
    return x


def _fgsm(net: nn.Module, x: Tensor, y: Tensor, column: AttackSpec, generator: Generator) -> Tensor:
    return _stepped(net, x, x, y, cross_entropy, column.epsilon, column.epsilon)[0]


def _pgd(net: nn.Module, x: Tensor, y: Tensor, column: AttackSpec, generator: Generator) -> Tensor:
    """PGD from a uniform start; a frozen image is computed on, but stays where it is first misclassified."""
    loss, freeze = STEPPED[column.attack]
    x_adv = uniform_in_image(x, x.new_tensor(column.epsilon), generator)
    for _ in range(column.steps):
        moved, right = _stepped(net, x_adv, x, y, loss, column.step_size, column.epsilon)
        if freeze and not bool(right.any()):
            break
        x_adv = torch.where(right.view(-1, 1, 1, 1), moved, x_adv) if freeze else moved
    return x_adv


def _stepped(
    net: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, loss: Loss, step_size: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    """A signed step from x_adv, and which images were right there."""
    z = x_adv.detach().requires_grad_()
    logits = net(z)
    loss(logits, y).mean().backward()
    assert z.grad is not None
    return project(z.detach() + step_size * z.grad.sign(), x, epsilon), logits.argmax(1) == y


def _autoattack(net: nn.Module, x: Tensor, y: Tensor, column: AttackSpec) -> Tensor:
    from pyautoattack import AutoAttack

    with torch.no_grad():
        classes = net(x[:1]).shape[1]
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):  # it re-seeds the global one
        attack = AutoAttack(net, norm="Linf", eps=column.epsilon, version="standard", device=x.device, seed=column.seed)
        attack.attacks_to_run = list(column.stages)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
        return attack.run_standard_evaluation(x, y, batch_size=column.batch_size)[0].detach()


ATTACKS = {"clean": _clean, "fgsm": _fgsm, **dict.fromkeys(STEPPED, _pgd)}
