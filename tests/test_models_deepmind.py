"""DeepMind's layout, beside its definition written out with torch's functions on the tensors of a file."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.attacks.folding import folded, same_answers
from lib.data import Split
from lib.errors import UserError
from lib.experiment.parameters import Parameters
from lib.experiment.table import open_table
from lib.experiment.your_model import Classifier, load, load_data, named
from lib.models import PATTERNS, build, fitting
from lib.models.checkpoints import chosen, load_weights

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2471, 0.2435, 0.2616])  # CIFAR-10's
MEAN_100, STD_100 = torch.tensor([0.5071, 0.4865, 0.4409]), torch.tensor([0.2673, 0.2564, 0.2762])
WIDE, PRE_ACT = "WideResNet-16-2-deepmind", "PreActResNet18-w8-deepmind"


def swish(z):
    return z * torch.sigmoid(z)


def norm(state, name, z):
    mean, var = (state[f"{name}.running_{half}"][:, None, None] for half in ("mean", "var"))
    scale, shift = (state[f"{name}.{half}"][:, None, None] for half in ("weight", "bias"))
    return scale * (z - mean) / torch.sqrt(var + 1e-5) + shift


def padded(weight, z, stride):
    """A 3x3 convolution of stride 1 or 2; at 2 nothing is added on the left and at the top."""
    left_right_top_bottom = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
    return F.conv2d(F.pad(z, left_right_top_bottom), weight, stride=stride)


def wide_block(state, at, z, stride):
    active = swish(norm(state, f"{at}.batchnorm_0", z))
    out = padded(state[f"{at}.conv_0.weight"], active, stride)
    out = padded(state[f"{at}.conv_1.weight"], swish(norm(state, f"{at}.batchnorm_1", out)), 1)
    changed = state.get(f"{at}.shortcut.weight")
    return out + (z if changed is None else F.conv2d(active, changed, stride=stride))


def pre_act_block(state, at, z, stride):
    out = padded(state[f"{at}.conv_2d_1.weight"], swish(norm(state, f"{at}.batchnorm_0", z)), stride)
    out = padded(state[f"{at}.conv_2d_2.weight"], swish(norm(state, f"{at}.batchnorm_1", out)), 1)
    changed = state.get(f"{at}.shortcut.weight")
    return out + (z if changed is None else padded(changed, z, stride))


def as_defined(name, state, x, mean=MEAN, std=STD):
    """The logits of images x (N, 3, 32, 32) by the layout's definition, in double precision."""
    state, x = {key: tensor.double() for key, tensor in state.items()}, x.double()
    wide = name.startswith("Wide")
    z = padded(
        state["init_conv.weight" if wide else "conv_2d.weight"], (x - mean[:, None, None]) / std[:, None, None], 1
    )
    for i in range(3 if wide else 4):
        for j in range(2):  # blocks of a group, of a WRN-16 and of a ResNet-18
            at = f"layer.{i}.block.{j}" if wide else f"layer_{i}.{j}"
            z = (wide_block if wide else pre_act_block)(state, at, z, 2 if i and not j else 1)
    z = F.avg_pool2d(swish(norm(state, "batchnorm", z)), 8 if wide else 4).flatten(1)
    return F.linear(z, state["logits.weight"], state["logits.bias"])


def lived(name, classes=10):
    """A network whose batch-norms are far from those of a fresh one."""
    torch.manual_seed(3)
    net = build(name, classes=classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("name", [WIDE, PRE_ACT])
@pytest.mark.parametrize(("classes", "mean", "std"), [(10, MEAN, STD), (100, MEAN_100, STD_100)])
def test_a_file_of_deepminds_layout_gives_the_logits_of_its_definition(name, classes, mean, std, tmp_path):
    state, x = lived(name, classes).state_dict(), torch.rand(4, 3, 32, 32)
    torch.save(state, tmp_path / "dm.pt")
    (fitted,) = fitting(state)
    net = build(fitted, classes=classes).eval()
    load_weights(net, tmp_path / "dm.pt")
    torch.testing.assert_close(net.double()(x.double()), as_defined(name, state, x, mean, std), atol=1e-9, rtol=1e-9)


def test_the_same_weights_under_the_other_names_load_strictly_and_give_other_logits():
    """Why it is a class of its own and not a renaming."""
    state, x = lived(WIDE).state_dict(), torch.rand(4, 3, 32, 32)
    words = {"init_conv": "conv1", "layer.0.block": "block1.layer", "layer.1.block": "block2.layer"}
    words |= {"layer.2.block": "block3.layer", "batchnorm_0": "bn1", "batchnorm_1": "bn2", "conv_1": "conv2"}
    words |= {"conv_0": "conv1", "shortcut": "convShortcut", "batchnorm": "bn1", "logits": "fc"}
    renamed = {}
    for key, tensor in state.items():
        for theirs, ours in words.items():
            key = key.replace(theirs, ours)
        renamed[key] = tensor
    net = build("WideResNet-16-2-silu", classes=10).eval()
    net.load_state_dict(renamed)
    wrong = net((x - MEAN[:, None, None]) / STD[:, None, None])
    assert (wrong - as_defined(WIDE, state, x)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("name", "keys", "parameters"),
    [
        ("WideResNet-28-10-deepmind", {"init_conv", "layer", "batchnorm", "logits"}, 36_479_194),
        ("WideResNet-34-20-deepmind", {"init_conv", "layer", "batchnorm", "logits"}, 184_531_674),
        ("WideResNet-70-16-deepmind", {"init_conv", "layer", "batchnorm", "logits"}, 266_796_506),
        ("PreActResNet18-deepmind", {"conv_2d", *(f"layer_{i}" for i in range(4)), "batchnorm", "logits"}, 12_548_426),
    ],
)
def test_the_public_networks_have_deepminds_names_and_numbers_of_parameters_and_no_mean(name, keys, parameters):
    with torch.device("meta"):
        net = build(name, classes=10)
    assert {key.split(".")[0] for key in net.state_dict()} == keys
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("name", [WIDE, PRE_ACT])
def test_folding_keeps_the_padding(name):
    net = lived(name)
    assert (made := folded(net)) is not net
    assert same_answers(net, made, torch.rand(3, 3, 32, 32))


# --- which network a file is of -----------------------------------------------------------------------------------


def shapes(name, classes=10):
    with torch.device("meta"):
        return build(name, classes=classes).state_dict()


@pytest.mark.parametrize(
    "names",
    [
        ("WideResNet-70-16", "WideResNet-70-16-silu"),
        ("WideResNet-28-10-deepmind",),
        ("WideResNet-94-16-deepmind",),
        ("WideResNet-34-10-sub-block",),
        ("WideResNet-10-1", "WideResNet-10-1-silu"),
        ("ResNet18", "ResNet18-guide"),
        ("ResNet8-w8", "ResNet8-w8-guide"),
        ("PreActResNet18",),
        ("PreActResNet34-w16-deepmind",),
        ("VGG16-w8",),
        ("MobileNetV2",),
        ("VGG-small",),
    ],
)
def test_a_files_keys_name_every_network_that_has_them(names):
    for name in names:
        assert fitting(shapes(name, 7)) == list(names)


def test_every_pattern_is_among_those_that_a_file_may_fit():
    """A network that is added to the patterns is found by its keys too."""
    spelt = {"{8, 10, 18, 34}": "18", "{8, 18}": "18", "{8, 18, 34}": "18", "[-w<width>]": "-w32", "<depth>": "16"}
    for pattern in PATTERNS:
        name = pattern.partition("[-silu")[0].replace("[-deepmind]", "").replace("<widening>", "3")
        for part, value in spelt.items():
            name = name.replace(part, value)
        assert name in fitting(shapes(name))


def test_the_weights_of_no_network_fit_none():
    assert fitting({}) == fitting({"weight": torch.ones(3)}) == fitting({"a": torch.ones(2, 2, 1, 1)}) == []
    assert fitting(shapes("ResNet18") | {"more": torch.ones(1)}) == []


def test_looking_for_a_network_draws_no_random_number():
    before = torch.get_rng_state()
    fitting(shapes("ResNet8-w8"))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("model", "file", "expected"),
    [
        ("WideResNet-16-2", WIDE, WIDE),
        ("WideResNet-16-2-silu", "WideResNet-16-2", "WideResNet-16-2-silu"),
        ("WideResNet-34-10", "WideResNet-34-10-sub-block", "WideResNet-34-10-sub-block"),
        ("WideResNet-34-10", WIDE, "WideResNet-34-10"),  # another size: what loads it says what is wrong
        ("", WIDE, WIDE),
    ],
)
def test_the_layout_is_chosen_by_the_keys_and_the_size_by_the_caller(model, file, expected, tmp_path):
    assert chosen(model, shapes(file), tmp_path) == expected


@pytest.mark.parametrize("model", ["", "WideResNet-70-16-deepmind"])
def test_where_a_file_fits_several_networks_the_sentence_names_them_and_the_caller_chooses(model, tmp_path):
    several = "a.pt fits WideResNet-70-16 and WideResNet-70-16-silu, whose keys are the same and whose logits are not"
    with pytest.raises(UserError, match=several):
        chosen(model, shapes("WideResNet-70-16"), tmp_path / "a.pt")
    for name in ("WideResNet-70-16", "WideResNet-70-16-silu"):
        assert chosen(name, shapes("WideResNet-70-16"), tmp_path) == name


# --- where a user meets it ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coloured():
    """Ten classes of coloured 32x32 images."""
    split = Split(torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(6))
    return replace(load_data(Classifier(device="cpu")), train=split, test=split)


@pytest.mark.parametrize(
    ("layout", "mean", "std"),
    [
        (lambda state: state, MEAN, STD),
        (lambda state: {"model_state_dict": {f"module.0.{key}": t for key, t in state.items()}}, MEAN, STD),
        (lambda state: state | {"mean": MEAN_100[:, None, None], "std": STD_100[:, None, None]}, MEAN_100, STD_100),
    ],
    ids=["DeepMind's", "a Sequential's, in parallel, wrapped", "with its normalisation, as RobustBench saves it"],
)
def test_a_classifier_of_deepminds_layout_is_found_without_being_named(layout, mean, std, coloured, tmp_path):
    state = lived(WIDE).state_dict()
    torch.save(layout(state), tmp_path / "dm.pt")
    x = coloured.test.images
    given = named(Classifier(device="cpu"), tmp_path / "dm.pt")
    assert given.model == WIDE
    logits = load(given, coloured, tmp_path / "dm.pt")(x)
    torch.testing.assert_close(logits.double(), as_defined(WIDE, state, x, mean, std), atol=1e-4, rtol=1e-4)


def test_a_mean_and_std_that_are_given_replace_deepminds_own(coloured, tmp_path):
    state = lived(PRE_ACT).state_dict()
    torch.save(state, tmp_path / "dm.pt")
    x, half = coloured.test.images, torch.full((3,), 0.5)
    net = load(Classifier(device="cpu", mean=[0.5] * 3, std=[0.5] * 3), coloured, tmp_path / "dm.pt")
    torch.testing.assert_close(net(x).double(), as_defined(PRE_ACT, state, x, half, half), atol=1e-4, rtol=1e-4)


def test_a_refused_file_is_refused_with_the_networks_it_fits(coloured, tmp_path):
    torch.save(lived(WIDE).state_dict(), tmp_path / "dm.pt")
    with pytest.raises(
        UserError, match=f"does not fit ResNet; nothing was loaded.*; with its own .* the file fits {WIDE}$"
    ):
        load(Classifier(device="cpu", model="ResNet18"), coloured, tmp_path / "dm.pt")


def test_a_teachers_file_is_read_in_the_layout_of_its_keys(tmp_path):
    """At scale quick DGAD's WideResNet-34-20 is a WideResNet-16-1 for grey images."""
    net = build("WideResNet-16-1-deepmind", classes=10, channels=1)
    torch.save(net.state_dict(), tmp_path / "dm.pt")
    files = {"WideResNet-34-20": str(tmp_path / "dm.pt")}
    given = {"outputs": str(tmp_path), "device": "cpu", "rows": ["DGAD"], "teachers": ["WideResNet-34-20"]}
    table = open_table("table4_dgad", Parameters(teacher_files=files, **given))
    assert table.teachers["WideResNet-34-20"].model == "WideResNet-16-1-deepmind"
