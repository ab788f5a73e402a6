import io
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lib import ROOT
from lib.attacks.fast import in_precision
from lib.attacks.pgd import pgd
from lib.data import Split, crop_and_flip
from lib.errors import UserError
from lib.losses import cross_entropy
from lib.methods import METHODS, Method, Piecewise
from lib.methods.strategies import STRATEGIES, build, needs_network
from lib.models.modes import mode
from lib.train import Schedule, Training, TrainingExtras, build_training
from lib.train.weights import AWP

ATTACK = partial(pgd, epsilon=0.05, step_size=0.02, steps=1)
BYTES = torch.arange(10 * 48).mul(37).remainder(256).byte().view(10, 3, 4, 4)
DATA = Split(BYTES, torch.arange(10))
STEPS_PER_EPOCH = 3  # 10 images in batches of 4, 4 and 2


def make_training(student, method="natural", *, epochs=2, teacher=None, attack=ATTACK, scores=None, **settings):
    schedule = Schedule(epochs, batch_size=4, **{k: settings.pop(k) for k in ("lr", "milestones") if k in settings})
    scores = iter(scores) if scores else None
    score = (lambda net: next(scores)) if scores else (lambda net: net[4].bias[0].item())
    method = METHODS[method] if isinstance(method, str) else method
    return build_training(student, teacher, method, attack, DATA, schedule, score, **settings)


def seeded(make_net, seed=0):
    torch.manual_seed(seed)
    return make_net()


def spy(log):
    """Natural training that calls `log(x, x_adv, y)` first."""

    def loss(nets, x, x_adv, y):
        log(x, x_adv, y)
        return {"clean": cross_entropy(nets.student(x), y)}

    return Method("spy", None, loss)


# --- schedules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "steps"), [(10, 9), (8, 6), (1, 3)])
def test_a_partial_last_batch_is_a_step(images, steps):
    assert Schedule(epochs=3, batch_size=4).steps(images) == steps


def test_a_batch_of_one_image_without_batch_statistics_is_refused_with_the_way_out():
    net = nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))  # one pixel is left
    data = DATA.take(slice(0, 9))  # batches of 4, 4 and 1
    training = build_training(net, None, METHODS["natural"], ATTACK, data, Schedule(1, 4), lambda net: 0.0)
    with pytest.raises(UserError, match="a batch of 1 image has no batch statistics .* another batch_size than 4"):
        training.run()


def test_the_learning_rate_falls_by_ten_exactly_at_the_milestones(make_net):
    rates = []
    method = spy(lambda *_: rates.append(training.optimizer.param_groups[0]["lr"]))
    training = make_training(make_net(), method, epochs=5, lr=0.1, milestones=(2, 4))
    training.run()
    expected = [0.1] * 2 * STEPS_PER_EPOCH + [0.01] * 2 * STEPS_PER_EPOCH + [0.001] * STEPS_PER_EPOCH
    assert rates == pytest.approx(expected)


def test_one_cycle_rises_to_the_learning_rate_and_ends_near_zero(make_net):
    rates = []
    method = spy(lambda *_: rates.append(training.optimizer.param_groups[0]["lr"]))
    training = make_training(make_net(), method, epochs=10, lr=0.2)
    training.run()
    peak = rates.index(max(rates))
    assert len(rates) == 10 * STEPS_PER_EPOCH
    assert max(rates) == pytest.approx(0.2)
    assert 0 < peak < len(rates) / 2
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert rates[-1] < 1e-4 * 0.2


def test_the_momentum_stays_while_the_learning_rate_cycles(make_net):
    momenta = []
    method = spy(lambda *_: momenta.append(training.optimizer.param_groups[0]["momentum"]))
    training = make_training(make_net(), method)
    training.run()
    assert set(momenta) == {0.9}


def test_one_cycle_of_a_single_step_takes_a_step_that_counts(make_net):
    rates = []
    method = spy(lambda *_: rates.append(training.optimizer.param_groups[0]["lr"]))
    training = build_training(make_net(), None, method, ATTACK, DATA, Schedule(1, 10, lr=0.2), lambda net: 0.0)
    training.run()
    assert len(rates) == 1
    assert 0.02 < rates[0] <= 0.2


def test_nesterovs_momentum_looks_ahead_and_is_off_by_default():
    def weight_after_two_steps(**settings):
        line = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(line.weight)
        schedule = Schedule(9, 4, lr=0.1, weight_decay=0.0, milestones=(9,), **settings)
        optimizer, _ = schedule.build(line, 4)
        for _ in range(2):
            line.weight.grad = torch.ones(1, 1)
            optimizer.step()
        return line.weight.item()

    assert weight_after_two_steps() == pytest.approx(-0.1 * (1 + 1.9))
    assert weight_after_two_steps(nesterov=True) == pytest.approx(-0.1 * (1.9 + 2.71))  # g + 0.9 v, v = 1 and 1.9


def test_a_schedule_of_any_length_is_made_without_its_epochs_in_memory():
    assert Schedule(10**18, milestones=(5, 10**17)).milestones == (5, 10**17)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 0.0, "nesterov": True}, "momentum > 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"lr": 0.0}, "a positive lr"),
        ({"momentum": 1.0}, "a momentum in"),
        ({"weight_decay": -1.0}, "a weight_decay >= 0"),
        ({"milestones": (-1,)}, "milestones before its end"),
        ({"milestones": (1, 1)}, "milestones before its end"),
        ({"milestones": (2,)}, "milestones before its end"),  # of one epoch: the rate would never fall
        ({"first_lr": 0.01}, "milestones where there is a first_lr"),
        ({"decay": 1e-4}, "milestones where there is a first_lr or a decay"),
        ({"rise": 0.0}, r"a rise in \(0, 1\)"),
        ({"milestones": (1,), "decay": -1.0}, "a decay >= 0"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_with_what_it_wants(settings, message):
    with pytest.raises(UserError, match=message):
        Schedule(1, **settings)


# --- one step -----------------------------------------------------------------------------------------------------


def test_a_step_crops_then_attacks_then_trains_and_only_then_moves_the_weights(make_net):
    student, events = make_net().eval(), []

    def objective(nets, x, y):
        events.append(("objective", student.training, x))
        return lambda z: z.flatten(1).sum(1)

    def attack(objective, x, *, epsilon, start, generator):
        events.append(("attack", student.training, x, start, generator))
        return x + 1

    def loss(nets, x, x_adv, y, *, weight):
        events.append(("loss", student.training, x, x_adv, student[0].weight.detach().clone(), weight))
        return {"a": weight * cross_entropy(nets.student(x), y)}

    method = Method("spy", objective, loss, {"weight": 2.0}, start="the start")
    training = make_training(
        student, method, attack=partial(attack, epsilon=0.1), padding=2, flip=True, weights={"weight": 3.0}, seed=5
    )
    draws = torch.Generator().manual_seed(5)
    x, before = DATA.images[:4] / 255, student[0].weight.detach().clone()
    training.train_step(x, DATA.labels[:4])
    cropped = crop_and_flip(x, padding=2, flip=True, generator=draws)
    (_, mode1, x1), (_, mode2, x2, start, generator), (_, mode3, x3, x_adv, weights, weight) = events
    assert [event[0] for event in events] == ["objective", "attack", "loss"]
    assert (mode1, mode2, mode3) == (False, False, True)
    assert x1.equal(cropped)
    assert x2 is x1
    assert x3 is x1
    assert x_adv.equal(cropped + 1)
    assert (start, generator, weight) == ("the start", training.generator, 3.0)
    assert weights.equal(before)
    assert not student[0].weight.equal(before)


def test_a_pgd_at_step_enters_at_most_six_files_of_ours_network_and_data_aside(make_net, batch):
    training, entered = make_training(make_net(), "pgd_at", attack=partial(ATTACK, steps=3)), set()

    def trace(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "lib"):
            entered.add(path.relative_to(ROOT / "lib").as_posix())

    sys.setprofile(trace)
    try:
        training.train_step(*batch)
    finally:
        sys.setprofile(None)
    assert type(training) is Training
    assert {"train/loop.py", "methods/at.py", "losses.py", "attacks/pgd.py"} <= entered
    assert len(entered) <= 6, entered


def test_a_method_that_is_more_than_attack_and_loss_is_refused_by_the_plain_class(make_net):
    with pytest.raises(UserError, match="FAT is more than .* build_training"):
        Training(make_net(), None, METHODS["fat"], ATTACK, DATA, Schedule(1), lambda net: 0.0)


def test_a_step_is_sgd_on_the_mean_over_images_of_the_summed_terms():
    student = nn.Sequential(nn.Flatten(), nn.Linear(48, 10, bias=False))
    w = student[1].weight.detach().clone()
    x, y = DATA.images[:4] / 255, DATA.labels[:4]

    def loss(nets, x, x_adv, y):
        return {"a": cross_entropy(nets.student(x), y), "b": 2 * nets.student(x).square().sum(1)}

    training = make_training(student, Method("two terms", None, loss), lr=0.1, milestones=(1,))
    terms = training.train_step(x, y)
    logits = x.flatten(1) @ w.T
    to_logits = (logits.softmax(1) - torch.eye(10)[y] + 4 * logits) / 4
    expected = w - 0.1 * (to_logits.T @ x.flatten(1) + 5e-4 * w)
    torch.testing.assert_close(student[1].weight.detach(), expected)
    torch.testing.assert_close(terms["b"], 2 * logits.square().sum(1).mean())
    assert not terms["a"].requires_grad


def test_a_second_step_carries_momentum_and_no_old_gradient():
    student = nn.Linear(1, 1, bias=False)
    method = Method("constant slope", None, lambda nets, x, x_adv, y: {"a": student.weight.sum().expand(len(x))})
    training = make_training(student, method, lr=0.1, milestones=(2,))
    nn.init.zeros_(student.weight)
    for _ in range(2):
        training.train_step(DATA.images[:4] / 255, DATA.labels[:4])
    decay = 5e-4 * -0.1  # the gradient of the weight decay after the first step
    assert student.weight.item() == pytest.approx(-0.1 - 0.1 * (0.9 + 1 + decay))


def test_weights_follow_the_share_of_the_planned_steps_not_of_those_it_may_take(make_net):
    seen = []

    def loss(nets, x, x_adv, y, *, weight):
        seen.append(weight)
        return {"clean": cross_entropy(nets.student(x), y)}

    method = Method("spy", None, loss, {"weight": Piecewise((0.5,), (0.0, 1.0))})
    make_training(make_net(), method, epochs=2, max_steps=4).run()
    assert seen == [0, 0, 0, 1]


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(make_net):
    labels = []
    make_training(make_net(), spy(lambda x, x_adv, y: labels.append(y)), epochs=2).run()
    assert [len(y) for y in labels] == [4, 4, 2, 4, 4, 2]
    first, second = torch.cat(labels).view(2, 10).tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != list(range(10))


def test_images_reach_the_loss_as_floats_with_their_labels(make_net):
    pairs = []
    make_training(make_net(), spy(lambda x, x_adv, y: pairs.append((x, y))), epochs=1).run()
    for x, y in pairs:
        torch.testing.assert_close(x, BYTES[y] / 255)


# --- a whole run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_steps", "steps", "epochs"), [(0, 6, 2), (1, 1, 1), (4, 4, 2), (99, 6, 2)])
def test_a_run_stops_at_its_end_or_after_max_steps(make_net, max_steps, steps, epochs):
    training = make_training(make_net(), max_steps=max_steps)
    training.run()
    assert training.step == steps
    assert [entry["epoch"] for entry in training.history] == list(range(1, epochs + 1))
    assert training.history[-1]["step"] == steps


def test_the_history_has_each_terms_mean_over_the_epochs_batches(make_net):
    values = iter([1.0, 2.0, 6.0])
    method = Method("known", None, lambda nets, x, x_adv, y: {"a": nets.student(x).sum(1) * 0 + next(values)})
    training = make_training(make_net(), method, epochs=1, scores=[0.25])
    training.run()
    assert training.history == [{"epoch": 1, "step": 3, "score": 0.25, "a": pytest.approx(3.0)}]


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.5, 0.3], 2), ([0.2, 0.2, 0.2], 1), ([0.0, 0.1, 0.2], 3)])
def test_the_best_weights_are_those_of_the_first_epoch_with_the_best_score(make_net, scores, best):
    student, after = make_net(), []
    training = make_training(student, epochs=3, scores=scores)
    training.run(lambda t: after.append({key: value.clone() for key, value in student.state_dict().items()}))
    assert (training.best["epoch"], training.best["score"]) == (best, scores[best - 1])
    assert training.best["weights"].keys() == after[0].keys()
    assert all(value.equal(after[best - 1][key]) for key, value in training.best["weights"].items())
    assert not after[0]["0.weight"].equal(after[1]["0.weight"])


def test_every_epoch_has_its_cost_also_across_a_continuation(make_net):
    states = []
    whole = make_training(make_net(), epochs=3)
    whole.run(lambda training: states.append(saved(training)))
    assert [set(cost) for cost in whole.costs] == [{"seconds", "peak_mb"}] * 3
    other = make_training(make_net(), epochs=3)
    other.load_state_dict(states[1])
    other.run()
    assert other.costs[:2] == whole.costs[:2]
    assert len(other.costs) == 3


def saved(training):
    """The state as a file gives it back: plain values and tensors only."""
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("milestones", [(), (1, 3)])
def test_a_continued_run_ends_bit_for_bit_where_an_uninterrupted_one_does(make_net, milestones):
    settings = {"epochs": 4, "milestones": milestones, "padding": 1, "flip": True}
    states = []
    whole = make_training(seeded(make_net), "dgad", teacher=seeded(make_net, 1), **settings)
    whole.run(lambda training: states.append(saved(training)))
    for state in states:
        other = make_training(seeded(make_net, 2), "dgad", teacher=seeded(make_net, 1), seed=9, **settings)
        other.load_state_dict(state)
        other.run()
        assert other.history == whole.history
        assert (other.best["epoch"], other.best["score"]) == (whole.best["epoch"], whole.best["score"])
        for key, value in whole.student.state_dict().items():
            assert other.student.state_dict()[key].equal(value)
            assert other.best["weights"][key].equal(whole.best["weights"][key])


FEW = {"epsilon": (0.02, 0.1), "step_size": (0.02, 0.05), "steps": (1.0, 2.0), "trade_off": (1.0, 6.0)}


def make_extras(name, make_net, seed):
    """A strategy with few options, a guide, AWP and an average."""
    options = tuple((option, FEW[option]) for option, _ in STRATEGIES[name].options)
    spec = replace(STRATEGIES[name], options=options, every=2)
    torch.manual_seed(seed)
    heads = nn.Linear(48, max(1, sum(spec.sizes)))
    strategy = build(spec, nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), heads) if needs_network(spec) else None)
    return TrainingExtras(guide=make_net(), strategy=strategy, awp=AWP(0.01, warmup=0.2), average=0.9)


def parts(training):
    """All that has weights."""
    extras = training.extras
    return [p for p in (training.student, extras.guide, training.average.net, extras.strategy.net) if p is not None]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_with_strategy_guide_and_average_continues_bit_for_bit(make_net, name):
    settings = {"epochs": 3, "milestones": (1,), "padding": 1}
    states = []
    whole = make_training(seeded(make_net), "lbgat", extras=make_extras(name, make_net, 1), **settings)
    whole.run(lambda training: states.append(saved(training)))
    for state in states:
        other = make_training(seeded(make_net, 2), "lbgat", extras=make_extras(name, make_net, 3), seed=9, **settings)
        other.load_state_dict(state)
        other.run()
        assert other.history == whole.history
        assert other.average.steps == whole.average.steps
        for net, expected in zip(parts(other), parts(whole), strict=True):
            assert all(value.equal(expected.state_dict()[key]) for key, value in net.state_dict().items())
        last, expected = (saved(training) for training in (other, whole))
        assert str(last["strategy"]) == str(expected["strategy"])
        assert last["generator"].equal(expected["generator"])


def test_awp_and_the_reward_forward_the_guide_without_moving_its_statistics(make_net):
    training = make_training(make_net(), "lbgat", extras=make_extras("las_at", make_net, 0))
    training.run()
    assert training.guide[1].num_batches_tracked == training.step


def test_equal_runs_are_equal_bit_for_bit_whatever_torchs_own_seed_and_another_seed_differs(make_net):
    def run(seed, noise):
        training = make_training(seeded(make_net), "pgd_at", padding=1, flip=True, seed=seed)
        torch.manual_seed(noise)
        training.run()
        return training.student.state_dict()

    first, again, other = run(0, noise=1), run(0, noise=2), run(1, noise=1)
    assert all(value.equal(again[key]) for key, value in first.items())
    assert not first["0.weight"].equal(other["0.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_epoch_and_terms(make_net, value):
    method = Method("bad", None, lambda nets, x, x_adv, y: {"adv": nets.student(x).sum(1) * value})
    with pytest.raises(UserError, match=r"diverged in epoch 1.*adv"):
        make_training(make_net(), method).run()


def test_the_teacher_is_frozen_and_in_eval_mode(make_net):
    teacher = make_net()
    make_training(make_net(), "dgad", teacher=teacher)
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


# --- modes and precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_a_mode_holds_inside_the_block_and_is_undone_even_by_an_error(make_net, before, train):
    net = make_net().train(before)
    inside = []
    with pytest.raises(ZeroDivisionError), mode(net, train):
        inside.extend(m.training for m in net.modules())
        _ = 1 / 0
    assert set(inside) == {train}
    assert all(m.training == before for m in net.modules())


def test_bf16_computes_in_bf16_and_returns_fp32_logits(make_net, batch):
    net, inside = make_net(), []
    net[0].register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    logits = in_precision(net, "bf16")(batch[0])
    assert inside == [torch.bfloat16]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, net(batch[0]), atol=0.05, rtol=0.05)


def test_a_training_in_bf16_computes_student_and_teacher_in_bf16_with_fp32_weights(make_net):
    student, teacher, inside = make_net(), make_net(), []
    for net in (student, teacher):
        net[0].register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    training = make_training(student, "dgad", teacher=teacher, precision="bf16", max_steps=1)
    training.run()
    assert set(inside) == {torch.bfloat16}
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in student.parameters())


def test_fp32_is_the_network_itself_and_an_unknown_precision_or_execution_is_refused(make_net):
    net = make_net()
    assert in_precision(net, "fp32") is net
    with pytest.raises(UserError, match=r"'fp8'.*fp32, bf16"):
        make_training(net, precision="fp8")
    with pytest.raises(UserError, match=r"'quick'.*fast, plain"):
        make_training(net, execution="quick")


@pytest.mark.parametrize("extras", [TrainingExtras(), TrainingExtras(average=0.9)])
def test_the_crafting_alone_in_bf16_trains_in_fp32(make_net, extras):
    student, inside = make_net(), []
    student[0].register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    make_training(student, "pgd_at", precision="bf16_crafting", max_steps=1, extras=extras).run()
    assert inside[-1] == torch.float32


def test_a_mode_gives_a_frozen_batch_norm_its_own_mode_back(make_net):
    net = make_net().train()
    frozen = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    with mode(net, train=True):
        assert frozen.training
    assert not frozen.training
    assert net.training


@pytest.mark.parametrize("wrong", [lambda loss: loss.mean(), lambda loss: loss[:, None]], ids=["mean", "column"])
def test_a_loss_that_does_not_give_one_value_per_image_is_refused_in_a_sentence(wrong, make_net, batch):
    def loss(nets, x, x_adv, y):
        return {"adv": wrong(cross_entropy(nets.student(x), y))}

    training = make_training(make_net(), replace(METHODS["pgd_at"], loss=loss))
    with pytest.raises(UserError, match="PGD-AT: the term 'adv' of its loss has shape .* one value per image"):
        training.train_step(*batch)
