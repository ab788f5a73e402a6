"""The plain forms, which the speed benchmark measures against, compute what the library computes."""

from functools import partial

import pytest
import torch
from torch import nn

from lib import benchmark
from lib.attacks.levers import PLAIN, STANDARD, Levers
from lib.attacks.pgd import at_image, pgd
from lib.benchmark import released
from lib.benchmark.released import Ball
from lib.data import Split
from lib.experiment.cost import counted
from lib.losses import cross_entropy
from lib.methods import METHODS
from lib.models import build

BALL = Ball(0.1, 0.03, 4)


def small_net():
    """As in conftest, with images large enough to be attacked in many ways."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 10)
    )


def case_of(name, batch):
    x, y = batch
    made = benchmark.case(name, small_net, x, y, 0.1, 4)
    made.nets.student.eval()
    for module in (made.nets.student[1], *([made.nets.other[1]] if len(list(made.nets.other.children())) else [])):
        module.running_mean += 0.1 * torch.randn(6)
    with torch.no_grad():
        for parameter in made.nets.other.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def test_torchattacks_pgd_and_the_backward_loop_and_ours_make_the_same_images(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    state = torch.get_rng_state()
    begun = released.torchattacks_start(x, BALL.epsilon)
    torch.set_rng_state(state)
    theirs = released.pgd_by_torchattacks(net, x, y, BALL)
    looped = released.pgd_with_backward(net, x, y, begun, BALL)
    ours = pgd(lambda z: cross_entropy(net(z), y), x, **vars(BALL), start=lambda *_: begun)
    torch.testing.assert_close(theirs, ours)
    assert torch.equal(looped, ours)
    assert not torch.equal(ours, begun)


def test_the_backward_loop_leaves_gradients_on_every_weight_and_ours_leaves_none(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    pgd(lambda z: cross_entropy(net(z), y), x, **vars(BALL), start=at_image)
    assert all(parameter.grad is None for parameter in net.parameters())
    released.pgd_with_backward(net, x, y, x, BALL)
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", released.RELEASED)
def test_a_released_training_step_makes_our_images_our_loss_and_our_weights(name, batch):
    case = case_of(name, batch)
    ours, theirs = benchmark.training(case), benchmark.ReleasedStep(case)
    x_adv, loss = theirs()
    crafted, _ = benchmark.training(case).craft(case.x, case.y)
    torch.testing.assert_close(crafted, x_adv)
    terms = ours.train_step(case.x, case.y)
    assert float(sum(terms.values())) == pytest.approx(float(loss), rel=1e-5)
    for own, other in zip(ours.student.parameters(), theirs.nets.student.parameters(), strict=True):
        torch.testing.assert_close(own, other)
    assert not torch.equal(ours.student[0].weight, case.nets.student[0].weight)


@pytest.mark.parametrize("name", released.RELEASED)
def test_after_two_steps_both_networks_are_the_released_forms_statistics_and_all(name, batch):
    case = case_of(name, batch)
    ours, theirs = benchmark.training(case), benchmark.ReleasedStep(case)
    for _ in range(2):
        theirs()
        ours.generator.manual_seed(0)  # the released form begins where it began
        ours.train_step(case.x, case.y)
    pairs = [(ours.student, theirs.nets.student)]
    pairs += [(ours.guide, theirs.nets.other)] if METHODS[name].trains_guide else []
    for own, other in pairs:
        mine, others = own.state_dict(), other.state_dict()
        for key in (key for key in mine if not key.endswith("num_batches_tracked")):
            torch.testing.assert_close(mine[key], others[key], msg=lambda said, key=key: f"{key}: {said}")


def counting(net, log):
    return lambda z: log.append(len(z)) or net(z)


def settings_of(training):
    strategy = training.extras.strategy
    return {} if strategy is None else strategy.settings(training, training.data.images)


def test_images_of_las_at_that_are_finished_wait_in_the_released_form_only(batch):
    case = case_of(benchmark.LAS, batch)
    assert len(case.ball.steps.unique()) > 1
    seen = {"ours": 0, "released": 0}
    ours, nets = benchmark.training(case), released.PlainNets(case.nets.student)

    def count(name):
        return lambda module, given, out: seen.update({name: seen[name] + len(out)})

    nets.student.register_forward_hook(count("released"))
    released.attack(lambda z: nets.student(z).sum(), released.by_grad, case.x, case.start, case.ball)
    assert seen["released"] == len(case.x) * int(case.ball.steps.max())
    ours.student.register_forward_hook(count("ours"))
    watched = []
    real = ours.engine.seen
    ours.engine.seen = lambda net, x: counting(real(net, x), watched)
    ours.craft(case.x, case.y)
    assert sum(watched) == int(case.ball.steps.sum())


def test_the_loader_and_the_device_give_every_image_once_per_epoch():
    split = Split(torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8), torch.arange(10))
    batches = list(released.loader(split, 4))
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(10))
    assert [x.shape for x, _ in batches] == [(4, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)]
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x, _ in batches)


# --- how much is saved, counted and not timed ---------------------------------------------------------------------

SAVED = {  # operations of the released step over ours, ten attack steps: what must not be lost in fp32
    "pgd_at_uniform": 1.43,  # 33 passes to 23: no gradients of weights in the attack
    "trades_as_released": 1.30,  # no clean forward at every attack step
    "dynat_inner": 1.32,  # no guide's forward at every attack step, none kept for a term without weight
    "d2r_as_released": 1.30,
    "adaad": 1.04,  # no backward of the clean term, whose weight is 0
    "dgad": 1.0,
    benchmark.LAS: 2.4,  # and images that are finished leave
}


@pytest.mark.parametrize("name", released.RELEASED)
def test_a_training_step_saves_the_share_of_operations_that_it_did(name):
    torch.manual_seed(0)
    x, y = benchmark.noise(8, 16, torch.device("cpu"))
    case = benchmark.case(name, partial(build, "ResNet10-w8", classes=10), x, y, 0.03, 10)
    theirs, ours = benchmark.ReleasedStep(case), benchmark.training(case)
    assert counted(theirs) / counted(lambda: ours.train_step(x, y)) >= 0.99 * SAVED[name]


def test_a_gradient_costs_a_forward_and_a_backward_for_the_input_and_a_backward_loop_half_as_much_again():
    x, y = benchmark.noise(4, 16, torch.device("cpu"))
    net = build("ResNet10-w8", classes=10).eval()
    forward = counted(lambda: net(x))
    ours = counted(benchmark.attack_of(net, x, y, 0.03, 4, STANDARD))
    looped = counted(lambda: released.pgd_with_backward(net, x, y, x, Ball(0.03, 0.01, 4)))
    assert ours / (4 * forward) == pytest.approx(2, rel=0.03)
    assert looped / ours == pytest.approx(1.5, rel=0.03)


def test_bf16_and_folding_do_the_same_operations():
    x, y = benchmark.noise(4, 16, torch.device("cpu"))
    net = build("ResNet10-w8", classes=10).eval()
    done = []
    for levers in (PLAIN, STANDARD, Levers(bf16=True)):
        attack = benchmark.attack_of(net, x, y, 0.03, 2, levers)
        attack()  # bf16 is tried on one image first, once
        done.append(counted(attack))
    assert done[1:] == pytest.approx(done[:-1], rel=0.01)


@pytest.mark.parametrize("name", released.RELEASED)
def test_the_memory_of_a_step_in_bf16_is_well_below_the_released_forms(name):
    x, y = benchmark.noise(32, 32, torch.device("cpu"))
    cases = {name: benchmark.case(name, partial(build, "ResNet10-w8", classes=10), x, y, 0.03, 1)}
    levers = Levers(folding=True, channels_last=True, bf16=True, leave=True, in_backward=True)
    assert benchmark.memory(cases, levers, torch.device("cpu")).share.item() < 0.6
