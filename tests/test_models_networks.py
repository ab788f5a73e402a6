from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from lib import ROOT
from lib.errors import UserError
from lib.experiment.parameters import scales
from lib.models import PATTERNS, build
from lib.models.checkpoints import as_safetensors, load_weights
from lib.models.resnet import PreActBlock, PreActResNet, ResNet
from lib.models.vgg import VGG
from lib.models.wide_resnet import WideBlock, WideResNet, WideResNetWithSubBlock

STAND_INS = yaml.safe_load((ROOT / "params" / "quick.yaml").read_text())["settings"]["models"] | {
    "ResNet18-guide": "ResNet8-w8-guide",
    "WideResNet-70-16-silu": "WideResNet-10-1-silu",
}

NAMES = sorted({name for scale in scales().values() for name in scale["models"].values()})


def on_meta(name, classes=10, channels=3):
    """The network with shapes and no numbers."""
    with torch.device("meta"):
        return build(name, classes=classes, channels=channels).eval()


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("ResNet18", 10, 11_173_962),
        ("ResNet18", 100, 11_220_132),
        ("ResNet18", 200, 11_271_432),
        ("ResNet18-guide", 10, 11_173_962),
        ("ResNet34", 10, 21_282_122),
        ("PreActResNet18", 200, 11_575_816),
        ("VGG16", 10, 14_728_266),
        ("MobileNetV2", 10, 2_296_922),
        ("MobileNetV2", 100, 2_412_212),
        ("WideResNet-34-10-sub-block", 10, 48_262_586),
        ("WideResNet-34-10-sub-block", 100, 48_320_276),
        ("WideResNet-34-10", 10, 46_160_474),
        ("WideResNet-34-10", 100, 46_218_164),
        ("WideResNet-34-20", 10, 184_531_674),
        ("WideResNet-70-16", 10, 266_796_506),
        ("WideResNet-70-16-silu", 10, 266_796_506),
    ],
)
def test_a_network_has_as_many_parameters_as_the_authors(name, classes, count):
    assert sum(p.numel() for p in on_meta(name, classes).parameters()) == count


@pytest.mark.parametrize(
    ("name", "size", "macs"),
    [
        ("ResNet18", 32, 0.555e9),
        ("ResNet18", 64, 2.22e9),
        ("ResNet18-guide", 32, 1.76e9),
        ("ResNet34", 32, 1.16e9),
        ("PreActResNet18", 64, 2.22e9),
        ("VGG16", 32, 0.313e9),
        ("MobileNetV2", 32, 0.091e9),
        ("WideResNet-34-10", 32, 6.66e9),
        ("WideResNet-34-10-sub-block", 32, 6.66e9),
        ("WideResNet-34-20", 32, 26.6e9),
        ("WideResNet-70-16", 32, 38.8e9),
        ("WideResNet-70-16-silu", 32, 38.8e9),
    ],
)
def test_a_forward_takes_as_many_multiplications_as_the_authors(name, size, macs):
    net, counted = on_meta(name), []

    def count(module, _, output):
        counted.append(output.numel() * module.weight[0].numel())

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    net(torch.empty(1, 3, size, size, device="meta"))
    assert sum(counted) == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 8), (3, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_maps_images_of_any_size_to_logits(name, channels, size):
    x = torch.empty(2, channels, size, size, device="meta")
    assert on_meta(name, 10, channels)(x).shape == (2, 10)


@pytest.mark.parametrize(
    "name", ["ResNet17", "ResNet18-w0", "ResNet34-guide", "WideResNet-11-2", "VGG16-silu", "ResNet18\n"]
)
def test_an_unknown_network_is_refused_with_the_names_that_there_are(name):
    with pytest.raises(UserError) as refusal:
        build(name, classes=10)
    assert repr(name) in str(refusal.value)
    assert all(pattern in str(refusal.value) for pattern in PATTERNS)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet34", "PreActResNet18", "ResNet18-guide"])
def test_a_width_in_a_name_is_the_channels_of_the_first_stage(name):
    base, *guide = name.split("-")
    narrow, full = on_meta("-".join([base, "w16", *guide])), on_meta(name)
    assert [*narrow.state_dict()] == [*full.state_dict()]
    assert narrow.conv1.out_channels == 16
    assert 4 * narrow.linear.in_features == full.linear.in_features


@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_is_a_smaller_network_of_the_same_class(name):
    real, small = on_meta(name), on_meta(STAND_INS[name])
    assert type(small) is type(real)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in real.parameters()) / 10


@pytest.mark.parametrize("name", sorted(set(STAND_INS.values())))
def test_a_networks_weights_are_drawn_from_torchs_seed_and_all_of_them_are_trained(name):
    torch.manual_seed(1)
    net = build(name, classes=10)
    torch.manual_seed(1)
    assert all(map(torch.equal, net.state_dict().values(), build(name, classes=10).state_dict().values()))
    net(torch.rand(2, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", ["ResNet10-w8", "PreActResNet8-w8", "VGG-small"])
def test_weights_for_another_number_of_classes_are_refused_with_both_shapes_and_none_is_loaded(name, tmp_path):
    (tmp_path / "hundred.safetensors").write_bytes(as_safetensors(build(name, classes=100, channels=1).state_dict()))
    net = build(name, classes=10, channels=1)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(UserError, match=r"does not fit.*\.weight is \(100, \d+\), not \(10, \d+\)"):
        load_weights(net, tmp_path / "hundred.safetensors")
    assert all(map(torch.equal, before.values(), net.state_dict().values()))


def test_the_sub_block_is_stored_but_no_image_passes_it():
    plain, stored = WideResNet(10, 1, classes=3), WideResNetWithSubBlock(10, 1, classes=3)
    missing, unexpected = stored.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} == {"sub_block1"}
    x = torch.rand(2, 3, 8, 8)
    logits = stored(x)
    assert logits.equal(plain(x))
    logits.sum().backward()
    assert all((p.grad is None) == key.startswith("sub_block1") for key, p in stored.named_parameters())


@pytest.mark.parametrize("depth", [4, 12, 35])
def test_a_wide_resnet_of_an_impossible_depth_is_refused(depth):
    with pytest.raises(UserError, match=f"got {depth}"):
        WideResNet(depth, 1, classes=10)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ResNet18", [32, 16, 8, 4]),
        ("ResNet18-guide", [32, 32, 16, 8]),
        ("ResNet8-w8", [32, 16, 8]),
        ("ResNet8-w8-guide", [32, 32, 16]),
    ],
)
def test_a_resnets_stages_halve_the_image_where_its_strides_say_and_the_guides_one_stage_later(name, sizes):
    net, seen = on_meta(name), []
    for i in range(net.stages):
        net.get_submodule(f"layer{i + 1}").register_forward_hook(lambda *given: seen.append(given[-1].shape[-1]))
    net(torch.empty(1, 3, 32, 32, device="meta"))
    assert seen == sizes


def test_a_resnet_with_other_strides_draws_the_same_weights():
    torch.manual_seed(1)
    plain = ResNet((1, 1, 1), 8, classes=10).state_dict()
    torch.manual_seed(1)
    guide = ResNet((1, 1, 1), 8, (1, 1, 2), classes=10).state_dict()
    assert list(plain) == list(guide)
    assert all(map(torch.equal, plain.values(), guide.values()))


def test_a_wide_block_activates_with_what_it_was_given_both_times():
    block, x = WideBlock(3, 4, 1, F.silu), torch.randn(2, 3, 6, 6)

    def active(z):
        z = F.batch_norm(z, None, None, training=True)
        return z / (1 + (-z).exp())

    first = active(x)
    out = F.conv2d(active(F.conv2d(first, block.conv1.weight, padding=1)), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), out + F.conv2d(first, block.convShortcut.weight), rtol=1e-4, atol=1e-5)


def test_a_wide_resnet_uses_one_activation_throughout_relu_unless_it_is_told():
    x = torch.rand(2, 3, 8, 8)
    for name, activation in (("WideResNet-10-1", F.relu), ("WideResNet-10-1-silu", F.silu)):
        net, maps = build(name, classes=10).eval(), []
        assert {m.activation for m in net.modules() if isinstance(m, WideBlock)} == {activation}
        net.bn1.register_forward_hook(lambda *given, maps=maps: maps.append(given[-1]))
        logits = net(x)
        torch.testing.assert_close(logits, net.fc(activation(maps[0]).mean((2, 3))))
    assert {m.activation for m in on_meta("WideResNet-70-16-silu").modules() if isinstance(m, WideBlock)} == {F.silu}


def test_mobilenet_takes_a_shortcut_wherever_the_stride_is_1():
    blocks = on_meta("MobileNetV2").layers
    assert [block.conv2.stride == (1, 1) for block in blocks] == [block.has_shortcut for block in blocks]
    assert sum(block.has_shortcut for block in blocks) == 14
    changes = [a.conv3.out_channels != b.conv3.out_channels for a, b in pairwise(blocks)]
    assert sum(changes) == 6


def test_a_preact_resnet_averages_the_raw_last_map_in_windows_of_4_at_64x64():
    net, maps = PreActResNet((1, 1, 1, 1), 4, classes=7).eval(), []
    net.layer4.register_forward_hook(lambda *given: maps.append(given[-1]))
    logits = net(torch.rand(2, 3, 64, 64))
    assert maps[0].shape == (2, 32, 8, 8)
    assert maps[0].min() < 0  # nothing has been rectified
    torch.testing.assert_close(logits, net.linear(F.avg_pool2d(maps[0], 4).flatten(1)))
    assert on_meta("PreActResNet18", 200).linear.in_features == 2048


def test_a_preact_resnet_keeps_a_2x2_map_as_it_is_and_repeats_a_map_of_one_pixel():
    net, maps = PreActResNet((1, 1, 1), 4, classes=7).eval(), []
    net.layer3.register_forward_hook(lambda *given: maps.append(given[-1]))
    small, tiny = net(torch.rand(2, 3, 8, 8)), net(torch.rand(2, 3, 4, 4))
    torch.testing.assert_close(small, net.linear(maps[0].flatten(1)))
    torch.testing.assert_close(tiny, net.linear(maps[1].expand(2, 16, 2, 2).flatten(1)))


@pytest.mark.parametrize(("inputs", "stride"), [(4, 1), (4, 2), (3, 1)])
def test_a_preact_block_takes_its_shortcut_from_x_or_from_the_activated_x_where_the_shape_changes(inputs, stride):
    block, x = PreActBlock(inputs, 4, stride), torch.randn(2, inputs, 6, 6)
    active = F.batch_norm(x, None, None, training=True).relu()
    torch.nn.init.zeros_(block.conv2.weight)
    same = stride == 1 and inputs == 4
    expected = x if same else F.conv2d(active, block.shortcut[0].weight, stride=stride)
    torch.testing.assert_close(block(x), expected)


def test_a_preact_resnets_parameters_are_named_as_in_public_checkpoints():
    keys = set(on_meta("PreActResNet18", 200).state_dict())
    assert {key.split(".")[0] for key in keys} == {"conv1", "layer1", "layer2", "layer3", "layer4", "linear"}
    of_block = {key.removeprefix("layer2.0.") for key in keys if key.startswith("layer2.0.") and key.endswith("weight")}
    assert of_block == {"bn1.weight", "conv1.weight", "bn2.weight", "conv2.weight", "shortcut.0.weight"}
    assert not any(key.startswith("layer1.0.shortcut") for key in keys)


def test_vgg16_has_thirteen_convolutions_with_bias_each_normalised_and_five_pools():
    layers = list(on_meta("VGG16").features)
    convolutions = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13
    for i in convolutions:
        assert layers[i].bias is not None
        assert [type(layer) for layer in layers[i + 1 : i + 3]] == [nn.BatchNorm2d, nn.ReLU]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in layers) == 5


def test_vgg_passes_a_map_of_one_pixel_through_a_pool_unchanged():
    net = VGG(((4,), (4,), (4,)), classes=7).eval()
    x = torch.rand(2, 3, 2, 2)
    one_pixel = net.features[:4](x)
    assert one_pixel.shape == (2, 4, 1, 1)
    torch.testing.assert_close(net(x), net.classifier(net.features[8:11](net.features[4:7](one_pixel)).flatten(1)))
