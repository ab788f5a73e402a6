"""The papers' way to evaluate, written out plainly, leaves the same images right as the library's, one by one."""

import pytest
import torch

from lib import benchmark
from lib.data import Split
from lib.errors import UserError
from lib.evaluate import AttackSpec, evaluate

BALL = {"epsilon": 0.04, "step_size": 0.02, "steps": 6, "batch_size": 7}
COLUMNS = (
    AttackSpec("clean", "clean"),
    AttackSpec("FGSM", "fgsm", 0.04),
    *(AttackSpec(f"PGD-{steps}", "pgd_frozen", **{**BALL, "steps": steps}) for steps in (2, 6)),
    AttackSpec("PGD", "pgd", **BALL),
    AttackSpec("CW", "cw_frozen", **BALL, seed=2),
    AttackSpec("CW, 9 images", "cw", **BALL, images=9),
    AttackSpec("AA", "autoattack", 0.04, batch_size=7, seed=3, stages=("apgd-ce",)),
)


@pytest.fixture
def case(make_net):
    net, x = make_net().eval(), torch.rand(17, 3, 4, 4)
    y = net(x).argmax(1)
    y[::5] = (y[::5] + 1) % 10
    return net, Split(x, y)


def test_the_plain_path_has_the_evaluations_flags_column_by_column(case):
    plain = [benchmark.flags(*case, column) for column in COLUMNS]
    assert plain == [accuracy.flags for accuracy in evaluate(*case, COLUMNS)]
    right = [flags.count("1") for flags in plain]
    assert right[0] == 13
    assert all(0 < k < 13 for k in right[1:])


def test_parameters_get_gradients_on_the_plain_path_and_none_is_left_behind(case):
    net, test = case
    wanted = []
    net[0].register_forward_hook(lambda module, given, out: wanted.append(module.weight.requires_grad))
    benchmark.flags(net.train(), test, COLUMNS[2])
    assert all(wanted)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_an_attack_that_no_script_of_the_papers_has_is_refused(case):
    with pytest.raises(UserError, match="plain path 'cw2'"):
        benchmark.flags(*case, AttackSpec("CW2", "cw2", steps=2))
