"""One training by two processes (gloo, CPU) computes what one process computes on the same batches; in float64."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from test_train_loop import ATTACK, DATA, make_extras
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from lib.attacks.folding import folded
from lib.attacks.pgd import pgd
from lib.data import Split
from lib.errors import UserError
from lib.losses import cross_entropy
from lib.methods import METHODS, dgad_parts
from lib.methods.strategies import STRATEGIES
from lib.models import build
from lib.train import Schedule, TrainingExtras, build_training
from lib.train.devices import Parallel, Synchronised, engine, own, weights_agree

SYNCHRONISED, PER_DEVICE = Parallel("synchronised"), Parallel("per_device", 2)
TOLERANCE = {"atol": 1e-12, "rtol": 1e-12}  # the largest difference seen is 8e-15
UNEVEN = {"batch_size": 3}  # of ten images: parts of two and one, and of one and none in the last batch
REFUSED = {"rat_trades"}
QUICK = ("pgd_at", "rice_pgd_at_as_released", "fat_as_released", "gairat", "d2r_as_released", "dynat_mail_inner")
MODELS = ("ResNet8-w8", "PreActResNet8-w8", "WideResNet-10-1", "MobileNetV2-small", "VGG-small")


class ToDouble(nn.Module):
    def forward(self, x):
        return x.double()


def make_net():
    """Convolution, batch-norm, relu, linear, in float64."""
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(ToDouble(), *layers).double()


def begin(method="pgd_at", *, parallel=SYNCHRONISED, extras=TrainingExtras, batch_size=7, epochs=2, **more):
    """A training of ten images; in one process where there is no other."""
    torch.manual_seed(1)
    teacher, settings = make_net() if METHODS[method].needs_teacher else None, extras()
    if METHODS[method].trains_guide and settings.guide is None:
        settings = replace(settings, guide=make_net())
    student, data = more.pop("student", make_net)(), more.pop("data", DATA)
    schedule, attack = Schedule(epochs, batch_size=batch_size, lr=0.05), partial(ATTACK, steps=2)
    given = (student, teacher, METHODS[method], attack, data, schedule, lambda net: 0.0)
    return build_training(*given, extras=settings, padding=1, flip=True, parallel=parallel, **more)


def train(*names, **settings):
    """All that it ends with; every rank has the same weights."""
    training = begin(*names, **settings)
    training.run()
    weights_agree(training.student)
    state = {name: part for name, part in training.state_dict().items() if name not in ("best", "costs", "scheduler")}
    return {"state": state, "labels": training.labels_right}


def with_strategy(name, **more):
    """A strategy, AWP, an average and a guide, all in float64."""
    extras = make_extras(name, make_net, 2)
    strategy = extras.strategy
    if strategy.net is not None:
        strategy.net = nn.Sequential(ToDouble(), strategy.net.double())
        strategy.optimizer = torch.optim.SGD(strategy.net.parameters(), strategy.spec.lr, strategy.spec.momentum)
    return replace(extras, **more)


def las(name, method, **more):
    return partial(train, method, epochs=4, extras=partial(with_strategy, name, **more))


def of_model(name, precision="fp32"):
    """One epoch of five images of 8x8 by a network of ours, the last one alone in its batch."""
    images = torch.arange(5 * 192).mul(37).remainder(256).byte().view(5, 3, 8, 8)
    cast = (lambda net: nn.Sequential(ToDouble(), net.double())) if precision == "fp32" else lambda net: net
    student = lambda: cast(build(name, classes=10))  # noqa: E731
    data = Split(images, torch.arange(5))
    return partial(train, student=student, data=data, batch_size=4, epochs=1, precision=precision)


def gradients(parallel=SYNCHRONISED):
    """Of the mean cross-entropy of seven images: loss, gradients, running statistics; how many this rank forwarded."""
    torch.manual_seed(1)
    net, counts = make_net(), []
    x, y = torch.rand(7, 3, 4, 4), torch.arange(7)
    made = engine(parallel, "fast", "fp32")
    view = made.training_view(made.lay_out(net))
    net.register_forward_hook(lambda module, images, logits: counts.append(len(logits)))
    loss = cross_entropy(view(x), y).mean()
    loss.backward()
    slopes = [parameter.grad for parameter in net.parameters()]
    return counts, {"loss": loss.detach(), "of": slopes, "buffers": dict(net.named_buffers())}


def per_device_beside_ddp():
    """Gradients of eight images with per-device statistics, and those of torch's DistributedDataParallel."""
    torch.manual_seed(1)
    net, x, y = make_net(), torch.rand(8, 3, 4, 4), torch.arange(8)
    other = DistributedDataParallel(deepcopy(net))
    cross_entropy(other(x[own(8)]), y[own(8)]).mean().backward()
    made = engine(PER_DEVICE, "fast", "fp32")
    cross_entropy(made.training_view(made.lay_out(net))(x), y).mean().backward()
    return [p.grad for p in net.parameters()], [p.grad for p in other.parameters()]


def forwarded_by_fat():
    """How many images this rank forwards in each step of an attack whose images leave when they are wrong."""
    training, counts = begin("fat", epochs=1, batch_size=10), []
    answers = training.student.eval()(DATA.images / 255).argmax(1)  # so that all are right at first
    training.data = Split(DATA.images, answers)
    training.student.register_forward_hook(lambda module, images, logits: counts.append(len(logits)))
    training.attack = partial(pgd, epsilon=0.3, step_size=0.1, steps=5)
    training.run()
    return counts


def partition(parallel=SYNCHRONISED):
    """Which of ten images DGAD's teacher errs on, and the terms of its code, whose sums go over the batch."""
    training = begin("dgad_as_released", parallel=parallel)
    x, y = DATA.images / 255, DATA.labels % 2
    training.teacher[5].bias.data[1] += 5.0  # of two kinds of labels one is right
    wrong = dgad_parts(training.nets, x, x, y)[3]
    return {"wrong": wrong, "terms": METHODS["dgad_as_released"].loss(training.nets, x, x, y, beta=5.0, nominal=12.0)}


def of_one_pixel():
    """A network whose batch-norm sees one pixel of every image."""
    return nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))


def refused(work):
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def with_other_weights():
    weights_agree(nn.Linear(1, 1).requires_grad_(False).apply(lambda net: net.weight.fill_(dist.get_rank())))


FAST = {name: partial(train, name, **UNEVEN) for name in QUICK}
FAST |= {"las_at": las("las_at", "trades"), "las_at's code": las("las_trades_as_released", "trades", average=0.0)}
FAST |= {"dgad": partial(train, "dgad_as_released", **UNEVEN), "partition": partition, "gradients": gradients}
APART = {  # what one process does not compute, or not the same
    "per device": partial(train, parallel=PER_DEVICE),
    "per-device gradients": partial(gradients, PER_DEVICE),
    "beside ddp": per_device_beside_ddp,
    "forwarded by fat": forwarded_by_fat,
    "rat": partial(refused, partial(train, "rat_trades")),
    "other weights": partial(refused, with_other_weights),
    "1d": partial(refused, lambda: engine(SYNCHRONISED, "fast", "fp32").lay_out(nn.BatchNorm1d(2))),
    "of three": partial(refused, partial(engine, Parallel("per_device", 3), "fast", "fp32")),
    "one value": partial(refused, partial(train, student=of_one_pixel, data=DATA.take(slice(0, 8)))),
    "no image": partial(refused, partial(train, parallel=PER_DEVICE, **UNEVEN)),
    "bf16": of_model("ResNet8-w8", "bf16"),
}
FAST |= APART
SLOW = {name: partial(train, name, **UNEVEN) for name in METHODS if name not in REFUSED}
SLOW |= {f"{name}, a guide, AWP and an average": las(name, "lbgat") for name in STRATEGIES}
SLOW |= {name: of_model(name) for name in MODELS}


def in_rank(rank, folder, which):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({name: work() for name, work in globals()[which].items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(folder, which):
    """What every work of FAST or SLOW returns in each of two ranks."""
    spawn(in_rank, (folder, which), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    return in_two_processes(tmp_path_factory.mktemp("fast"), "FAST")


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return in_two_processes(tmp_path_factory.mktemp("slow"), "SLOW")


def same(both, one):
    """The same bits in both ranks, and those of one process to rounding."""
    torch.testing.assert_close(both[0], both[1], atol=0, rtol=0)
    torch.testing.assert_close(both[0], one, **TOLERANCE)


def test_two_processes_have_the_loss_the_gradients_and_the_running_statistics_of_one(fast):
    (first, found), (second, again) = (each["gradients"] for each in fast)
    same((found, again), gradients()[1])
    assert (first, second) == ([4], [3])


@pytest.mark.parametrize("name", [*QUICK, "dgad", "las_at", "las_at's code"])
def test_a_training_by_two_processes_ends_in_the_weights_and_the_history_of_one(fast, name):
    same([each[name] for each in fast], FAST[name]())


@pytest.mark.parametrize("name", ["las_at", "las_at's code"])
def test_las_ats_reward_and_its_networks_steps_are_those_of_the_whole_batch(fast, name):
    one, two = FAST[name]()["state"], fast[0][name]["state"]
    histories = one["history"], two["history"]
    rewards, found = ([row["strategy"]["reward"] for row in history] for history in histories)
    assert None not in rewards
    assert found == pytest.approx(rewards, abs=1e-12)
    assert all(a["strategy"]["chosen"] == b["strategy"]["chosen"] for a, b in zip(*histories, strict=True))
    torch.testing.assert_close(two["strategy"], one["strategy"], **TOLERANCE)


def test_dgads_partition_and_its_sums_are_those_of_the_whole_batch(fast):
    one = partition()
    same([each["partition"] for each in fast], one)
    assert {*one["wrong"][own(10)].tolist()} == {True, False}
    assert one["wrong"][:5].sum() != one["wrong"][5:].sum()


def test_an_attack_whose_images_leave_forwards_each_of_the_others_once(fast):
    (first, second), one = (each["forwarded by fat"] for each in fast), forwarded_by_fat()
    assert [sum(pair) for pair in zip(first, second, strict=True)] == one
    assert all(a - b in (0, 1) for a, b in zip(first, second, strict=True))
    assert len(set(one)) > 2


def test_per_device_gradients_are_those_of_torchs_distributed_data_parallel(fast):
    for own_gradients, ddps in (each["beside ddp"] for each in fast):
        torch.testing.assert_close(own_gradients, ddps, **TOLERANCE)


def test_per_device_statistics_differ_from_synchronised_ones_and_are_the_same_on_both_devices(fast):
    torch.testing.assert_close(fast[0]["per device"], fast[1]["per device"], atol=0, rtol=0)
    (_, found), (_, again) = (each["per-device gradients"] for each in fast)
    torch.testing.assert_close(found, again, atol=0, rtol=0)
    one = gradients()[1]
    assert abs(found["loss"] - one["loss"]) > 1e-4
    torch.testing.assert_close(found["buffers"]["2.running_mean"], one["buffers"]["2.running_mean"], **TOLERANCE)
    assert not torch.allclose(found["buffers"]["2.running_var"], one["buffers"]["2.running_var"])


def test_bf16_by_two_processes_is_that_of_one_to_its_rounding(fast):
    found, again, one = fast[0]["bf16"], fast[1]["bf16"], of_model("ResNet8-w8", "bf16")()
    torch.testing.assert_close(found, again, atol=0, rtol=0)
    torch.testing.assert_close(found["state"]["student"], one["state"]["student"], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("rat", "RAT's labels need every image's features"),
        ("other weights", "the weights are not the same on all devices"),
        ("1d", "on several devices batch-norm is of images"),
        ("of three", "batch statistics of 3 devices' parts want as many processes, and there are 2"),
        ("one value", "a batch of 1 image has no batch statistics"),
        ("no image", "a batch of 1 image has no batch statistics"),
    ],
)
def test_what_several_devices_cannot_compute_is_refused_on_each_of_them(fast, what, message):
    assert all(message in each[what] for each in fast)


def test_statistics_of_two_devices_are_not_computed_by_one_process():
    with pytest.raises(UserError, match="torchrun --nproc-per-node 2"):
        begin(parallel=PER_DEVICE)


def test_batch_norm_of_several_devices_is_folded_for_attacks_as_torchs_is():
    net, plain = (build("ResNet8-w8", classes=10).eval() for _ in range(2))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = Synchronised
    assert folded(net).code == folded(plain).code
    assert folded(net) is not net


@pytest.mark.parametrize("given", [("per_device",), ("per_device", 1), ("synchronised", 2), ("frozen",)])
def test_a_number_of_devices_goes_with_per_device_statistics_alone(given):
    with pytest.raises(UserError, match="batch_norm"):
        Parallel(*given)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_method_strategy_and_network_ends_by_two_processes_where_it_ends_by_one(slow, name):
    same([each[name] for each in slow], SLOW[name]())
