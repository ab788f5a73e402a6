"""AutoAttack's stages by the authors' code, as pyautoattack has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lib.attacks.batches import Batch, Net, Setting


def apgd_ce(net: Net, batch: Batch, setting: Setting) -> Tensor:
    """APGD on the cross-entropy, one restart."""
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(net, n_iter=setting.steps, eps=setting.epsilon, seed=setting.seed, device=batch.x.device)
    return _perturbed(attack, batch)


def apgd_t(net: Net, batch: Batch, setting: Setting) -> Tensor:
    """APGD on the targeted difference-of-logits ratio, one target after another."""
    from pyautoattack.autopgd_base import APGDAttack_targeted

    given = dict(n_iter=setting.steps, eps=setting.epsilon, seed=setting.seed, device=batch.x.device)
    return _perturbed(APGDAttack_targeted(net, n_target_classes=setting.targets, **given), batch)


def fab_t(net: Net, batch: Batch, setting: Setting) -> Tensor:
    """Targeted FAB."""
    from pyautoattack.fab_pt import FABAttack_PT

    given = dict(n_iter=setting.steps, eps=setting.epsilon, seed=setting.seed, device=batch.x.device)
    return _perturbed(FABAttack_PT(net, targeted=True, n_target_classes=setting.targets, **given), batch)


def square(net: Net, batch: Batch, setting: Setting) -> Tensor:
    """Square, its schedule not rescaled."""
    from pyautoattack.square import SquareAttack

    given = dict(n_queries=setting.queries, eps=setting.epsilon, seed=setting.seed, device=batch.x.device)
    return _perturbed(SquareAttack(net, resc_schedule=False, **given), batch)


def _perturbed(attack: Any, batch: Batch) -> Tensor:
    with _own_random_numbers(batch.x), torch.no_grad():
        return attack.perturb(batch.x.clone(), batch.y.clone()).detach()


@contextmanager
def _own_random_numbers(x: Tensor) -> Iterator[None]:
    """The authors' code seeds the global generators; they are put back."""
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        yield


REFERENCE = {"apgd-ce": apgd_ce, "apgd-t": apgd_t, "fab-t": fab_t, "square": square}
