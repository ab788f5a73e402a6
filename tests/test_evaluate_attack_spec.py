"""An attack's settings as a value, what they change in an evaluation, and the accuracy that comes of it."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.data import Split
from lib.errors import UserError
from lib.evaluate import Accuracy, AttackSpec, accuracy, evaluate, heading, wilson

CHEAP = ("apgd-ce", "apgd-t")


@pytest.fixture
def images(make_net):
    net, x = make_net().eval(), torch.rand(12, 3, 4, 4)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 100, 0.0, 3.70), (50, 100, 40.38, 59.62), (100, 100, 96.30, 100.0), (5, 10, 23.66, 76.34), (1, 1, 20.65, 100)],
)
def test_the_wilson_interval_has_the_textbooks_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=0.005)


def test_a_digest_is_that_of_what_is_measured_whatever_its_name_and_never_changes():
    spec = AttackSpec("PGD", "pgd", 8 / 255, 2 / 255, 10)
    assert spec.digest == replace(spec, name="another", preset="PGD-10").digest == "8015944d2db8"
    assert replace(spec, seed=1).digest != spec.digest


def test_an_accuracy_shows_its_percentage_and_interval():
    result = Accuracy(AttackSpec("Clean", "clean"), k=50, n=100, flags="01" * 50)
    assert result.percent == 50
    assert result.interval == pytest.approx((40.38, 59.62), abs=0.005)


def test_an_accuracy_survives_json():
    result = Accuracy(AttackSpec("AA", "autoattack", 0.05, stages=CHEAP, images=3), k=2, n=3, flags="101")
    assert Accuracy.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"attack": "pgd", "steps": 3}, "AA"),
        ({"attack": "autoattack"}, "AA"),
        ({"attack": "autoattack", "stages": ("apgd-ce", "apgd-t", "fab-t", "square")}, "AA"),
        ({"attack": "autoattack", "images": 200}, "AA (200 images)"),
        ({"attack": "autoattack", "images": 500}, "AA"),
        ({"attack": "autoattack", "stages": CHEAP}, "AA (APGD-CE+APGD-T only)"),
        ({"attack": "autoattack", "stages": CHEAP, "images": 200}, "AA (APGD-CE+APGD-T only, 200 images)"),
        ({"attack": "pgd", "steps": 3, "images": 200}, "AA (200 images)"),
        ({"attack": "pgd", "steps": 3, "preset": "PGD-10"}, "AA (3 steps)"),
        ({"attack": "pgd", "steps": 10, "preset": "PGD-10"}, "AA"),
        ({"attack": "autoattack", "stages": ("apgd-ce",), "preset": "APGD-CE"}, "AA"),
        ({"attack": "autoattack", "stages": ("apgd-ce",), "preset": "AA"}, "AA (APGD-CE only)"),
    ],
)
def test_a_heading_has_what_is_other_than_the_preset_and_nothing_else(changes, shown):
    assert heading(AttackSpec(name="AA", **changes), 500) == shown


def test_restarts_leave_right_what_every_one_of_them_leaves_right(images):
    net, x, y = images
    column = AttackSpec("PGD", "pgd", 0.2, 0.05, 2, restarts=4)
    flags = [accuracy(net, Split(x, y), AttackSpec("PGD", "pgd", 0.2, 0.05, 2, seed=seed)).k for seed in range(8)]
    assert accuracy(net, Split(x, y), column).k <= max(flags)
    longer = AttackSpec("PGD-5", "pgd", 0.2, 0.05, 5, restarts=4)
    both = evaluate(net, Split(x, y), (column, longer))
    assert both == [accuracy(net, Split(x, y), one) for one in (column, longer)]


def test_x_is_crafted_in_bf16_where_the_column_says_so_and_judged_in_fp32(images):
    net, x, y = images
    dtypes = []
    net[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    accuracy(net, Split(x, y), AttackSpec("PGD", "pgd", 0.2, 0.05, 3, crafting="bf16"))
    assert dtypes[-1] == torch.float32
    spied = nn.Sequential(net[0], nn.BatchNorm2d(4, affine=False, track_running_stats=False), *net[2:])
    dtypes.clear()
    accuracy(spied.eval(), Split(x, y), AttackSpec("PGD", "pgd", 0.2, 0.05, 3, crafting="bf16"))
    assert dtypes.count(torch.bfloat16) == 3
    assert dtypes[-1] == torch.float32


def test_restarts_of_an_attack_without_a_random_start_are_refused():
    with pytest.raises(UserError, match="restarts need a random start, fgsm has none"):
        AttackSpec("FGSM", "fgsm", 0.1, restarts=2)


@pytest.mark.parametrize("attack", ["pgd_frozen", "autoattack", "cw2"])
def test_an_attack_that_judges_on_its_way_is_not_crafted_in_bf16(attack):
    with pytest.raises(UserError, match=f"{attack} judges while it crafts"):
        AttackSpec("C", attack, 0.1, 0.02, 3, crafting="bf16")
