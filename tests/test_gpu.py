"""What a CPU cannot check: `pytest -m gpu` on a machine with CUDA runs all of it."""

import gc
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from test_attacks_autoattack import BATCH, EPSILON, QUERIES, STEPS, TARGETS, authors, labelled, small_net

from lib.attacks import autoattack
from lib.attacks.autoattack import standard
from lib.attacks.fast import Engine
from lib.attacks.pgd import PerImage, at_image, pgd
from lib.data import Split, load
from lib.evaluate import AttackSpec, accuracy
from lib.losses import cross_entropy
from lib.methods import METHODS
from lib.models import build
from lib.train import Schedule, TrainingExtras, build_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ATTACKING = [name for name, method in METHODS.items() if method.objective is not None]
ATTACK = partial(pgd, epsilon=0.1, step_size=0.03, steps=3)


@pytest.fixture(autouse=True)
def _exact():
    """fp32 is fp32, and equal calls give equal bits."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn
    torch.backends.cuda.matmul.allow_tf32 = False
    with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
    torch.backends.cuda.matmul.allow_tf32 = matmul


def start(name, nets, execution="fast", precision="fp32", images=None, batch_size=4):
    """A training on copies of the networks: ten images in batches of four, the last of two."""
    method, (student, other) = METHODS[name], (deepcopy(net).cuda() for net in nets)
    if images is None:
        images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(len(images)) % 10
    return build_training(
        student,
        other if method.needs_teacher else None,
        method,
        ATTACK,
        Split(images.cuda(), labels.cuda()),
        Schedule(3, batch_size=batch_size, lr=0.05),
        lambda net: 0.0,
        extras=TrainingExtras(other if method.trains_guide else None),
        execution=execution,
        precision=precision,
    )


def assert_same_weights(one, other, **tolerance):
    for part in ("student", "guide"):
        if getattr(one, part) is not None:
            own, theirs = getattr(one, part).state_dict(), getattr(other, part).state_dict()
            for key in own:
                torch.testing.assert_close(own[key], theirs[key], **tolerance)


def static(name):
    return METHODS[name].attack_mode == "eval" and METHODS[name].criterion is None


# --- recorded attacks ----------------------------------------------------------------------------------------------


def attacked(engine, net, x, y):
    view = engine.attack_view(net)
    objective = PerImage(lambda z, y: cross_entropy(view(z), y), (y,))
    return engine.attack(ATTACK, objective, x, start=at_image)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_attack_is_the_plain_one_on_full_and_padded_batches_and_follows_the_weights(
    precision, make_net, batch
):
    net, (x, y) = make_net().eval().cuda(), (tensor.cuda() for tensor in batch)
    engine, plain = Engine("fast", precision), Engine("plain", precision)
    images = []
    for count in (6, 6, 4, 1):
        with torch.no_grad():
            net[0].weight.mul_(1.1)
        ours, theirs = (attacked(each, net, x[:count], y[:count]) for each in (engine, plain))
        off = ((ours - theirs).abs() > 1e-4).float().mean()  # a gradient next to zero may change its sign
        assert off <= (0.01 if precision == "fp32" else 0.1)
        images.append(ours)
    assert engine.reasons == {}
    assert len(engine._captured) == 1
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("name", ATTACKING)
def test_every_method_trained_with_a_recorded_attack_reaches_the_plain_paths_weights(name, make_net):
    nets = make_net(), make_net()
    plain, fast = (start(name, nets, execution) for execution in ("plain", "fast"))
    for training in (plain, fast):
        training.epoch()
    assert fast.engine.reasons == {}
    assert len(fast.engine._captured) == static(name)
    assert_same_weights(fast, plain, atol=1e-4, rtol=1e-3)


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["fast", "plain"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_crafting"])
@pytest.mark.parametrize("name", METHODS)
def test_every_methods_training_step_runs(name, precision, execution, make_net):
    training = start(name, (make_net(), make_net()), execution, precision)
    before = deepcopy(training.student.state_dict())
    terms = training.train_step(training.data.images[:4], training.data.labels[:4])
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert any(not torch.equal(before[key], value) for key, value in training.student.state_dict().items())


def test_images_crafted_in_bf16_leave_the_flags_of_fp32_but_for_one_percent():
    digits = load("digits", data_dir=Path("data")).to(torch.device("cuda"))
    net = build("ResNet8-w8", classes=10, channels=1).cuda()
    attack = partial(pgd, epsilon=0.15, step_size=0.04, steps=5)
    data, schedule = digits.train, Schedule(4, batch_size=64, lr=0.1)
    build_training(net, None, METHODS["pgd_at"], attack, data, schedule, lambda net: 0.0).run()
    columns = (AttackSpec("PGD", "pgd", 0.15, 0.04, 20, crafting=crafting) for crafting in ("fp32", "bf16"))
    one, other = (accuracy(net.eval(), digits.test, column).flags for column in columns)
    assert 0.2 < one.count("1") / len(one) < 0.98
    assert sum(a != b for a, b in zip(one, other, strict=True)) <= 0.01 * len(one)


# --- AutoAttack ----------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(autoattack, "STEPS", STEPS)
    monkeypatch.setattr(autoattack, "QUERIES", QUERIES)
    monkeypatch.setattr(autoattack, "TARGETS", TARGETS)


@pytest.mark.usefixtures("short")
def test_autoattack_makes_the_authors_images_and_has_the_cpus_flags_and_resumes(tmp_path):
    net = small_net()
    x, y = labelled(net)
    attack = partial(standard, epsilon=EPSILON, batch_size=BATCH)
    on_cpu = attack(net, x, y)
    net, x, y = net.cuda(), x.cuda(), y.cuda()
    result = attack(net, x, y, folder=tmp_path)
    assert result.x_adv.is_cuda
    assert result.x_adv.equal(authors(net, x, y))
    for stage, flags in on_cpu.robust.items():
        assert (result.robust[stage].cpu() != flags).sum() <= 1  # rounding differs from device to device
    again = attack(net, x, y, folder=tmp_path)
    assert again.x_adv.equal(result.x_adv)
    assert all(again.robust[stage].equal(flags) for stage, flags in result.robust.items())


# --- resuming, memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_training_reaches_the_weights_of_one_that_was_not_stopped(precision, make_net):
    nets = make_net(), make_net()
    whole, stopped = (start("trades", nets, precision=precision) for _ in range(2))
    whole.epoch(), whole.epoch()
    stopped.epoch()
    resumed = start("trades", nets, precision=precision)
    resumed.load_state_dict(deepcopy(stopped.state_dict()))
    resumed.epoch()
    assert_same_weights(resumed, whole, atol=1e-6, rtol=1e-5)


def peak(execution, precision, record=None):
    """Bytes that a second training step of PGD-AT allocates at most, networks and optimiser included."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    net = build("ResNet18", classes=10)
    training = start("pgd_at", (net, torch.nn.Identity()), execution, precision, torch.rand(64, 3, 32, 32), 64)
    training.engine.record = record
    training.train_step(training.data.images, training.data.labels)
    torch.cuda.reset_peak_memory_stats()
    training.train_step(training.data.images, training.data.labels)
    return torch.cuda.max_memory_allocated() - before


def refuse(work):
    raise RuntimeError("not recorded")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fast_step_takes_no_more_memory_than_a_plain_one_and_bf16_takes_less_than_fp32(precision):
    plain = peak("plain", precision)
    assert peak("fast", precision, refuse) <= 1.01 * plain
    assert peak("fast", precision) <= 1.5 * plain  # a recording keeps memory of its own, beside the training step's
    if precision == "bf16":
        assert plain < 0.8 * peak("plain", "fp32")
