from itertools import pairwise

import pytest
import torch
import yaml
from torch import nn

from lib import ROOT
from lib.errors import UserError
from lib.models import MODELS, build
from lib.models.wide_resnet import WideResNet, WideResNetWithSubBlock

STAND_INS = yaml.safe_load((ROOT / "params" / "quick.yaml").read_text())["settings"]["models"]


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
        ("MobileNetV2", 10, 2_296_922),
        ("MobileNetV2", 100, 2_412_212),
        ("WideResNet-34-10-sub-block", 10, 48_262_586),
        ("WideResNet-34-10-sub-block", 100, 48_320_276),
        ("WideResNet-34-10", 10, 46_160_474),
        ("WideResNet-34-10", 100, 46_218_164),
        ("WideResNet-34-20", 10, 184_531_674),
    ],
)
def test_a_network_has_as_many_parameters_as_the_authors(name, classes, count):
    assert sum(p.numel() for p in on_meta(name, classes).parameters()) == count


@pytest.mark.parametrize(
    ("name", "size", "macs"),
    [
        ("ResNet18", 32, 0.555e9),
        ("ResNet18", 64, 2.22e9),
        ("MobileNetV2", 32, 0.091e9),
        ("WideResNet-34-10", 32, 6.66e9),
        ("WideResNet-34-10-sub-block", 32, 6.66e9),
        ("WideResNet-34-20", 32, 26.6e9),
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
@pytest.mark.parametrize("name", MODELS)
def test_a_network_maps_images_of_any_size_to_logits(name, channels, size):
    x = torch.empty(2, channels, size, size, device="meta")
    assert on_meta(name, 10, channels)(x).shape == (2, 10)


def test_an_unknown_network_is_refused_with_the_valid_ones():
    with pytest.raises(UserError) as refusal:
        build("ResNet17", classes=10)
    assert all(name in str(refusal.value) for name in ("ResNet17", *MODELS))


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


def test_mobilenet_takes_a_shortcut_wherever_the_stride_is_1():
    blocks = on_meta("MobileNetV2").layers
    assert [block.conv2.stride == (1, 1) for block in blocks] == [block.has_shortcut for block in blocks]
    assert sum(block.has_shortcut for block in blocks) == 14
    changes = [a.conv3.out_channels != b.conv3.out_channels for a, b in pairwise(blocks)]
    assert sum(changes) == 6
