import json
from dataclasses import replace

import pyautoattack
import pytest
import torch
from torch import Generator, nn

from lib.attacks import autoattack
from lib.attacks.cw2 import cw2
from lib.attacks.pgd import at_image, pgd
from lib.data import Split
from lib.errors import UserError
from lib.evaluate import (
    ATTACKS,
    Accuracy,
    AttackSpec,
    EvaluationAttack,
    Resources,
    accuracy,
    check_perturbation,
    columns_of,
    evaluate,
    together,
)
from lib.losses import cross_entropy
from lib.models.modes import frozen

EPSILON = 0.05
CHEAP = ("apgd-ce", "apgd-t")


def column(attack, **changes):
    settings = {"epsilon": EPSILON, "step_size": 0.02, "steps": 3, "batch_size": 5, "stages": ("apgd-ce",)}
    return AttackSpec("column", attack, **{**settings, **changes})


@pytest.fixture
def net(make_net):
    return make_net().eval()


@pytest.fixture
def split(net):
    """Sixteen images, three out of four labelled as the network sees them."""
    x = torch.rand(16, 3, 4, 4)
    y = net(x).argmax(1)
    y[::4] = (y[::4] + 1) % 10
    return Split(x, y)


def as_string(flags):
    return "".join(str(int(flag)) for flag in flags)


# --- accuracy -----------------------------------------------------------------------------------------------------


def test_flags_say_of_every_image_in_order_whether_it_is_classified_correctly(net, split):
    result = accuracy(net, split, column("clean"))
    assert result.flags == "0111" * 4
    assert (result.k, result.n, result.percent) == (12, 16, 75.0)


def test_flags_are_those_of_the_adversarial_images(net, split):
    x, y = split
    result = accuracy(net, split, column("fgsm", epsilon=0.2))
    x_adv = pgd(lambda z: cross_entropy(net(z), y), x, epsilon=0.2, step_size=0.2, steps=1, start=at_image)
    assert result.flags == as_string(net(x_adv).argmax(1) == y)
    assert result.k < 12


def test_only_the_first_images_are_attacked_where_a_column_has_fewer(net, split):
    assert accuracy(net, split, column("clean", images=6)).flags == "011101"


def test_byte_images_are_scored_as_floats(net, split):
    x, y = split.images.mul(255).round().byte(), split.labels
    right = net(x / 255).argmax(1) == y
    assert accuracy(net, Split(x, y), column("clean")).flags == as_string(right)


def test_an_evaluation_has_one_result_per_column_in_their_order(net, split):
    columns = (column("fgsm"), column("clean"))
    assert [result.column for result in evaluate(net, split, columns)] == list(columns)


def test_a_networks_training_mode_does_not_change_its_accuracy(net, split):
    columns = (column("clean"), column("pgd"))
    assert evaluate(net.train(), split, columns) == [accuracy(net.eval(), split, c) for c in columns]


@pytest.mark.parametrize("attack", ["clean", "missing"])
def test_an_evaluation_leaves_the_network_as_it_found_it_even_after_an_error(net, split, attack):
    net.train()
    net[0].weight.requires_grad_(False)
    wanted, before = [p.requires_grad for p in net.parameters()], {k: v.clone() for k, v in net.state_dict().items()}
    if attack == "missing":
        with pytest.raises(UserError):
            evaluate(net, split, (column("pgd"), column(attack)))
    else:
        evaluate(net, split, tuple(column(name) for name in ATTACKS))
    assert all(m.training for m in net.modules())
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert all(p.grad is None for p in net.parameters())
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())


def test_no_parameter_requires_a_gradient_while_an_attack_runs(net, split, monkeypatch):
    seen = []

    def attack(net, x, y, column, generator):
        seen.extend((net.net.training, *(p.requires_grad for p in net.net.parameters())))
        return x

    monkeypatch.setitem(ATTACKS, "spy", EvaluationAttack(attack))
    evaluate(net.train(), split, (column("spy"),))
    assert set(seen) == {False}


def test_frozen_is_undone_by_an_error(net):
    with pytest.raises(ZeroDivisionError), frozen(net):
        _ = 1 / 0
    assert all(p.requires_grad for p in net.parameters())


def test_an_unknown_attack_is_refused_with_the_valid_ones(net, split):
    with pytest.raises(UserError, match="'pdg'.*: pgd, " + ", ".join(name for name in ATTACKS if name != "pgd")):
        evaluate(net, split, (column("pdg"),))


def test_more_images_than_there_are_are_refused(net, split):
    with pytest.raises(UserError, match=r"17 images.* 16"):
        evaluate(net, split, (column("clean", images=17),))


# --- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stays_in_the_image_range_and_a_bounded_one_in_its_ball(name, net, split):
    (x, y), attack = split, ATTACKS[name]
    x_adv = attack.run(net, x, y, column(name), Generator().manual_seed(0))
    assert x_adv.shape == x.shape
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (x_adv - x).abs().max() <= (EPSILON + 1e-6 if attack.bounded else 1)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "clean"])
def test_every_attack_but_clean_moves_the_images(name, net, split):
    (x, y), attack = split, ATTACKS[name].run
    assert (attack(net, x, y, column(name, epsilon=0.3, steps=50), Generator().manual_seed(0)) != x).any()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda x: (x + 2 * EPSILON).clamp(0, 1), "left its bounds"),
        (lambda x: x - EPSILON, "left its bounds"),
        (lambda x: x + EPSILON, "left its bounds"),
        (lambda x: x * float("nan"), "not finite"),
        (lambda x: x.index_fill(0, torch.tensor([2]), float("inf")), "not finite"),
    ],
)
def test_an_attack_that_leaves_its_ball_or_the_image_range_stops_the_evaluation(net, monkeypatch, bad, said):
    x = torch.full((16, 3, 4, 4), 0.5)
    x[3, 0, 0, 0], x[4, 0, 0, 0] = 0, 1
    monkeypatch.setitem(ATTACKS, "bad", EvaluationAttack(lambda net, x, y, column, generator: bad(x)))
    with pytest.raises(RuntimeError, match=f"column .*{said}"):
        evaluate(net, Split(x, torch.zeros(16, dtype=torch.long)), (column("bad"),))


def test_an_unbounded_attack_may_leave_the_ball_but_not_the_image_range(net, split, monkeypatch):
    monkeypatch.setitem(ATTACKS, "far", EvaluationAttack(lambda net, x, y, column, generator: 1 - x, bounded=False))
    assert accuracy(net, split, column("far")).n == 16
    monkeypatch.setitem(ATTACKS, "far", EvaluationAttack(lambda net, x, y, column, generator: 2 - x, bounded=False))
    with pytest.raises(RuntimeError, match="left its bounds"):
        accuracy(net, split, column("far"))


def test_rounding_is_no_violation_but_a_thousandth_of_a_grey_level_is():
    x = torch.full((1, 1, 1, 1), 0.5)
    check_perturbation(x, x + EPSILON + 5e-7, EPSILON, "pgd")
    with pytest.raises(RuntimeError, match="pgd left its bounds"):
        check_perturbation(x, x + EPSILON + 0.001 / 255, EPSILON, "pgd")


# --- the attacks behind the columns -------------------------------------------------------------------------------


def test_the_pgd_column_is_pgd_with_the_columns_settings_and_seed(net, split):
    x, y = split
    setting = column("pgd", epsilon=0.1, step_size=0.03, steps=4, seed=7, batch_size=16)
    seen = []
    spied = nn.Sequential(net)
    spied.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    accuracy(spied, split, setting)
    expected = pgd(
        lambda z: cross_entropy(net(z), y),
        x,
        epsilon=0.1,
        step_size=0.03,
        steps=4,
        generator=Generator().manual_seed(7),
    )
    assert seen[-1].equal(expected)


def test_the_cw2_column_is_cw2_with_the_columns_steps(net, split):
    (x, y), calls = split, []
    net.register_forward_hook(lambda *_: calls.append(1))
    x_adv = ATTACKS["cw2"].run(net, x, y, column("cw2", steps=30), None)
    assert len(calls) <= 30
    assert x_adv.equal(cw2(net, x, y, steps=30))


@pytest.mark.parametrize("attack", ["pgd", "autoattack"])
def test_a_column_gives_the_same_flags_twice_and_leaves_torchs_own_draws_alone(net, split, attack):
    state = torch.get_rng_state()
    first = accuracy(net, split, column(attack))
    assert torch.get_rng_state().equal(state)
    torch.rand(1)
    assert accuracy(net, split, column(attack)) == first


def test_the_autoattack_column_equals_the_authors_code_called_directly(net, split):
    x, y = split
    ours = accuracy(net, split, column("autoattack", seed=3, stages=CHEAP, batch_size=5))
    attack = pyautoattack.AutoAttack(net, attacks=list(CHEAP), eps=EPSILON, norm="Linf", seed=3, version="custom")
    attack.apgd.n_restarts = 1
    x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=5)
    assert ours.flags == as_string(net(x_adv).argmax(1) == y)
    assert 0 < ours.k < 12


@pytest.mark.parametrize("stages", [("apgd-ce", "apgd-t", "fab-t", "square"), CHEAP])
def test_autoattack_runs_its_columns_stages_on_the_whole_set(net, split, monkeypatch, stages):
    seen = []

    def perturb(stage, net, x, y, epsilon, seed):
        seen.append((stage, len(x), epsilon, seed))
        return x, torch.zeros(len(x), dtype=torch.bool)

    monkeypatch.setattr(autoattack, "perturb", perturb)
    accuracy(net, split, AttackSpec("AA", "autoattack", epsilon=EPSILON, seed=4, stages=stages))
    assert seen == [(stage, 12, EPSILON, 4) for stage in stages]


@pytest.mark.parametrize("attack", ["pgd", "pgd_frozen", "cw", "cw_frozen"])
def test_columns_that_differ_in_steps_alone_share_a_run_and_find_the_same_images(make_net, attack):
    net = make_net().eval()
    test = Split(torch.rand(30, 3, 4, 4), torch.randint(10, (30,)))
    test = Split(test.images, torch.where(torch.arange(30) % 3 > 0, net(test.images).argmax(1), test.labels))
    columns = tuple(AttackSpec(f"{steps}", attack, 0.1, 0.02, steps, batch_size=7) for steps in (5, 2, 9))
    assert together((*columns, AttackSpec("clean", "clean"))) == [columns, (AttackSpec("clean", "clean"),)]
    assert evaluate(net, test, columns) == [accuracy(net, test, column) for column in columns]


def test_what_is_right_without_an_attack_is_asked_for_once(net, split):
    asked, size = [], column("clean").batch_size
    net.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].equal(split.images[:size])))
    attacks = [replace(column("autoattack", stages=CHEAP, epsilon=e), name=f"AA {e}") for e in (0.1, 0.15)]
    columns, heard = (column("clean"), *attacks), []
    found = evaluate(net, split, columns, resources=Resources(found=heard.append))
    assert sum(asked) == 1
    assert found == heard == [evaluate(net, split, (one,))[0] for one in columns]
    assert sum(asked) == 1 + len(columns)


@pytest.mark.parametrize(("few", "more"), [(4, 0), (0, 4)])
def test_clean_images_of_another_number_do_not_change_autoattack(net, split, few, more):
    clean, attack = column("clean", images=few), column("autoattack", images=more)
    assert evaluate(net, split, (clean, attack)) == [accuracy(net, split, clean), accuracy(net, split, attack)]


def test_columns_that_differ_in_more_than_steps_do_not_share_a_run():
    column = AttackSpec("a", "pgd", 0.1, 0.02, 5)
    others = [{"seed": 1}, {"images": 3}, {"epsilon": 0.2}, {"attack": "pgd_frozen"}, {"surrogate": "x"}]
    columns = (column, *(replace(column, steps=3, **other) for other in others))
    assert len(together(columns)) == len(columns)


def test_autoattack_keeps_the_flags_after_every_stage_and_the_last_are_its_own(net, split):
    (found,) = evaluate(net, split, (column("autoattack", stages=CHEAP, epsilon=0.15),))
    assert list(found.stages) == ["clean", *CHEAP]
    assert found.stages["clean"] == accuracy(net, split, column("clean")).flags
    assert found.stages["apgd-t"] == found.flags
    pairs = zip(found.stages["clean"], found.stages["apgd-ce"], found.flags, strict=True)
    assert all(clean >= ce >= end for clean, ce, end in pairs)
    assert Accuracy.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_an_autoattack_that_was_killed_goes_on_to_the_same_flags(net, split, tmp_path, monkeypatch):
    setting = column("autoattack", stages=CHEAP, epsilon=0.15)
    (whole,) = evaluate(net, split, (setting,))
    written, limit, write = [], [2], autoattack.write_atomically

    def dies_after_two(path, content):
        if path.suffix == ".safetensors" and len(written) == limit[0]:
            raise KeyboardInterrupt
        write(path, content)
        written.extend([path] if path.suffix == ".safetensors" else [])

    monkeypatch.setattr(autoattack, "write_atomically", dies_after_two)
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, split, (setting,), resources=Resources(tmp_path))
    limit[0] = None
    assert evaluate(net, split, (setting,), resources=Resources(tmp_path)) == [whole]
    assert len(set(written)) == len(written) > 2  # no batch twice


# --- a second opinion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (column("fgsm"), column("torchattacks_fgsm")),
        (column("pgd", steps=7), column("torchattacks_pgd", steps=7)),
        (column("pgd", steps=7, restarts=3), column("torchattacks_pgd", steps=7, restarts=3)),
        (column("autoattack", batch_size=16), column("torchattacks_apgd", steps=100, batch_size=16)),
    ],
    ids=["FGSM", "PGD", "PGD with restarts", "APGD"],
)
def test_torchattacks_gives_every_image_the_flag_that_we_give_it(net, split, ours, theirs):
    before = torch.get_rng_state()
    expected, found = accuracy(net, split, ours), accuracy(net, split, theirs)
    assert found.flags == expected.flags
    assert found.k < 12
    assert torch.get_rng_state().equal(before)


def test_a_second_opinion_is_a_protocol_whose_settings_are_the_common_ones():
    theirs, ours = ({c.name: c for c in columns_of(name)} for name in ("torchattacks", "common"))
    for name in ("FGSM", "PGD-20"):
        assert theirs[name].attack == f"torchattacks_{ours[name].attack}"
        assert replace(theirs[name], attack=ours[name].attack).what == ours[name].what
    assert theirs["APGD-CE"].steps == autoattack.STEPS == 100
    assert theirs["APGD-CE"].images == theirs["APGD-CE"].batch_size  # one batch: the same draws as AutoAttack's
