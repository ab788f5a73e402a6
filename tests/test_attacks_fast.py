"""Fast and plain execution make the same images; what cannot be had falls back to the plain path, with a reason."""

import gc
import weakref
from copy import deepcopy
from functools import partial

import pytest
import torch
from recorder import Recorder
from torch import nn

from lib.attacks.fast import EXECUTIONS, PRECISIONS, Captured, Engine, in_precision
from lib.attacks.folding import folded
from lib.attacks.pgd import PerImage, at_image, pgd
from lib.data import Split
from lib.errors import UserError
from lib.losses import cross_entropy
from lib.methods import METHODS
from lib.models import build
from lib.train import Schedule, build_training

ATTACK = partial(pgd, epsilon=0.1, step_size=0.03, steps=3)
OWN_STEPS = torch.tensor([1, 4, 2, 3, 1, 2])


def attacked(engine, net, x, y, **chosen):
    view = engine.attack_view(net)
    objective = PerImage(lambda z, y: cross_entropy(view(z), y), (y,))
    return engine.attack(ATTACK, objective, x, start=at_image, **chosen)


def plainly(net, x, y, **chosen):
    return attacked(Engine("plain"), net, x, y, **chosen)


@pytest.mark.parametrize("chosen", [{}, {"steps": OWN_STEPS}], ids=["equal steps", "own steps"])
@pytest.mark.parametrize("record", [None, Recorder()], ids=["not recorded", "recorded"])
def test_fast_execution_makes_the_images_of_the_plain_one(record, chosen, make_net, batch):
    net, (x, y) = make_net().eval(), batch
    plain = plainly(net, x, y, **chosen)
    assert not torch.equal(plain, x)
    engine = Engine("fast", record=record)
    torch.testing.assert_close(attacked(engine, engine.lay_out(deepcopy(net)), x, y, **chosen), plain)


def test_networks_are_laid_out_as_the_execution_wants_whatever_they_were(make_net):
    net = make_net()
    for execution in ("fast", "plain", "fast"):
        weight = Engine(execution).lay_out(net)[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == (execution == "fast")
        assert weight.is_contiguous() == (execution == "plain")


def test_under_fast_each_image_is_forwarded_as_often_as_it_steps_and_under_plain_as_often_as_the_longest(
    make_net, batch
):
    net, (x, y) = make_net().eval(), batch
    forwarded = []
    net.register_forward_hook(lambda module, inputs, out: forwarded.append(len(out)))
    for execution, expected in (("fast", 13), ("plain", 24)):
        forwarded.clear()
        attacked(Engine(execution), net, x, y, steps=OWN_STEPS)
        assert sum(forwarded) == expected


def test_a_network_in_train_mode_is_attacked_as_it_is(make_net, batch):
    net = make_net().train()
    assert Engine("fast").attack_view(net) is net
    assert Engine("plain").attack_view(net.eval()) is net
    assert Engine("fast").attack_view(net) is not net


def test_between_attacks_no_folded_weights_are_held_and_the_next_attack_has_them_again(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    engine = Engine()
    view = engine.attack_view(net)
    first = attacked(engine, net, x, y)
    weights = [module.weight for module in view.modules() if isinstance(module, nn.Conv2d)]
    assert weights
    assert not any(weight.numel() for weight in weights)
    assert torch.equal(attacked(engine, net, x, y), first)


@pytest.mark.parametrize("setting", [{"execution": "quick"}, {"precision": "bf61"}])
def test_an_unknown_setting_is_refused_with_the_valid_ones(setting):
    with pytest.raises(UserError) as refused:
        Engine(**setting)
    assert all(name in str(refused.value) for name in (EXECUTIONS if "execution" in setting else PRECISIONS))


# --- recordings ----------------------------------------------------------------------------------------------------


def test_a_recording_is_made_once_replayed_padded_and_follows_the_weights(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    graph = Recorder()
    engine = Engine(record=graph)
    for count in (6, 6, 4, 1):
        with torch.no_grad():
            net[0].weight.mul_(1.1)
        torch.testing.assert_close(attacked(engine, net, x[:count], y[:count]), plainly(net, x[:count], y[:count]))
    assert (graph.records, graph.replays) == (1, 4)


def test_what_a_recording_reads_lives_as_long_as_the_recording(make_net, batch):
    net, engine = make_net().eval(), Engine(record=lambda work: (lambda: None, work()))
    read = weakref.ref(folded(net))
    attacked(engine, net, *batch)
    del net
    gc.collect(), gc.collect()  # the network, then its trace
    assert read() is not None

    del engine
    gc.collect(), gc.collect()
    assert read() is None


def test_a_larger_batch_is_recorded_anew_and_a_result_survives_the_next_replay(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    graph = Recorder()
    engine = Engine(record=graph)
    first = attacked(engine, net, x[:2], y[:2])
    kept = first.clone()
    attacked(engine, net, x, y)
    attacked(engine, net, x[2:4], y[2:4])
    assert graph.records == 2
    assert torch.equal(first, kept)


def test_attacks_that_differ_from_image_to_image_and_plain_ones_are_not_recorded(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    graph = Recorder()
    engine = Engine(record=graph)
    attacked(engine, net, x, y, steps=OWN_STEPS)
    attacked(engine, net, x, y, criterion=lambda x_adv, gradient, index: torch.ones_like(index, dtype=torch.bool))
    attacked(Engine("plain", record=graph), net, x, y)
    assert graph.records == 0


def test_a_recording_that_fails_is_tried_once_and_the_plain_path_is_taken_with_its_reason(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    tries = []

    def fails(work):
        tries.append(work)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    engine = Engine(record=fails)
    assert engine.describe() == "fast"
    for _ in range(2):
        torch.testing.assert_close(attacked(engine, net, x, y), plainly(net, x, y))
    assert len(tries) == 1
    assert engine.reasons == {"cuda_graph": "operation not permitted when stream is capturing"}
    assert engine.describe() == "fast, no cuda_graph (operation not permitted when stream is capturing)"


def test_padding_repeats_the_last_image_and_is_cut_off():
    recorded = Captured(lambda a, b: a + b, (torch.zeros(4, 2), torch.ones(4, 2)), Recorder())
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    assert torch.equal(recorded(a, b), a + b)
    assert torch.equal(recorded.buffers[0], a.expand(4, 2))


def test_the_recorder_of_these_tests_knows_memory_and_no_names_and_reads_nothing_on_the_host():
    weight = nn.Parameter(torch.ones(3))
    run = Captured(lambda x: x * weight, (torch.ones(3),), Recorder())
    with torch.no_grad():
        weight.mul_(2)
    assert run(torch.ones(3)).tolist() == [2, 2, 2]
    weight.data = torch.zeros(3)
    assert run(torch.ones(3)).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="capturing"):
        Captured(lambda x: x * float(x.sum()), (torch.ones(3),), Recorder())


# --- bf16 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_fp32_in_every_precision_and_the_network_stays_as_it_is(precision, make_net, batch):
    net, (x, _) = make_net().eval(), batch
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trained, crafted = in_precision(net, precision)(x), Engine("fast", precision).attack_view(net)(x)
    assert trained.dtype == crafted.dtype == torch.float32
    assert torch.equal(trained, net(x)) == (precision != "bf16")
    torch.testing.assert_close(crafted, net(x), atol=0.05, rtol=0.05)
    exact = (crafted - net(x)).abs().max() < 1e-5
    assert exact == (precision == "fp32")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    "model", ["ResNet8-w8", "PreActResNet8-w8", "WideResNet-10-1", "MobileNetV2-small", "VGG-small"]
)
def test_every_network_of_ours_can_be_attacked_in_bf16(model):
    net, x = build(model, classes=10).eval(), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(Engine("fast", "bf16").attack_view(net)(x), net(x), atol=0.1, rtol=0.1)


# --- a training ----------------------------------------------------------------------------------------------------


def trained(net, **settings):
    images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    data, schedule = Split(images, torch.arange(10)), Schedule(1, batch_size=4)
    training = build_training(net, None, METHODS["pgd_at"], ATTACK, data, schedule, lambda net: 0.0, **settings)
    training.epoch()
    return training


def both(one, other):
    return zip(one.student.parameters(), other.student.parameters(), strict=True)


def test_a_fast_training_reaches_the_plain_trainings_weights(make_net):
    net = make_net()
    plain, quick = (trained(deepcopy(net), execution=execution) for execution in ("plain", "fast"))
    for a, b in both(plain, quick):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_bf16_crafting_changes_the_images_and_trains_in_fp32(make_net):
    torch.manual_seed(1)
    net = make_net()
    plain, crafted = (trained(deepcopy(net), precision=p) for p in ("fp32", "bf16_crafting"))
    logits = crafted.nets.student(torch.rand(2, 3, 4, 4))
    assert not torch.equal(logits, logits.bfloat16().float())
    assert any(not torch.equal(a, b) for a, b in both(plain, crafted))
    for a, b in both(plain, crafted):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.2)
