"""The released forms, which the speed benchmark measures against, compute what the library computes."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lib import benchmark
from lib.attacks.pgd import at_image, pgd
from lib.benchmark.released import RELEASED, ReleasedStep, attack
from lib.errors import UserError
from lib.losses import cross_entropy
from lib.models import build

BALL = {"epsilon": 0.1, "step_size": 0.03, "steps": 4}
CPU = torch.device("cpu")


def small_net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 10)
    )


def case_of(title, batch):
    """A case whose second network differs from the student, with batch-norm statistics that are not the fresh ones."""
    case = benchmark.Case(title, small_net, *batch, radius=0.1, steps=4)
    for norm in (module for module in case.nets.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean += 0.1 * torch.randn(6)
    with torch.no_grad():
        for parameter in case.nets[1].parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return case


def test_torchattacks_pgd_and_the_backward_loop_and_ours_make_the_same_images(make_net, batch):
    import torchattacks

    net, (x, y) = make_net().eval(), batch
    with torch.random.fork_rng():
        start = (x + torch.empty_like(x).uniform_(-BALL["epsilon"], BALL["epsilon"])).clamp(0, 1)
    theirs = torchattacks.PGD(net, eps=BALL["epsilon"], alpha=BALL["step_size"], steps=BALL["steps"])(x, y)
    looped = attack(lambda z: cross_entropy(net(z), y), x, start, **BALL)
    assert all(parameter.grad is not None for parameter in net.parameters())
    net.zero_grad()
    ours = pgd(lambda z: cross_entropy(net(z), y), x, **BALL, start=lambda *_: start)
    assert all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(theirs, ours)
    assert torch.equal(looped, ours)
    assert not torch.equal(ours, start)


@pytest.mark.parametrize("title", RELEASED)
def test_a_released_training_step_has_our_loss_and_makes_our_weights(title, batch):
    case = case_of(title, batch)
    ours, theirs = benchmark.training(case), ReleasedStep(case)
    x_adv, loss = theirs()
    assert float((x_adv - case.x).abs().max()) > 0.02
    terms = ours.train_step(case.x, case.y)
    assert float(sum(terms.values())) == pytest.approx(float(loss), rel=1e-5)
    for own, other in zip(ours.student.parameters(), theirs.nets[0].parameters(), strict=True):
        torch.testing.assert_close(own, other)
    assert not torch.equal(ours.student[0].weight, case.nets[0][0].weight)


@pytest.mark.parametrize("execution", ["fast", "plain"])
@pytest.mark.parametrize("title", RELEASED)
def test_after_two_steps_both_networks_are_the_released_forms_statistics_and_all(title, execution, batch):
    case = case_of(title, batch)
    ours, theirs = benchmark.training(case, execution=execution), ReleasedStep(case)
    for _ in range(2):
        theirs()
        ours.generator.manual_seed(0)  # the released form starts where it started
        ours.train_step(case.x, case.y)
    pairs = [(ours.student, theirs.nets[0])]
    pairs += [(ours.guide, theirs.nets[1])] if case.method.trains_guide else []
    for own, other in pairs:
        mine, others = own.state_dict(), other.state_dict()
        for key in (key for key in mine if not key.endswith("num_batches_tracked")):
            torch.testing.assert_close(mine[key], others[key], msg=lambda text, key=key: f"{key}: {text}")


def test_finished_images_of_las_at_stay_in_the_batch_of_the_released_form_only(batch):
    case = case_of("LAS-PGD-AT", batch)
    assert len(case.settings["steps"].unique()) > 1
    ours, theirs, counts = benchmark.training(case), ReleasedStep(case), {"ours": 0, "theirs": 0}
    for name, net in (("ours", ours.student), ("theirs", theirs.nets[0])):
        net.register_forward_hook(lambda module, given, out, name=name: counts.update({name: counts[name] + len(out)}))
    theirs()
    ours.train_step(case.x, case.y)
    images, steps = len(case.x), case.settings["steps"]
    assert counts == {"theirs": images * (int(steps.max()) + 1), "ours": int(steps.sum()) + images}


def test_a_method_that_was_not_released_is_refused(batch):
    with pytest.raises(UserError, match="unknown method 'TRADE'; choose one of: TRADES, PGD-AT"):
        benchmark.Case("TRADE", small_net, *batch, radius=0.1, steps=4)


# --- how much is saved, counted and not timed ---------------------------------------------------------------------


class NoModules:
    """In place of the counter's module tracker, whose hooks fail under torch.autograd.grad."""

    parents = frozenset({"Global"})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def operations(work):
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter:
        work()
    return counter.get_total_flops()


SAVED = {  # operations of the released step over ours, ten attack steps, in fp32
    "PGD-AT": 1.43,  # 33 passes to 23: no gradients of weights in the attack
    "TRADES": 1.30,  # no clean forward at every attack step
    "DYNAT-Inner": 1.32,  # no guide's forward at every attack step, none kept for a term without weight
    "D2R-CAG": 1.30,
    "AdaAD": 1.04,  # no backward of the clean term, whose weight is 0
    "DGAD": 1.0,
    "LAS-PGD-AT": 2.4,  # and images that are finished leave
}


@pytest.mark.parametrize("title", RELEASED)
def test_a_training_step_saves_its_share_of_operations(title):
    torch.manual_seed(0)
    x, y = benchmark.noise(8, 16, CPU)
    case = benchmark.Case(title, partial(build, "ResNet10-w8", classes=10), x, y, radius=0.03, steps=10)
    ours = benchmark.training(case)
    saved = operations(ReleasedStep(case)) / operations(lambda: ours.train_step(x, y))
    assert saved >= 0.99 * SAVED[title]


def test_a_backward_loop_costs_half_as_much_again_as_the_gradient_of_the_input():
    x, y = benchmark.noise(4, 16, CPU)
    net = build("ResNet10-w8", classes=10).eval()
    forward = operations(lambda: net(x))
    ours = operations(lambda: pgd(lambda z: cross_entropy(net(z), y), x, **BALL, start=at_image))
    looped = operations(lambda: attack(lambda z: cross_entropy(net(z), y), x, x, **BALL))
    assert ours / (BALL["steps"] * forward) == pytest.approx(2, rel=0.03)
    assert looped / ours == pytest.approx(1.5, rel=0.03)


def test_every_form_of_pgd_changes_no_network_and_ours_does_equal_operations_in_every_precision():
    x, y = benchmark.noise(4, 16, CPU)
    case = benchmark.Case("PGD-AT", partial(build, "ResNet10-w8", classes=10), x, y, radius=0.03, steps=2)
    before = {name: tensor.clone() for name, tensor in case.nets[0].state_dict().items()}
    forms = benchmark.pgd_forms(case, ("fp32", "bf16"))
    assert list(forms) == ["torchattacks", "loss.backward()", "ours, fp32", "ours, bf16"]
    for work in forms.values():
        work()
    assert all(torch.equal(before[name], tensor) for name, tensor in case.nets[0].state_dict().items())
    ours = [operations(forms[f"ours, {precision}"]) for precision in ("fp32", "bf16")]
    assert ours[0] == pytest.approx(ours[1], rel=0.01)


@pytest.mark.parametrize("title", ["PGD-AT", "D2R-CAG", "AdaAD"])
def test_the_memory_of_a_step_in_bf16_is_well_below_the_released_forms(title):
    x, y = benchmark.noise(16, 32, CPU)
    case = benchmark.Case(title, partial(build, "ResNet10-w8", classes=10), x, y, radius=0.03, steps=1)
    makes = {
        "ours": lambda: partial(benchmark.training(case, "bf16").train_step, x, y),
        "theirs": partial(ReleasedStep, case),
    }
    held = {name: benchmark.peak_memory(make, CPU) for name, make in makes.items()}
    assert held["ours"] < 0.7 * held["theirs"]
