"""Each lever makes the same images, and where one cannot be had the plain path is taken."""

import gc
import time
import weakref
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from recorder import Recorder
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from lib.attacks import engine
from lib.attacks.calibration import ORDER, Probe, Tried, _try, calibrate
from lib.attacks.engine import Engine
from lib.attacks.folding import lowered
from lib.attacks.levers import PLAIN, STANDARD, Levers
from lib.attacks.pgd import PerImage, at_image, pgd
from lib.attacks.recorded import Captured
from lib.attacks.update import stepped_in_backward
from lib.data import Split
from lib.errors import UserError
from lib.losses import cross_entropy
from lib.methods import METHODS
from lib.methods.strategy import Strategy, StrategySpec
from lib.models import build
from lib.train import Schedule, Training, TrainingExtras

ATTACK = partial(pgd, epsilon=0.1, step_size=0.03, steps=3)


def attacked(engine, net, x, y, **chosen):
    seen = engine.seen(net, x)
    objective = PerImage(lambda z, y: cross_entropy(seen(z), y), (y,))
    return engine.attack(ATTACK, objective, x, start=at_image, **chosen)


def trained(net, **settings):
    images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    data = Split(images, torch.arange(10))
    training = Training(
        net, None, METHODS["pgd_at"], ATTACK, data, Schedule(1, batch_size=4), lambda net: 0.0, **settings
    )
    training.epoch()
    return training


@pytest.mark.parametrize("lever", ["folding", "channels_last", "leave", "cuda_graph"])
def test_an_fp32_lever_makes_the_same_images_as_the_plain_path(lever, make_net, batch):
    net, (x, y) = make_net().eval(), batch
    steps = torch.tensor([1, 4, 2, 3, 1, 2])
    for chosen in ({}, {"steps": steps}):
        plain = attacked(Engine(PLAIN), net, x, y, **chosen)
        assert not torch.equal(plain, x)
        engine = Engine(replace(PLAIN, **{lever: True}), record=Recorder())
        other = attacked(engine, engine.laid_out(deepcopy(net)), x, y, **chosen)
        torch.testing.assert_close(other, plain)


def test_networks_are_laid_out_as_the_levers_say_whatever_they_were(make_net):
    net = make_net()
    for levers in (STANDARD, PLAIN, STANDARD):
        weight = Engine(levers).laid_out(net)[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == levers.channels_last
        assert weight.is_contiguous() != levers.channels_last


def test_with_leave_each_image_is_forwarded_as_often_as_it_steps_and_without_it_as_often_as_the_longest(
    make_net, batch
):
    net, (x, y) = make_net().eval(), batch
    steps = torch.tensor([1, 4, 2, 3, 1, 2])
    forwarded = []
    net.register_forward_hook(lambda module, given, out: forwarded.append(len(out)))
    for levers, expected in ((Levers(leave=True), 13), (PLAIN, 24)):
        forwarded.clear()
        attacked(Engine(levers), net, x, y, steps=steps)
        assert sum(forwarded) == expected


def test_a_recording_is_made_once_replayed_padded_and_follows_the_weights(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    graph = Recorder()
    engine = Engine(Levers(folding=True, leave=True, cuda_graph=True), record=graph)
    for count in (6, 6, 4, 1):
        with torch.no_grad():
            net[0].weight.mul_(1.1)
        made = attacked(engine, net, x[:count], y[:count])
        torch.testing.assert_close(made, attacked(Engine(STANDARD), net, x[:count], y[:count]))
    assert (graph.records, graph.replays) == (1, 4)


def test_what_a_recording_reads_lives_as_long_as_the_recording(make_net, batch, monkeypatch):
    read, real = [], engine.per_image

    def per_image(value, x):
        made = real(value, x)
        read.append(weakref.ref(made))
        return made

    monkeypatch.setattr(engine, "per_image", per_image)
    engine = Engine(Levers(folding=True, cuda_graph=True), record=lambda work: (lambda: None, work()))
    attacked(engine, make_net().eval(), *batch)
    gc.collect()
    assert sum(one() is not None for one in read) >= 2  # the radius and the step size

    del engine
    gc.collect()
    assert not any(one() is not None for one in read)


def test_a_larger_batch_is_recorded_anew_and_a_result_survives_the_next_replay(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    graph = Recorder()
    engine = Engine(Levers(leave=True, cuda_graph=True), record=graph)
    first = attacked(engine, net, x[:2], y[:2])
    kept = first.clone()
    attacked(engine, net, x, y)
    attacked(engine, net, x[2:4], y[2:4])
    assert graph.records == 2
    assert torch.equal(first, kept)


def test_attacks_that_differ_from_image_to_image_are_not_recorded(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    graph = Recorder()
    engine = Engine(Levers(leave=True, cuda_graph=True), record=graph)
    attacked(engine, net, x, y, steps=torch.tensor([1, 4, 2, 3, 1, 2]))
    attacked(engine, net, x, y, rule=lambda x_adv, gradient, index: torch.ones_like(index, dtype=torch.bool))
    assert graph.records == 0


def test_a_recording_that_fails_is_tried_once_and_the_plain_path_is_taken(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    tries = []

    def fails(work):
        tries.append(work)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    engine = Engine(Levers(leave=True, cuda_graph=True), record=fails)
    for _ in range(2):
        assert torch.equal(attacked(engine, net, x, y), attacked(Engine(STANDARD), net, x, y))
    assert len(tries) == 1
    assert engine.said == {"cuda_graph": "operation not permitted when stream is capturing"}


def test_without_a_gpu_a_cuda_graph_falls_back_and_says_why(make_net, batch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    net, (x, y) = make_net().eval(), batch
    engine = Engine(Levers(leave=True, cuda_graph=True))
    assert torch.equal(attacked(engine, net, x, y), attacked(Engine(STANDARD), net, x, y))
    assert engine.said["cuda_graph"]


def test_a_compiler_that_fails_leaves_the_plain_path_and_says_why(make_net, batch, monkeypatch):
    def broken(x):
        raise OSError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda net, **options: broken)
    net, (x, y) = make_net().eval(), batch
    engine = Engine(Levers(leave=True, compile=True))
    assert torch.equal(attacked(engine, net, x, y), attacked(Engine(STANDARD), net, x, y))
    assert engine.said == {"compile": "no compiler here"}


def compiled_with(backward_graphs):
    """torch.compile as it stands in place of: the backward graphs are kept and everything runs as it is."""
    real = torch.compile
    backend = aot_autograd(
        fw_compiler=lambda graph, given: make_boxed_func(graph),
        bw_compiler=lambda graph, given: backward_graphs.append(graph) or make_boxed_func(graph),
    )
    return lambda function, **options: real(function, backend=backend, **options)


@pytest.mark.parametrize("folding", [False, True])
def test_a_compiled_attack_is_the_plain_one_follows_the_weights_and_wants_no_gradient_of_theirs(
    folding, make_net, batch, monkeypatch
):
    net, (x, y) = make_net().eval(), batch
    graphs = []
    monkeypatch.setattr(torch, "compile", compiled_with(graphs))
    engine = Engine(Levers(compile=True, folding=folding))
    for _ in range(2):
        torch.testing.assert_close(attacked(engine, net, x, y), attacked(Engine(PLAIN), net, x, y))
        with torch.no_grad():
            net[0].weight.neg_()
    assert engine.said == {}
    calls = [node for graph in graphs for node in graph.graph.nodes if "convolution_backward" in str(node.target)]
    assert calls
    assert all(node.args[-1][1:] == [False, False] for node in calls)  # of the images alone


def test_padding_repeats_the_last_image_and_is_cut_off():
    recorded = Captured(lambda a, b: a + b, (torch.zeros(4, 2), torch.ones(4, 2)), Recorder())
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    assert torch.equal(recorded(a, b), a + b)
    assert torch.equal(recorded.buffers[0], a.expand(4, 2))


# --- bf16 -----------------------------------------------------------------------------------------------------------


def test_lowered_logits_are_fp32_and_close_and_the_network_stays_as_it_is(make_net, batch):
    net, (x, _) = make_net().eval(), batch
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    low = lowered(net, x[:1])
    logits = low(x)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # the last layer is not in bf16
    torch.testing.assert_close(logits, net(x), atol=0.05, rtol=0.05)
    assert not torch.equal(logits, net(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_lowered_network_follows_its_networks_weights(make_net, batch):
    net, (x, _) = make_net().eval(), batch
    first = lowered(net, x[:1])(x)
    with torch.no_grad():
        net[0].weight.mul_(3)
    assert not torch.equal(lowered(net, x[:1])(x), first)


@pytest.mark.parametrize(
    "model", ["ResNet8-w8", "PreActResNet8-w8", "WideResNet-10-1", "MobileNetV2-small", "VGG-small"]
)
def test_under_bf16_an_attack_sees_every_network_of_ours_with_its_convolutions_cast_beforehand(model):
    net, x = build(model, classes=10).eval(), torch.rand(2, 3, 16, 16)
    seen = Engine(Levers(bf16=True)).seen(net, x)
    convolutions = [module for module in seen.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert all(module.weight.dtype == torch.bfloat16 for module in convolutions)
    assert not any(module.weight.requires_grad for module in convolutions)
    torch.testing.assert_close(seen(x), net(x), atol=0.1, rtol=0.1)


class Unmixable(nn.Module):
    """Multiplies by an fp32 matrix of its own, which bf16 images cannot be."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(48, 10))

    def forward(self, x):
        return x.flatten(1) @ self.matrix


def test_a_network_that_does_not_mix_with_bf16_is_served_by_autocast(batch):
    net, (x, _) = Unmixable().eval(), batch
    assert lowered(net, x[:1]) is None
    logits = Engine(Levers(bf16=True)).seen(net, x)(x)
    torch.testing.assert_close(logits, net(x), atol=0.2, rtol=0.05)


def test_bf16_crafting_changes_the_images_and_trains_in_fp32(make_net):
    torch.manual_seed(1)
    net = make_net()
    plain, crafted = (trained(deepcopy(net), precision=p) for p in ("fp32", "bf16_crafting"))
    assert crafted.precision == "fp32"
    assert crafted.engine.levers == replace(STANDARD.for_equal_steps, bf16=True)
    logits = crafted.nets.student(torch.rand(2, 3, 4, 4))
    assert not torch.equal(logits, logits.bfloat16().float())
    assert any(not torch.equal(a, b) for a, b in both(plain, crafted))
    for a, b in both(plain, crafted):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.2)


def both(one, other):
    return zip(one.student.parameters(), other.student.parameters(), strict=True)


def test_between_attacks_no_bf16_weights_are_held_and_the_next_attack_has_them_again(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    engine = Engine(Levers(bf16=True, leave=True))
    first, low = attacked(engine, net, x, y), lowered(net, x[:1])
    engine.rest(net)
    assert not sum(
        weight.numel() for name, weight in low.named_parameters() if low.get_parameter(name).dtype != x.dtype
    )
    assert torch.equal(attacked(engine, net, x, y), first)


def test_weights_are_stepped_in_parts_of_a_sixteenth_and_every_one_once(monkeypatch):
    sizes = [1, 3, 40, 1, 1, 2, 16]  # of 64: four or more at a time
    weights = [nn.Parameter(torch.ones(size)) for size in sizes]
    optimizer = torch.optim.SGD(weights, 0.5)
    calls = []
    monkeypatch.setattr(optimizer, "step", lambda real=optimizer.step: calls.append(stepped(optimizer)) or real())
    with stepped_in_backward(optimizer, weights):
        sum(weight.sum() for weight in weights).backward()
        optimizer.step()
    assert sorted(size for call in calls for size in call) == sorted(sizes)
    assert all(sum(call) >= 4 for call in calls[:-1])
    assert all(weight.grad is None and bool((weight == 0.5).all()) for weight in weights)


def stepped(optimizer):
    return [len(weight) for weight in optimizer.param_groups[0]["params"] if weight.grad is not None]


def test_stepped_in_backward_no_gradient_outlives_its_weights_step_and_the_momentum_is_the_same(make_net):
    net = make_net()
    one, other = trained(deepcopy(net)), trained(deepcopy(net), levers=replace(STANDARD, in_backward=True))
    assert all(parameter.grad is None for parameter in other.student.parameters())
    for a, b in both(one, other):
        assert torch.equal(a, b)
        assert torch.equal(one.optimizer.state[a]["momentum_buffer"], other.optimizer.state[b]["momentum_buffer"])


# --- a training under levers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lever", ["folding", "channels_last", "leave", "fused", "cuda_graph", "in_backward"])
def test_a_training_under_an_fp32_lever_reaches_the_plain_trainings_weights(lever, make_net, monkeypatch):
    graph = Recorder()
    monkeypatch.setattr(engine, "on_cuda", graph)
    net = make_net()
    plain = trained(deepcopy(net), levers=PLAIN)
    other = trained(deepcopy(net), levers=replace(PLAIN, **{lever: True}))
    assert bool(graph.records) == (lever == "cuda_graph")
    assert bool(other.optimizer.defaults["fused"]) == (lever == "fused")
    assert all(parameter.grad is None for parameter in other.student.parameters()) == (lever == "in_backward")
    for a, b in both(plain, other):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_training_has_the_levers_that_act_on_its_attack(make_net):
    every = Levers(folding=True, compile=True, cuda_graph=True, leave=True)
    data = Split(torch.rand(4, 3, 4, 4), torch.arange(4))

    def levers(method, strategy=None):
        extras = TrainingExtras(strategy=strategy)
        schedule = Schedule(1, batch_size=4)
        made = Training(
            make_net(), None, METHODS[method], ATTACK, data, schedule, lambda net: 0.0, extras=extras, levers=every
        )
        return str(made.engine.levers)

    assert levers("pgd_at") == "folding + compile + cuda_graph"
    assert levers("fat") == "folding + leave"  # its images stop when they are wrong
    assert levers("pgd_at_smoothed", Strategy(StrategySpec("random"))) == "folding + leave"


# --- calibration ---------------------------------------------------------------------------------------------------


def clocked(monkeypatch, seconds):
    """Calibration believes that work under `levers` takes seconds(levers), and that all make the same attack."""
    for kind in ("attack", "uneven", "update"):
        monkeypatch.setattr(Probe, kind, lambda self, levers: Timed(levers))
    monkeypatch.setattr(Probe, "strays", lambda self, before, after: 0.0)
    monkeypatch.setattr("lib.attacks.calibration.seconds", lambda work, device, clock: seconds(work.levers))


class Timed:
    def __init__(self, levers):
        self.levers = levers

    def __call__(self):
        return None


def test_calibration_keeps_what_pays_and_nothing_else(make_net, batch, monkeypatch):
    clocked(monkeypatch, lambda levers: 4 - 2 * levers.bf16 - levers.folding + levers.channels_last)
    levers, tried = calibrate(make_net(), *batch, epsilon=0.1)
    assert levers == Levers(folding=True, bf16=True, in_backward=True)
    assert [one.lever for one in tried] == list(ORDER)
    assert [one.row["verdict"] for one in tried][-1] == "kept for memory"
    said = {one.lever: one for one in tried}
    assert said["folding"].row["times as fast"] == pytest.approx(4 / 3)
    assert said["channels_last"].why == said["leave"].why == "does not pay"
    assert said["cuda_graph"].why == "not tried: needs a CUDA device"


@pytest.mark.parametrize(("precision", "low"), [("fp32", False), ("bf16", True), ("bf16_crafting", True)])
def test_a_trainings_precision_decides_about_bf16_and_it_is_not_tried(precision, low, make_net, batch, monkeypatch):
    clocked(monkeypatch, lambda levers: 4 - 2 * levers.bf16 - levers.folding)
    levers, tried = calibrate(make_net(), *batch, epsilon=0.1, precision=precision)
    assert levers == Levers(folding=True, bf16=low, in_backward=True)
    assert next(one.why for one in tried if one.lever == "bf16") == f"not tried: the precision is {precision}"


def test_a_lever_that_fails_or_falls_back_is_not_kept_and_says_why(make_net, batch, monkeypatch):
    def attack(self, levers):
        if levers.channels_last:
            raise RuntimeError("no such layout\nand more")
        if levers.folding:
            self.said["folding"] = "something"
        return lambda: None

    monkeypatch.setattr(Probe, "attack", attack)
    monkeypatch.setattr(Probe, "strays", lambda self, before, after: 0.0)
    _, tried = calibrate(make_net(), *batch, epsilon=0.1, repeats=1)
    said = {one.lever: (one.kept, one.why) for one in tried}
    assert said["channels_last"] == (False, "failed: no such layout")
    assert said["folding"] == (False, "not to be had here: something")


def test_a_calibration_without_a_round_is_refused(make_net, batch):
    with pytest.raises(UserError, match="repeats >= 1"):
        calibrate(make_net(), *batch, epsilon=0.1, repeats=0)


def test_a_trained_network_keeps_no_hook(make_net):
    net = make_net()
    trained(net, levers=replace(STANDARD, in_backward=True))
    before = net[0].weight.clone()
    net(torch.rand(2, 3, 4, 4)).sum().backward()
    assert net[0].weight.equal(before)
    assert net[0].weight.grad is not None


def test_beside_compile_nobody_leaves_the_batch(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    sizes = []
    objective = PerImage(lambda z, y: sizes.append(len(z)) or cross_entropy(net(z), y), (y,))
    steps = torch.tensor([1, 4, 2, 3, 1, 2])
    for compiled in (False, True):
        Engine(Levers(leave=True, compile=compiled)).attack(ATTACK, objective, x, start=at_image, steps=steps)
    assert sizes == [6, 4, 2, 1, 6, 6, 6, 6]


def test_a_lever_that_makes_another_attack_is_refused(make_net, batch, monkeypatch):
    """Here a recording that does not follow the weights: the folded ones are put elsewhere at every step."""
    monkeypatch.setattr(engine, "on_cuda", Recorder())
    monkeypatch.setattr("lib.attacks.calibration.GPU_ONLY", {"compile": "not asked"})
    assert (tried := of("cuda_graph", make_net(), batch)).shares, tried.why

    def take(own, new):
        own.data = new.to(own.dtype)

    monkeypatch.setattr("lib.attacks.folding._take", take)
    assert of("cuda_graph", make_net(), batch).why.startswith("refused: ")


def of(lever, net, batch):
    return _try(Probe(net, *batch, 0.1, 1), lever, Levers(folding=True), 1, time.perf_counter)


def test_a_real_calibration_leaves_the_network_alone_and_reports_every_lever(make_net, batch):
    net = make_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    levers, tried = calibrate(net, *batch, epsilon=0.1, repeats=1)
    assert isinstance(levers, Levers)
    assert all(isinstance(one, Tried) and one.why for one in tried)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
