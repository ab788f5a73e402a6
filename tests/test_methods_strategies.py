from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

from lib.attacks.pgd import pgd, uniform_in_image
from lib.data import Split
from lib.errors import UserError
from lib.losses import reinforce, smoothed_cross_entropy
from lib.methods import METHODS, las_at, searches, strategies
from lib.methods.las_at import judged_as_released
from lib.methods.strategies import STRATEGIES, scaled
from lib.methods.strategy import ATTACK_SETTINGS, StrategySpec, draw, log_prob
from lib.train import Schedule, TrainingExtras, build_training
from lib.train.weights import AWP

EPSILON = 0.05
OPTIONS = (("epsilon", (0.02, 0.1)), ("step_size", (0.01, 0.03)), ("steps", (1.0, 2.0, 3.0)))
LAS_AT = StrategySpec("learned", OPTIONS, every=1)
NETWORKED = [name for name, spec in STRATEGIES.items() if strategies.needs_network(spec)]
RELEASED = [name for name in STRATEGIES if name.endswith("as_released")]


def small(name, **changes):
    """A strategy with few options, so that a step of it is cheap."""
    spec, few = STRATEGIES[name], dict(OPTIONS) | {"trade_off": (5.0, 9.0)}
    return replace(spec, options=tuple((option, few[option]) for option, _ in spec.options), **changes)


def policy(spec):
    """A strategy network whose logits depend on the image, with a batch-norm that shows its mode."""
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, sum(spec.sizes)))


def built(spec):
    return strategies.build(spec, policy(spec) if strategies.needs_network(spec) else None)


def make_training(student, strategy, method="pgd_at", *, epochs=1, attack=None, extras=None, **settings):
    """Ten 3x4x4 images in batches of five; the strategy is a spec or ready."""
    strategy = built(strategy) if isinstance(strategy, StrategySpec) else strategy
    data = Split(torch.arange(10 * 48).mul(37).remainder(256).byte().view(10, 3, 4, 4), torch.arange(10))
    return build_training(
        student,
        settings.pop("teacher", None),
        METHODS[method] if isinstance(method, str) else method,
        attack or partial(pgd, epsilon=EPSILON, step_size=0.02, steps=2),
        data,
        Schedule(epochs, batch_size=5, milestones=(epochs,)),
        lambda net: 0.0,
        extras=replace(extras or TrainingExtras(), strategy=strategy),
        **settings,
    )


def settings_for(n, **values):
    """Settings that differ from image to image."""
    default = {"epsilon": [0.02, 0.1], "step_size": [0.01, 0.03], "steps": [1.0, 3.0, 2.0]}
    return {name: torch.tensor(v * n)[:n] for name, v in (default | values).items()}


def state_of(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(net, state):
    return all(tensor.equal(state[name]) for name, tensor in net.state_dict().items())


def fake_target(losses=None, **others):
    """A target without an attack, whose loss of an image is a function of its settings."""
    target = SimpleNamespace(
        student=nn.Identity(),
        generator=Generator().manual_seed(0),
        epsilon=EPSILON,
        progress=0.0,
        lr_share=1.0,
        at_precision=lambda net: net,
        craft_under=lambda x, y, settings: (x, settings),
        losses=lambda student, x, x_adv, y, settings: losses(settings),
    )
    return SimpleNamespace(**(vars(target) | others))


# --- the policy and its gradient ----------------------------------------------------------------------------------


def test_reinforce_over_all_joint_actions_is_the_exact_gradient_of_the_expected_reward(monkeypatch):
    spec = StrategySpec("learned", (("steps", (1.0, 2.0, 3.0)), ("weight", (5.0, 7.0))), every=1, adv=0, clean=0, lr=1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5)).double()
    x, y = torch.rand(2, 1, 2, 2, dtype=torch.double), torch.zeros(2, dtype=torch.long)
    table = torch.randn(2, 3, 2, dtype=torch.double)  # image, steps, weight -> reward

    def reward(settings):
        return table[torch.arange(2), settings["steps"].long() - 1, (settings["weight"] > 6).long()]

    heads = [head.softmax(1) for head in net(x).split([3, 2], dim=1)]
    expected = torch.stack([heads[0][i] @ table[i] @ heads[1][i] for i in range(2)]).mean()
    exact = torch.autograd.grad(expected, list(net.parameters()))
    estimate, start = [torch.zeros_like(p) for p in net.parameters()], state_of(net)
    for (a, b), (c, d) in product(product(range(3), range(2)), repeat=2):
        chosen = [torch.tensor([a, c]), torch.tensor([b, d])]
        monkeypatch.setattr(las_at, "draw", lambda logits, generator, chosen=chosen: chosen)
        net.load_state_dict(start)
        strategies.build(spec, net).learn(fake_target(reward), x, y)
        chance = (heads[0][0, a] * heads[1][0, b] * heads[0][1, c] * heads[1][1, d]).item()
        for total, parameter in zip(estimate, net.parameters(), strict=True):
            total -= chance * parameter.grad  # what is minimised is the negative
    for total, gradient in zip(estimate, exact, strict=True):
        torch.testing.assert_close(total, gradient)


def test_a_head_with_one_option_has_log_p_zero_and_no_gradient():
    logits = torch.randn(4, 1, requires_grad=True)
    log_p = log_prob([logits], [torch.zeros(4, dtype=torch.long)])
    assert log_p.tolist() == [0] * 4
    reinforce(log_p, torch.randn(4)).sum().backward()
    assert logits.grad.tolist() == [[0]] * 4


def test_the_heads_log_p_add_up_to_that_of_the_joint_action():
    logits = [torch.randn(1, 3), torch.randn(1, 2)]
    p, q = (head.softmax(1)[0] for head in logits)
    joint = {(a, b): log_prob(logits, [torch.tensor([a]), torch.tensor([b])]) for a in range(3) for b in range(2)}
    for (a, b), value in joint.items():
        torch.testing.assert_close(value.exp(), (p[a] * q[b])[None])
    torch.testing.assert_close(torch.cat([*joint.values()]).exp().sum(), torch.tensor(1.0))


def test_draws_follow_the_softmax_and_come_from_the_given_generator():
    logits, n = [torch.tensor([[0.0, 1.0, -2.0]]), torch.tensor([[3.0, 3.0]])], 40_000
    before = torch.get_rng_state()
    first, again = (draw([h.expand(n, -1) for h in logits], Generator().manual_seed(1)) for _ in range(2))
    assert torch.get_rng_state().equal(before)
    for head, a, b in zip(logits, first, again, strict=True):
        assert a.equal(b)
        torch.testing.assert_close(a.bincount() / n, head.softmax(1)[0], atol=0.01, rtol=0)
    tables = first[0] * 2 + first[1]
    joint = (logits[0].softmax(1)[0][:, None] * 0.5).expand(3, 2).flatten()
    torch.testing.assert_close(tables.bincount() / n, joint, atol=0.01, rtol=0)


def test_a_reward_per_image_teaches_which_image_wants_what_and_one_for_the_batch_does_not():
    x, y = torch.eye(2).repeat(32, 1).view(64, 1, 1, 2), torch.zeros(64, dtype=torch.long)
    wanted = torch.tensor([1.0, 2.0] * 32)
    right = {}
    for kind in ("learned", "learned_as_released"):
        torch.manual_seed(0)
        spec = StrategySpec(kind, (("steps", (1.0, 2.0)),), every=1, adv=0, clean=0, lr=0.5, momentum=0)
        strategy = strategies.build(spec, nn.Sequential(nn.Flatten(), nn.Linear(2, 2)))
        target = fake_target(lambda settings: (settings["steps"] == wanted).float())
        for _ in range(60):
            strategy.learn(target, x, y)
        p = strategy.logits(x)[0].softmax(1)
        right[kind] = p[torch.arange(64), wanted.long() - 1].mean()
    assert right["learned"] > 0.9
    assert right["learned_as_released"] < right["learned"] - 0.15


def test_the_gradient_is_clipped_to_the_specs_norm():
    spec = replace(LAS_AT, adv=0, clean=0, clip=0.25, lr=1, momentum=0)
    net = policy(spec)
    before = state_of(net)
    strategies.build(spec, net).learn(
        fake_target(lambda settings: 1e3 * settings["steps"]), torch.rand(6, 3, 4, 4), torch.zeros(6, dtype=torch.long)
    )
    moved = [p.detach() - before[name] for name, p in net.named_parameters()]
    torch.testing.assert_close(torch.cat([m.flatten() for m in moved]).norm(), torch.tensor(0.25))


# --- the copy after one step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [True, False])
def test_the_copy_is_w_minus_lr_times_gradient_plus_decay_and_the_target_stays_as_it_is(make_net, batch, weight_decay):
    training = make_training(make_net(), LAS_AT)
    training.train_step(*batch)  # so that there are momentum buffers
    student, group = training.student.eval(), training.optimizer.param_groups[0]
    before, momentum = state_of(student), deepcopy(training.optimizer.state_dict()["state"])
    gradients = [p.grad.clone() for p in student.parameters()]
    x, y = batch
    x_adv = (x + 0.03).clamp(0, 1)
    copy = training.after_step(x, x_adv, y, settings_for(6), weight_decay)
    by_hand = deepcopy(student).train()
    loss = F.cross_entropy(by_hand(x_adv), y)
    for p, g in zip(by_hand.parameters(), torch.autograd.grad(loss, list(by_hand.parameters())), strict=True):
        p.data -= group["lr"] * (g + (group["weight_decay"] if weight_decay else 0) * p.data)
    assert same(copy, state_of(by_hand))  # batch-norm statistics too
    assert same(student, before)
    assert not student.training
    assert all(p.grad.equal(g) for p, g in zip(student.parameters(), gradients, strict=True))
    after = training.optimizer.state_dict()["state"]
    assert all(after[i]["momentum_buffer"].equal(momentum[i]["momentum_buffer"]) for i in momentum)


@pytest.mark.parametrize("name", [*NETWORKED, "ohl", "adv_hp"])
def test_a_step_of_the_strategy_leaves_the_target_its_optimiser_and_its_guide_alone(make_net, batch, name):
    extras = TrainingExtras(guide=make_net(), awp=AWP(0.01))
    training = make_training(make_net(), small(name, every=1), "lbgat", extras=extras)
    training.train_step(*batch)
    before = [deepcopy(part.state_dict()) for part in (training.student, training.guide)]
    momentum = deepcopy(training.optimizer.state_dict()["state"])
    training.extras.strategy.learn(training, *batch)
    own_batch_norm = name == "las_trades_as_released"  # its L1 sees the target in train mode
    assert same(training.student, before[0]) != own_batch_norm
    assert same(training.guide, before[1])
    assert all(p.equal(before[0][key]) for key, p in training.student.named_parameters())
    after = training.optimizer.state_dict()["state"]
    assert all(after[i]["momentum_buffer"].equal(momentum[i]["momentum_buffer"]) for i in momentum)


# --- the reward ---------------------------------------------------------------------------------------------------


def clean_loss(net, x, y):
    return F.cross_entropy(net(x), y, reduction="none").detach()


def gradient_sign(net, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x)[0].sign()


def crafted_by_hand(net, x, y, settings, x_adv):
    """PGD under settings per image, from x_adv, in plain torch."""
    radius, size, steps = (settings[name].view(-1, 1, 1, 1) for name in ATTACK_SETTINGS)
    for t in range(3):
        moved = x_adv + (t < steps) * size * gradient_sign(net, x_adv, y)
        x_adv = torch.where(t < steps, (x + (moved - x).clamp(-radius, radius)).clamp(0, 1), x_adv)
    return x_adv


def judged_by_hand(net, x, y, x_adv, stops=False):
    gone = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(10):
        sign = gradient_sign(net, x_adv, y)
        if stops:
            with torch.no_grad():
                gone = deepcopy(net)(x_adv).argmax(1) != y
        moved = (x + (x_adv + EPSILON / 4 * sign - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
        x_adv = torch.where(gone[:, None, None, None], x_adv, moved)
    return x_adv


def uniform_start(x, g):
    return (x + EPSILON * (2 * torch.rand(x.shape, generator=g) - 1)).clamp(0, 1)


@pytest.mark.parametrize(("adv", "clean"), [(2.0, 4.0), (2.0, 0.0), (0.0, 4.0), (0.0, 0.0)])
def test_the_papers_reward_is_l1_plus_alpha_l2_plus_beta_l3_per_image(make_net, batch, adv, clean):
    x, y = batch
    training = make_training(make_net(), replace(LAS_AT, adv=adv, clean=clean), seed=5)
    settings, g = settings_for(6), Generator().manual_seed(5)
    net = deepcopy(training.student).eval()
    reward = training.extras.strategy.reward(training, x, y, settings)
    x_adv = (x + 0.001 * torch.randn(x.shape, generator=g)).clamp(0, 1)
    x_adv = crafted_by_hand(net, x, y, settings, x_adv)
    copy = deepcopy(net).train()
    F.cross_entropy(copy(x_adv), y).backward()
    for p in copy.parameters():
        p.data -= 0.1 * p.grad
    copy.eval()
    x_hat = judged_by_hand(copy, x, y, uniform_start(x, g))
    expected = clean_loss(net, x_adv, y) - adv * clean_loss(copy, x_hat, y) - clean * clean_loss(copy, x, y)
    torch.testing.assert_close(reward, expected)
    assert not reward.requires_grad
    assert reward.unique().numel() == 6


@pytest.mark.parametrize("cut", [10.0, 1.5])
def test_the_released_reward_is_one_number_for_the_batch_of_cut_l1_and_two_accuracies(make_net, cut):
    x, y, student = torch.rand(40, 3, 4, 4), torch.arange(40) % 4, make_net()
    student[1].running_mean.add_(1.0)
    student[1].momentum = 1e-3  # so that eval and train mode go on answering differently
    training = make_training(student, small("las_pgd_at_as_released", hardest=cut), "pgd_at_smoothed", seed=5)
    settings, g = settings_for(40), Generator().manual_seed(5)
    net = deepcopy(training.student).eval()
    reward = training.extras.strategy.reward(training, x, y, settings)
    x_adv = crafted_by_hand(net, x, y, settings, uniform_start(x, g))
    copy = deepcopy(net).train()
    smoothed_cross_entropy(copy(x_adv), y, 0.7).mean().backward()
    for p in copy.parameters():
        p.data -= 0.1 * (p.grad + 5e-4 * p.data)
    tries = []
    for _ in range(2):
        x_hat = judged_by_hand(copy, x, y, uniform_start(x, g), stops=True)
        tries.append((clean_loss(copy, x_hat, y), x_hat))
    x_hat = torch.where((tries[1][0] >= tries[0][0])[:, None, None, None], tries[1][1], tries[0][1])
    in_train_mode = deepcopy(copy)
    copy.eval()
    robust, accurate = ((copy(z).argmax(1) == y).float().mean() for z in (x_hat, x))
    assert [robust, accurate] != [(in_train_mode(z).argmax(1) == y).float().mean() for z in (x_hat, x)]
    hardness = clean_loss(net, x_adv, y).mean()
    assert hardness > 1.5
    torch.testing.assert_close(reward, (hardness.clamp(max=cut) + 4 * robust + 2 * accurate).expand(40))


def test_the_reward_of_trades_as_released_is_its_own_loss_in_train_mode_with_the_picked_weights(make_net, batch):
    x, y = batch
    training = make_training(make_net(), small("las_trades_as_released", adv=0, clean=0), "trades", seed=5)
    settings = settings_for(6, trade_off=[5.0, 9.0])
    net = deepcopy(training.student).eval()
    x_adv, _ = training.craft_under(x, y, settings)
    training.generator.manual_seed(5)
    reward = training.extras.strategy.reward(training, x, y, settings)
    p, q = (net.train()(z).softmax(1) for z in (x, x_adv))
    expected = clean_loss(net, x, y).mean() + (settings["trade_off"] * (p * (p / q).log()).sum(1)).mean()
    torch.testing.assert_close(reward, expected.expand(6))
    assert training.student[1].num_batches_tracked == 2


@pytest.mark.parametrize("name", ["las_at", "las_pgd_at_as_released"])
def test_coefficients_of_zero_skip_the_copy(make_net, batch, monkeypatch, name):
    training = make_training(make_net(), small(name, adv=0, clean=0, every=1))
    monkeypatch.setattr(training, "after_step", lambda *_, **__: pytest.fail("copied"))
    training.extras.strategy.learn(training, *batch)
    training.extras.strategy.report()


@pytest.mark.parametrize("name", ["las_at", *RELEASED])
def test_in_bf16_every_forward_of_the_target_its_copy_and_its_guide_is_in_bf16(make_net, batch, name):
    student, guide, inside = make_net(), make_net(), []
    for net in (student, guide):
        net[0].register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    training = make_training(
        student, small(name, every=1), "lbgat", extras=TrainingExtras(guide=guide), precision="bf16"
    )
    training.extras.strategy.learn(training, *batch)
    assert inside
    assert set(inside) == {torch.bfloat16}


# --- as released --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "own"), [("las_at", True), *((name, False) for name in RELEASED)])
def test_released_attacks_start_in_the_trainings_ball_and_ours_in_the_one_that_was_picked(make_net, batch, name, own):
    seen = []

    def start(x, epsilon, generator):
        seen.append(epsilon)
        return x

    method = replace(METHODS["pgd_at"], start=start)
    training = make_training(make_net(), small(name, every=99), method)
    settings = settings_for(6)
    training.craft_under(*batch, settings)
    assert seen[0].flatten().tolist() == pytest.approx(settings["epsilon"].tolist() if own else [EPSILON])


@pytest.mark.parametrize(("name", "share"), [("las_awp_as_released", 0.7), ("las_pgd_at_as_released", 1.0)])
def test_las_awps_copy_alone_learns_from_smoothed_labels(make_net, batch, name, share, monkeypatch):
    training, made = make_training(make_net(), small(name)), []
    after_step = training.after_step
    monkeypatch.setattr(
        training, "after_step", lambda *args, **how: made.append((args[1], after_step(*args, **how))) or made[0][1]
    )
    training.extras.strategy.reward(training, *batch, settings_for(6))
    ((x_adv, copy),), y = made, batch[1]
    by_hand = deepcopy(training.student).train()
    smoothed_cross_entropy(by_hand(x_adv), y, share).mean().backward()
    for p, q in zip(by_hand.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(q.data, p.data - 0.1 * (p.grad + 5e-4 * p.data))


@pytest.mark.parametrize(("name", "stops"), [("las_awp_as_released", False), ("las_pgd_at_as_released", True)])
def test_las_awps_judging_attack_alone_goes_on_with_broken_images(make_net, batch, name, stops):
    net, x = make_net().eval(), batch[0]
    wrong = net(x).argmin(1)
    target = fake_target()
    assert built(small(name)).stops == stops
    x_hat = judged_as_released(net, x, wrong, target, stops)
    starts = [uniform_start(x, g) for g in [Generator().manual_seed(0)] for _ in range(2)]
    still = torch.stack([(x_hat - s).abs().amax((1, 2, 3)) < 1e-6 for s in starts]).any(0)
    assert still.tolist() == [stops] * 6
    assert (x_hat - x).abs().max() <= EPSILON + 1e-6


@pytest.mark.parametrize(("right", "stops", "forwards"), [(0, True, 4), (0, False, 22), (1, True, 22)])
def test_the_released_judging_attack_makes_four_forwards_where_no_image_is_right(make_net, right, stops, forwards):
    net, x = make_net().train(), torch.rand(6, 3, 4, 4)
    net[-1].weight.data.zero_()
    net[-1].bias.data.copy_(9.0 * (torch.arange(10) == 0))  # class 0, whatever the image
    y = torch.ones(6, dtype=torch.long).index_fill(0, torch.arange(right), 0)
    x_hat = judged_as_released(net, x, y, fake_target(), stops)
    assert net[1].num_batches_tracked == forwards
    assert (x_hat - x).abs().max() <= EPSILON + 1e-6


def test_las_awp_trains_on_x_cut_back_to_the_trainings_ball_and_is_rewarded_for_the_whole(make_net, batch):
    seen = []

    def loss(nets, x, x_adv, y):
        seen.append((torch.is_grad_enabled(), (x_adv - x).abs().amax((1, 2, 3))))
        return {"adv": F.cross_entropy(nets.student(x_adv), y, reduction="none")}

    far = replace(small("las_awp_as_released", own_l1=True), options=(("epsilon", (0.1,)), ("step_size", (0.1,))))
    training = make_training(make_net(), replace(far, adv=0, clean=0), replace(METHODS["pgd_at"], loss=loss))
    training.train_step(*batch)
    (learning, rewarded), (training_, trained) = seen
    assert (learning, training_) == (False, True)
    assert trained.max() <= EPSILON + 1e-6
    assert rewarded.max() > 0.09


@pytest.mark.parametrize("name", [name for name in NETWORKED if name != "frozen"])
def test_the_strategys_rate_falls_with_the_targets_where_the_spec_says_so(make_net, batch, name):
    spec = small(name, every=1)
    training = make_training(make_net(), spec, "trades")
    training.optimizer.param_groups[0]["lr"] /= 10
    strategy = training.extras.strategy
    strategy.learn(training, *batch)
    rate = strategy.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(spec.lr / 10 if spec.lr_falls else spec.lr)
    assert spec.lr_falls == (name in ("las_trades_as_released", "las_awp_as_released"))


# --- in the loop --------------------------------------------------------------------------------------------------


def test_theta_moves_on_every_kth_batch_only_and_before_the_targets_step(make_net, batch):
    seen = []

    def loss(nets, x, x_adv, y):
        if torch.is_grad_enabled():
            seen.append((strategy.net[2].weight.detach().clone(), training.student[0].weight.detach().clone()))
        return {"adv": F.cross_entropy(nets.student(x_adv), y, reduction="none")}

    strategy = built(replace(LAS_AT, every=3, adv=0, clean=0))
    training = make_training(make_net(), strategy, replace(METHODS["pgd_at"], loss=loss), epochs=9)
    start, w = strategy.net[2].weight.detach().clone(), training.student[0].weight.detach().clone()
    for _ in range(7):
        training.train_step(*batch)
    thetas = [start] + [theta for theta, _ in seen]
    assert [not a.equal(b) for a, b in pairwise(thetas)] == [False, False, True] * 2 + [False]
    assert seen[0][1].equal(w)


@pytest.mark.parametrize("name", ["frozen", "random"])
def test_frozen_and_random_strategies_never_move(make_net, name):
    strategy = built(small(name))
    before = deepcopy(strategy.state_dict())
    make_training(make_net(), strategy, epochs=2).run()
    after = strategy.state_dict()
    assert after.keys() == before.keys() == ({"net"} if name == "frozen" else set())
    assert all(same(strategy.net, value) for value in before.values())
    logits = [torch.zeros(4000, size) for size in strategy.spec.sizes]
    rates = strategy.take(draw(logits, Generator().manual_seed(0)))
    assert all(len(values.unique()) == size for values, size in zip(rates.values(), strategy.spec.sizes, strict=True))


def test_the_strategy_network_is_in_eval_mode_for_the_target_and_in_train_mode_to_learn(make_net, batch):
    strategy = built(replace(LAS_AT, every=2))
    training = make_training(make_net(), strategy)
    counted = []
    for _ in range(4):
        training.train_step(*batch)
        counted.append(int(strategy.net[1].num_batches_tracked))
    assert counted == [0, 1, 1, 2]


def test_an_image_is_attacked_the_same_alone_as_in_a_batch_of_other_settings(make_net, batch):
    training = make_training(make_net(), LAS_AT, replace(METHODS["pgd_at"], start=lambda x, epsilon, generator: x))
    settings, (x, y) = settings_for(6), batch
    together, _ = training.craft_under(x, y, settings)
    alone = [training.craft_under(x[[i]], y[[i]], {k: v[[i]] for k, v in settings.items()})[0] for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_picked_trade_off_reaches_trades_loss_per_image(make_net, batch):
    seen = []

    def loss(nets, x, x_adv, y, *, trade_off):
        seen.append(trade_off)
        return METHODS["trades"].loss(nets, x, x_adv, y, trade_off=trade_off)

    spec = replace(small("las_trades"), every=99)
    training = make_training(make_net(), spec, replace(METHODS["trades"], loss=loss))
    training.train_step(*batch)
    (trade_off,) = seen
    assert trade_off.shape == (6,)
    assert set(trade_off.tolist()) <= {5.0, 9.0}
    counts = training.extras.strategy.report()["chosen"]["trade_off"]
    assert counts == {"5.0": (trade_off == 5).sum().item(), "9.0": (trade_off == 9).sum().item()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_history_says_what_was_picked_each_epoch_image_by_image(make_net, name):
    training = make_training(make_net(), small(name), "trades", epochs=2)
    training.run()
    for row in training.history:
        if name == "cat":
            assert row["strategy"] == {"level": row["epoch"] - 1}  # the score stands still
            continue
        for setting, values in training.extras.strategy.spec.options:
            counts = row["strategy"]["chosen"][setting]
            assert list(map(float, counts)) == list(values)
            assert sum(counts.values()) == 10
    empty = training.extras.strategy.report()
    assert name == "cat" or all(sum(counts.values()) == 0 for counts in empty["chosen"].values())
    assert name == "cat" or empty["reward"] is None


def test_the_report_has_the_mean_reward_of_the_steps_since_the_last_one():
    rewards = iter([1.0, 3.0, 7.0])
    strategy = built(replace(LAS_AT, adv=0, clean=0))
    target = fake_target(lambda settings: torch.full((6,), next(rewards)))
    x, y = torch.rand(6, 3, 4, 4), torch.zeros(6, dtype=torch.long)
    strategy.learn(target, x, y)
    strategy.learn(target, x, y)
    assert strategy.report()["reward"] == 2
    strategy.learn(target, x, y)
    assert strategy.report()["reward"] == 7


# --- the searches -------------------------------------------------------------------------------------------------


def paying(values=(1.0, 2.0, 3.0), best=2.0):
    """A target whose loss is highest for one number of steps."""
    return fake_target(lambda settings: (settings["steps"] == best).float()), (("steps", values),)


def test_advhp_moves_once_per_epoch_toward_what_the_target_loses_most_under():
    target, options = paying()
    strategy = built(StrategySpec("adv_hp", options, every=2, lr=1.0))
    x, y = torch.zeros(8, 1, 1, 1), torch.zeros(8, dtype=torch.long)
    for epoch in range(5):
        before = strategy.parameters[0].detach().clone()
        for _ in range(6):
            strategy.learn(target, x, y)
        assert strategy.parameters[0].equal(before)
        strategy.after_epoch(target, 0.0)
        assert not strategy.parameters[0].equal(before), epoch
    assert strategy.parameters[0].softmax(0)[1] > 0.6


def test_advhps_step_does_not_grow_with_the_batches_of_an_epoch(monkeypatch):
    target, options = paying()
    chosen = [torch.tensor([0, 1, 2, 1])]
    monkeypatch.setattr(searches, "draw", lambda logits, generator: chosen)
    moved = []
    for batches in (1, 7):
        strategy = built(StrategySpec("adv_hp", options, every=1, lr=1.0))
        for _ in range(batches):
            strategy.learn(target, torch.zeros(4, 1, 1, 1), torch.zeros(4, dtype=torch.long))
        strategy.after_epoch(target, 0.0)
        moved.append(strategy.parameters[0].detach())
    torch.testing.assert_close(*moved)


def ohl_target(monkeypatch, best=2.0):
    """The copy under settings remembers them, and the judging loss is lowest for `best` steps."""

    def after_step(x, x_adv, y, settings, weight_decay):
        copy = nn.Flatten()
        copy.bonus = float(settings["steps"][0] == best)
        assert settings["steps"].unique().numel() == 1
        return copy

    monkeypatch.setattr(searches, "judged", lambda net, x, y, target: x)
    monkeypatch.setattr(searches, "cross_entropy", lambda logits, y: logits)
    return fake_target(after_step=after_step, at_precision=lambda net: lambda x: -torch.full((len(x),), net.bonus))


def test_ohl_trains_with_the_best_candidates_setting_and_comes_to_prefer_it(monkeypatch):
    target = ohl_target(monkeypatch)
    strategy = built(StrategySpec("ohl", (("steps", (1.0, 2.0, 3.0)),), every=1, lr=0.3, candidates=6))
    x, y, used = torch.zeros(4, 1, 1, 1), torch.zeros(4, dtype=torch.long), []
    for _ in range(30):
        strategy.learn(target, x, y)
        used.append(strategy.settings(target, x)["steps"])
    assert all(steps.unique().numel() == 1 for steps in used)
    assert sum(steps[0] == 2 for steps in used) > 25
    assert strategy.parameters[0].softmax(0)[1] > 0.8
    assert sum(strategy.report()["chosen"]["steps"].values()) == 30 * 4


def test_ohl_keeps_a_setting_for_k_batches(monkeypatch):
    target, draws = ohl_target(monkeypatch), []
    monkeypatch.setattr(searches, "draw", lambda logits, generator: draws.append(1) or draw(logits, generator))
    strategy = built(StrategySpec("ohl", (("steps", (1.0, 2.0, 3.0)),), every=3))
    for _ in range(7):
        strategy.learn(target, torch.zeros(4, 1, 1, 1), torch.zeros(4, dtype=torch.long))
    assert len(draws) == 3  # batches 1, 3 and 6


@pytest.mark.parametrize("name", ["ohl", "adv_hp"])
def test_equal_rewards_move_a_search_nowhere(monkeypatch, name):
    target = ohl_target(monkeypatch, best=9.0)
    target.losses = lambda student, x, x_adv, y, settings: torch.ones(len(x))
    strategy = built(StrategySpec(name, (("steps", (1.0, 2.0, 3.0)),), every=1))
    strategy.learn(target, torch.zeros(4, 1, 1, 1), torch.zeros(4, dtype=torch.long))
    strategy.after_epoch(target, 0.0)
    assert strategy.parameters[0].detach().abs().max() == 0


def test_cat_leaves_a_part_clean_and_gives_the_others_one_to_k_steps_the_last_taking_what_is_over():
    strategy, target = built(STRATEGIES["cat"]), fake_target()
    for level, parts in {0: [23], 1: [11, 12], 3: [5, 5, 5, 8], 10: [*[2] * 10, 3]}.items():
        strategy.level = level
        settings = strategy.settings(target, torch.zeros(23, 1, 1, 1))
        assert settings["steps"].tolist() == [n for n, size in enumerate(parts) for _ in range(size)]
        assert settings["epsilon"].tolist() == pytest.approx([0.0] * parts[0] + [EPSILON] * (23 - parts[0]))


def test_cats_step_is_two_radii_over_the_images_own_steps_at_the_least_and_drawn_per_part():
    strategy, target, seen = built(STRATEGIES["cat"]), fake_target(), []
    strategy.level = 10
    for _ in range(400):
        settings = strategy.settings(target, torch.zeros(22, 1, 1, 1))
        parts = (settings["step_size"] / EPSILON).view(11, 2)
        assert parts[:, 0].equal(parts[:, 1])
        seen.append(parts[1:, 0])
    lowest, highest = torch.stack(seen).amin(0), torch.stack(seen).amax(0)
    least = [2, 1, 2 / 3, 0.5, 0.4, 1 / 3, 2 / 7, 0.25, 2 / 9, 0.2]  # of the radius, for 1 to 10 steps
    for n, (low, high, bound) in enumerate(zip(lowest.tolist(), highest.tolist(), least, strict=True), 1):
        most = bound * 10 / n
        assert bound * (1 - 1e-6) <= low <= bound + 0.05 * (most - bound) + 1e-6
        assert most - 0.05 * (most - bound) - 1e-6 <= high <= most * (1 + 1e-6)
    assert all(draws[0] / 2 != draws[1] for draws in seen)


def test_cats_level_rises_when_the_score_stands_still_and_no_further_than_it_may():
    strategy = built(replace(STRATEGIES["cat"], candidates=2, patience=0.2))
    levels = []
    for epoch, score in enumerate([10, 20, 20, 20, 5, 6, 7, 7, 7, 7, 7, 7], start=1):
        strategy.after_epoch(fake_target(progress=epoch / 10), score)
        levels.append(strategy.level)
    assert levels == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["pgd_at_uniform", "cat_pgd_at_as_released"])
def test_cat_trains_on_clean_images_at_level_zero_and_attacks_all_but_one_part_later(make_net, batch, name):
    strategy = built(STRATEGIES["cat"])
    training = make_training(make_net(), strategy, name)
    for level, moved in ((0, [False] * 6), (1, [False] * 3 + [True] * 3), (2, [False] * 2 + [True] * 4)):
        strategy.level = level
        x_adv, _ = training.craft_under(*batch, strategy.settings(training, batch[0]))
        assert ((x_adv - batch[0]).abs().amax((1, 2, 3)) > 0).tolist() == moved


# --- specs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": (("epsilon", ()),)}, "the options for epsilon are empty"),
        ({"options": (("epsilon", (0.0, 0.1)),)}, r"epsilon must lie in \(0, 1\]"),
        ({"options": (("step_size", (-0.1,)),)}, r"step_size must lie in \(0, 1\]"),
        ({"options": (("steps", (1.5,)),)}, "steps must be whole numbers >= 1"),
        ({"options": (("trade_off", (float("nan"),)),)}, "trade_off must be finite"),
        ({"options": (("steps", (3.0, 3.0)),)}, "steps are empty or name one value twice"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"lr": 0}, "lr must be above 0"),
        ({"clip": float("nan")}, "clip must be above 0"),
        ({"adv": -1}, "adv must be finite and 0 or more"),
        ({"clean": float("nan")}, "clean must be finite and 0 or more"),
    ],
)
def test_a_strategy_that_makes_no_sense_is_refused_in_a_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        replace(LAS_AT, **changes)


def test_an_unknown_kind_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="unknown kind of strategy 'greedy'; choose one of: random, frozen, learned"):
        built(replace(LAS_AT, kind="greedy"))


def test_options_are_in_proportion_to_the_radius():
    spec = replace(LAS_AT, options=(("epsilon", (3 / 255, 15 / 255)), ("steps", (3.0,)), ("trade_off", (5.0,))))
    assert scaled(spec, 8 / 255) == spec
    wide = dict(scaled(spec, 16 / 255).options)
    assert wide["epsilon"] == pytest.approx((6 / 255, 30 / 255))
    assert (wide["steps"], wide["trade_off"]) == ((3.0,), (5.0,))


def test_logits_that_are_not_finite_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="the strategy network diverged"):
        draw([torch.tensor([[0.0, float("nan")]])], Generator())


@pytest.mark.parametrize(("start", "widest"), [("drawn", 0.01), ("training", EPSILON)])
def test_attacks_start_in_the_drawn_ball_or_in_the_trainings(make_net, start, widest):
    spec = replace(
        small("random"), options=(("epsilon", (0.01,)), ("steps", (1.0,)), ("step_size", (0.001,))), start=start
    )
    training = make_training(make_net(), spec, "pgd_at_uniform")
    x = torch.full((20, 3, 4, 4), 0.5)
    begin = training.extras.strategy.start(training, uniform_in_image)
    moved = (begin(x, torch.full((20, 1, 1, 1), 0.01), Generator().manual_seed(0)) - x).abs().max()
    assert 0.9 * widest < moved <= widest + 1e-6


def test_the_perturbation_of_another_method_uses_the_weights_of_the_spec(make_net, batch):
    moved = []
    for trade_off in (0.0, 50.0):
        net = make_net()
        net.load_state_dict(moved[0][1] if moved else net.state_dict())
        before = deepcopy(net.state_dict())
        awp = AWP(0.5, method="trades", weights=(("trade_off", trade_off),))
        extras = TrainingExtras(awp=awp, awp_method=METHODS["trades"])
        training = make_training(net, None, extras=extras)
        with training._perturbed(net, batch[0], (batch[0] + 0.05).clamp(0, 1), batch[1], {}):
            moved.append((net[0].weight.detach().clone(), before))
    assert not torch.allclose(moved[0][0], moved[1][0])
