import pytest
import torch

from lib.benchmark import plain
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
    AttackSpec("AA", "autoattack", 0.04, batch_size=7, seed=3, stages=("apgd-ce",)),
)


@pytest.fixture
def case(make_net):
    net, x = make_net().eval(), torch.rand(17, 3, 4, 4)
    y = net(x).argmax(1)
    y[::5] = (y[::5] + 1) % 10
    return net, Split(x, y)


def test_the_plain_path_has_the_evaluations_flags_column_by_column(case):
    both = (plain.evaluate(*case, COLUMNS), evaluate(*case, COLUMNS))
    flags, ours = ([(a.column, a.k, a.n, a.flags) for a in found] for found in both)
    assert flags == ours


def test_a_network_that_preprocesses_in_a_hook_is_attacked_with_it(case):
    net, test = case
    evaluate(net, test, COLUMNS[3:5])  # folded once without it
    net.register_forward_pre_hook(lambda module, inputs: (1 - inputs[0],))
    y = net(test.images).argmax(1)
    both = [[a.flags for a in path(net, Split(test.images, y), COLUMNS[1:])] for path in (plain.evaluate, evaluate)]
    assert both[0] == both[1]
    assert any("0" in flags for flags in both[0])


def test_the_plain_path_is_no_test_of_nothing(case):
    found = [accuracy.k for accuracy in plain.evaluate(*case, COLUMNS)]
    assert found[0] == 13
    assert all(0 < k < 13 for k in found[1:])


def test_parameters_want_gradients_on_the_plain_path_and_none_is_left_behind(case, monkeypatch):
    net, test = case
    seen = []
    net[0].register_forward_hook(lambda module, given, out: seen.append(module.weight.requires_grad))
    plain.evaluate(net, test, COLUMNS[2:3])
    assert all(seen)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_an_attack_that_no_helper_has_is_refused(case):
    with pytest.raises(UserError, match="plain path 'cw2'"):
        plain.evaluate(*case, (AttackSpec("CW2", "cw2", steps=2),))
