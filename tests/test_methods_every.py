"""What holds for every row of METHODS, whoever adds it: nothing here has to be edited for a new one."""

import re
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from cases import STEPS, batches_seen, forwards_of, make_training, numbers, observed
from torch import nn

from lib.errors import UserError
from lib.experiment.parameters import PARAMS
from lib.experiment.spec import method_of
from lib.methods import METHODS, Nets, ce_label
from lib.methods.strategies import build
from lib.methods.strategy import StrategySpec
from lib.train.weights import AWP

FEW = (("epsilon", (0.02, 0.1)), ("step_size", (0.01, 0.03)), ("steps", (1.0, 2.0, 3.0)))
ATTACKING = [name for name, method in METHODS.items() if method.objective is not None]
TAUGHT = [name for name, method in METHODS.items() if method.needs_teacher]
GUIDED = [name for name, method in METHODS.items() if method.trains_guide]


def training_of(name, make_net, batch, **extras):
    """A Training with the networks that the method needs, which are returned beside it."""
    method = METHODS[name]
    student, teacher, guide = make_net(), make_net(), make_net()
    teacher(batch[0])  # so that its batch-norm has statistics to lose
    given = (teacher if method.needs_teacher else None, *batch, guide if method.trains_guide else None)
    return make_training(name, student, *given, **extras), student, teacher, guide


@pytest.mark.parametrize("name", METHODS)
def test_the_terms_are_one_finite_number_per_image_and_train_the_student_its_guide_and_nothing_else(
    name, make_net, batch
):
    (x, y), student, teacher, guide = batch, make_net(), make_net(), make_net()
    x_adv, method = x + 0.03 * torch.randn_like(x), METHODS[name]
    seen = observed(name, torch.arange(6), torch.full((6,), 5))
    terms = method.loss(Nets(student, teacher, guide), x, x_adv, y, **numbers(method.weights), **seen)
    assert all(term.shape == y.shape and term.isfinite().all() for term in terms.values())
    sum(terms.values()).mean().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())
    assert student[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all((p.grad is not None) == method.trains_guide for p in guide.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_leaves_no_trace_outside_the_recipe(name, make_net, batch):
    training, student, teacher, guide = training_of(name, make_net, batch)
    (x, y), method = batch, METHODS[name]
    before, images, weights = deepcopy(teacher.state_dict()), x.clone(), student[0].weight.clone()
    in_training, rng = [m.training for m in teacher.modules()], torch.get_rng_state()
    training.train_step(x, y)
    assert all(tensor.equal(before[key]) for key, tensor in teacher.state_dict().items())
    assert [m.training for m in teacher.modules()] == in_training
    assert all(p.grad is None for p in teacher.parameters())
    assert x.equal(images)
    assert torch.get_rng_state().equal(rng)
    assert all(m.training for net in (student, guide) for m in net.modules())
    assert not student[0].weight.equal(weights)
    of_the_loss = forwards_of(name, progress=0.0)
    in_the_attack = STEPS if method.attack_mode == "train" else 0
    assert batches_seen(student) == len(of_the_loss.replace("g", "")) + in_the_attack
    assert batches_seen(guide) == of_the_loss.count("g") + (method.guide_mode == "train_at_every_step")


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_moves_batch_norm_only_where_the_recipe_attacks_in_train_mode(name, make_net, batch):
    training, student, teacher, guide = training_of(name, make_net, batch)
    method, before, taught = METHODS[name], deepcopy(student.state_dict()), batches_seen(teacher)
    x_adv, _ = training.craft(*batch)
    moved = method.attack_mode == "train"
    assert batches_seen(student) == (STEPS if moved else 0)
    assert student[1].running_mean.equal(before["1.running_mean"]) != moved
    assert all(p.equal(before[key]) and p.grad is None for key, p in student.named_parameters())
    assert batches_seen(guide) == (method.guide_mode == "train_at_every_step")
    assert batches_seen(teacher) == taught
    assert x_adv.equal(batch[0]) == (method.objective is None)
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert (x_adv - batch[0]).abs().max() <= 0.05 + 1e-6


@pytest.mark.parametrize("name", ATTACKING)
def test_it_trains_under_a_learned_strategy_with_awp_and_an_average(name, make_net, batch):
    spec = StrategySpec("learned", FEW, every=1)
    policy = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, sum(spec.sizes)))
    training, student, *_ = training_of(name, make_net, batch, strategy=build(spec, policy), awp=AWP(0.01), average=0.9)
    before, theta = deepcopy(student.state_dict()), deepcopy(policy.state_dict())
    assert all(term.isfinite() for term in training.train_step(*batch).values())
    assert not student[0].weight.equal(before["0.weight"])
    assert not policy[2].weight.equal(theta["2.weight"])
    assert all(value.isfinite().all() for value in student.state_dict().values())
    assert training.average.steps == 1
    assert training.extras.strategy.report()["reward"] is not None


@pytest.mark.parametrize("name", METHODS)
def test_its_code_is_twelve_digits_that_depend_on_the_source_of_its_loss(name):
    assert re.fullmatch(r"[0-9a-f]{12}", METHODS[name].code)
    other = replace(METHODS[name], loss=lambda nets, x, x_adv, y, **weights: {"a": nets.student(x).sum(1)})
    assert METHODS[name].code != other.code


def named_in(value):
    """Every method that a table file names, in a row, as a teacher's, or as a weight perturbation's."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = {value["method"]} if isinstance(value, dict) and "method" in value else set()
    return own.union(*map(named_in, parts))


def test_every_method_is_a_row_of_a_table():
    tables = [yaml.safe_load(path.read_text()) for path in (PARAMS / "tables").glob("*.yaml")]
    assert named_in(tables) == {*METHODS}


@pytest.mark.parametrize("name", TAUGHT)
def test_a_method_that_needs_a_teacher_is_refused_without_one(name, make_net, batch):
    x, y = batch
    with pytest.raises(UserError, match="needs a teacher"):
        METHODS[name].loss(Nets(make_net()), x, x, y, **numbers(METHODS[name].weights))
    with pytest.raises(UserError, match="needs a teacher"):
        make_training(name, make_net(), None, x, y)


@pytest.mark.parametrize("name", GUIDED)
def test_a_method_with_a_guide_is_refused_without_one(name, make_net, batch):
    x, y = batch
    with pytest.raises(UserError, match="trains a guide"):
        make_training(name, make_net(), None, x, y)
    seen = observed(name, torch.arange(6), torch.full((6,), 5))
    with pytest.raises(UserError, match="trains a guide"):
        METHODS[name].loss(Nets(make_net()), x, x, y, **numbers(METHODS[name].weights), **seen)


def test_an_unknown_method_is_refused_with_the_valid_ones():
    assert method_of("pgd_at").objective is ce_label
    with pytest.raises(UserError, match="unknown method 'tradess'; choose one of: .*trades"):
        method_of("tradess")


@pytest.mark.parametrize(("name", "mode"), [("rice_pgd_at_as_released", True), ("pgd_at_uniform_as_released", False)])
def test_rice_attacks_in_train_mode_and_las_awp_in_eval_mode_from_one_start(name, mode, make_net, batch):
    training, student, *_ = training_of(name, make_net, batch)
    (x, y), g, attack = batch, torch.Generator().manual_seed(training.seed), training.attack.keywords
    net, epsilon = deepcopy(student).train(mode), attack["epsilon"]
    x_adv, _ = training.craft(x, y)
    now = (x + epsilon * (2 * torch.rand(x.shape, generator=g) - 1)).clamp(0, 1)
    for _ in range(attack["steps"]):
        now.requires_grad_()
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(net(now), y), now)
        moved = (now.detach() + attack["step_size"] * slope.sign() - x).clamp(-epsilon, epsilon)
        now = (x + moved).clamp(0, 1)
    torch.testing.assert_close(x_adv, now)


def test_fats_code_adds_a_thousandth_of_noise_to_every_step_and_fat_does_not(make_net, batch):
    moved, net = {}, make_net()
    for name in ("fat", "fat_as_released"):
        training, *_ = training_of(name, lambda: deepcopy(net), batch)
        training.attack = partial(training.attack, epsilon=0.5, steps=1)
        training.weights = {"patience": 9.0}  # images that are wrong already move too
        moved[name], _ = training.craft(*batch)
    inside = ((moved["fat"] - batch[0]).abs() < 0.49) & (moved["fat"] > 0.01) & (moved["fat"] < 0.99)
    noise = (moved["fat_as_released"] - moved["fat"])[inside]
    assert noise.numel() > 50
    assert noise.std().item() == pytest.approx(0.001, rel=0.3)
