"""An attack that is recorded once and replayed trains every method to the weights that the plain path does."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from recorder import Recorder

from lib.attacks.pgd import pgd
from lib.data import Split
from lib.methods import METHODS
from lib.train import Schedule, TrainingExtras, build_training

ATTACKING = [name for name, method in METHODS.items() if method.objective is not None]
BATCHES = 3  # the last of them is smaller


def trained(name, nets, execution, record=None):
    """One epoch of batches of four and of two images, on copies of the networks."""
    method, (student, other) = METHODS[name], map(deepcopy, nets)
    images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    training = build_training(
        student,
        other if method.needs_teacher else None,
        method,
        partial(pgd, epsilon=0.1, step_size=0.03, steps=3),
        Split(images, torch.arange(10)),
        Schedule(2, batch_size=4, lr=0.05),
        lambda net: 0.0,
        extras=TrainingExtras(other if method.trains_guide else None),
        execution=execution,
    )
    training.engine.record = record
    training.epoch()
    return training


@pytest.mark.parametrize("name", ATTACKING)
def test_a_method_whose_attack_is_recorded_reaches_the_plain_paths_weights(name, make_net):
    graph, nets, method = Recorder(), (make_net(), make_net()), METHODS[name]
    plain, recorded = trained(name, nets, "plain"), trained(name, nets, "fast", graph)
    whole = method.attack_mode == "eval" and method.criterion is None
    assert (graph.records, graph.replays) == ((1, BATCHES) if whole else (0, 0))
    for part in ("student", "guide") if method.trains_guide else ("student",):
        own, other = getattr(recorded, part).state_dict(), getattr(plain, part).state_dict()
        for key in own:
            torch.testing.assert_close(own[key], other[key], atol=1e-5, rtol=1e-4, msg=lambda text, key=key: key + text)
