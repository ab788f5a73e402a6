"""Weights of one's own, as the public files have them."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.data import Split
from lib.errors import UserError
from lib.experiment.parameters import validate
from lib.experiment.your_model import Classifier, key, load, load_data, other_order, remarks, use_threads_that_pay
from lib.models import build
from lib.models.deepmind import Normalise

MEAN, STD = torch.tensor([0.4]), torch.tensor([0.25])


@pytest.fixture(scope="module")
def digits():
    return load_data(Classifier(device="cpu"))


@pytest.fixture
def net():
    return build("ResNet8-w8", classes=10, channels=1).eval()


def logits(path, digits, **given):
    x = digits.test.images[:4].float() / (255 if digits.test.images.dtype == torch.uint8 else 1)
    with torch.no_grad():
        return load(replace(Classifier(device="cpu", model="ResNet8-w8"), **given), digits, path)(x), x


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model_state_dict": state, "epoch": 7},
    ],
    ids=["plain", "DataParallel, wrapped", "wrapped"],
)
def test_a_public_files_wrappers_and_prefixes_are_taken_off(tmp_path, digits, net, layout):
    torch.save(layout(net.state_dict()), tmp_path / "net.pt")
    ours, x = logits(tmp_path / "net.pt", digits)
    torch.testing.assert_close(ours, net(x).detach(), atol=1e-5, rtol=1e-4)


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


IMAGE_MEAN, IMAGE_STD = MEAN.view(1, 1, 1, 1), STD.view(1, 1, 1, 1)
NORMALISED = {
    "mu and sigma": lambda s: {**s, "mu": MEAN.view(1, 1, 1), "sigma": STD.view(1, 1, 1)},
    "numbers": lambda s: {**s, "mean": 0.4, "std": [0.25]},
    "a Sequential": lambda s: {"0.mean": MEAN, "0.std": STD, **under("1.", s)},
    "a named layer": lambda s: {"normalize.mean": IMAGE_MEAN, "normalize.std": IMAGE_STD, **under("model.", s)},
    "a Sequential in parallel": lambda s: {**under("module.1.", s), "module.0.mean": MEAN, "module.0.std": STD},
    "the same, wrapped": lambda s: {
        "model_state_dict": {**under("module.1.", s), "module.0.mu": MEAN, "module.0.std": STD}
    },
    "beside, in parallel": lambda s: {**under("module.", s), "module.mean": MEAN, "module.std": STD},
    "a layer in parallel": lambda s: under(
        "module.", {**under("model.", s), "normalize.mean": MEAN, "normalize.std": STD}
    ),
    "in parallel inside": lambda s: {**under("1.module.", s), "0.mean": MEAN, "0.std": STD},
    "compiled inside": lambda s: under("module.", {**under("1._orig_mod.", s), "0.mean": MEAN, "0.std": STD}),
    "Madry's": lambda s: {
        "model": under("module.", {
            **under("model.", s), "normalizer.new_mean": MEAN, "normalizer.new_std": STD,
            **under("attacker.model.", s), "attacker.normalize.new_mean": MEAN, "attacker.normalize.new_std": STD,
        }),
        "epoch": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", NORMALISED.values(), ids=NORMALISED)
def test_a_normalisation_in_the_file_becomes_the_first_layer(tmp_path, digits, net, layout):
    torch.save(layout(net.state_dict()), tmp_path / "net.pt")
    ours, x = logits(tmp_path / "net.pt", digits)
    torch.testing.assert_close(ours, net((x - 0.4) / 0.25).detach(), atol=1e-5, rtol=1e-4)


def test_a_normalisation_that_is_not_in_the_file_can_be_given(tmp_path, digits, net):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    ours, x = logits(tmp_path / "net.pt", digits, mean=[0.4], std=[0.25])
    torch.testing.assert_close(ours, net((x - 0.4) / 0.25).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": [0.5]}, "needs both mean and std"),
        ({"mean": [0.5, 0.5], "std": [0.2, 0.2]}, r"one per channel \(1\), got 2"),
        ({"mean": [0.5], "std": [0.0]}, "positive numbers"),
        ({"model": "ResNet10-w8"}, "does not fit ResNet; nothing was loaded"),
        ({"part": "ema"}, "no network 'ema'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(tmp_path, digits, net, given, message):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(UserError, match=message):
        logits(tmp_path / "net.pt", digits, **given)


def test_a_file_whose_keys_fit_several_networks_wants_the_model_named(tmp_path, digits, net):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"net\.pt fits ResNet8-w8 and ResNet8-w8-guide, whose keys are the same"):
        logits(tmp_path / "net.pt", digits, model="")


def test_a_file_that_fits_no_network_wants_the_model_named(tmp_path, digits):
    torch.save({"weight": torch.ones(3, 3)}, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"fits no network of lib/models; say which model it is"):
        logits(tmp_path / "net.pt", digits, model="")


def test_a_normalisation_in_front_that_is_not_in_the_file_is_refused_until_it_is_given(tmp_path, digits, net):
    torch.save({f"module.1.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "net.pt")
    with pytest.raises(UserError, match="does not fit ResNet"):
        logits(tmp_path / "net.pt", digits)
    ours, x = logits(tmp_path / "net.pt", digits, mean=[0.4], std=[0.25])
    torch.testing.assert_close(ours, net((x - 0.4) / 0.25).detach(), atol=1e-5, rtol=1e-4)


def test_a_file_that_wants_to_run_code_is_refused(tmp_path, digits, net):
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(UserError, match="wants to run code"):
        logits(tmp_path / "net.pt", digits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "ResNet19"}, "unknown model 'ResNet19'"),
        ({"protocol": "mine"}, "unknown protocol 'mine'"),
        ({"images": -1}, "images wants 0 or more"),
        ({"epsilon_255": "8/255"}, "parameter epsilon_255"),
        ({"In": ["# Parameters\nwieghts = 'a.pt'\n"]}, "unknown parameter 'wieghts'"),
    ],
)
def test_a_wrong_parameter_is_refused_in_a_sentence(given, message):
    with pytest.raises(UserError, match=message):
        validate(given, Classifier)


def test_a_normalised_networks_gradient_is_with_respect_to_the_image():
    net = nn.Sequential(Normalise(torch.tensor([0.5]), torch.tensor([0.1])), nn.Flatten())
    x = torch.rand(1, 1, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 10.0))


def test_two_normalisations_in_a_file_are_refused(tmp_path, digits, net):
    state = {**net.state_dict(), "mean": MEAN, "std": STD, "normalize.mean": MEAN, "normalize.std": STD}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"several normalisations: mean, normalize\.mean"):
        logits(tmp_path / "net.pt", digits)


def test_the_part_of_a_file_that_is_named_is_loaded(tmp_path, digits, net):
    other = build("ResNet8-w8", classes=10, channels=1).eval()
    torch.save({"model": net.state_dict(), "ema": other.state_dict()}, tmp_path / "net.pt")
    ours, x = logits(tmp_path / "net.pt", digits, part="ema")
    torch.testing.assert_close(ours, other(x).detach(), atol=1e-5, rtol=1e-4)


class Half(nn.Module):
    """Another forward under the same weights."""

    def __init__(self, net):
        super().__init__()
        self.net, self.factor = net, 1.0

    def forward(self, x):
        return self.factor * self.net(x)


def test_a_reports_key_is_all_that_makes_its_numbers_and_nothing_else(tmp_path, digits, net):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    given = Classifier(device="cpu", model="ResNet8-w8")
    plain, normed = (load(one, digits, tmp_path / "net.pt") for one in (given, replace(given, mean=[0.4], std=[0.25])))
    scaled = load(replace(given, mean=[0.4], std=[0.5]), digits, tmp_path / "net.pt")
    other_forward = Half(plain)
    keys = [key(given, one, digits) for one in (plain, normed, scaled, nn.Sequential(plain), Half(plain))]
    other_forward.factor = 0.5
    keys += [key(given, other_forward, digits)]
    fewer = replace(digits, test=digits.test.take(slice(0, 400)))
    keys += [key(given, plain, data) for data in (fewer, replace(digits, test=digits.train))]
    changes = ({"seed": 1}, {"images": 64}, {"epsilon_255": 8.0}, {"protocol": "dgad"}, {"changes": {}})
    keys += [key(replace(given, **change), plain, digits) for change in changes]
    assert len({*keys}) == len(keys)
    assert key(given, load(given, digits, tmp_path / "net.pt"), digits) == keys[0]
    assert key(replace(given, outputs="elsewhere", weights="copy.pt"), plain, digits) == keys[0]


class Answers(nn.Module):
    """Says what it is told of each image."""

    def __init__(self, said, classes=10):
        super().__init__()
        self.said, self.classes, self.at = said, classes, 0

    def forward(self, x):
        self.at += len(x)
        return nn.functional.one_hot(self.said[self.at - len(x) : self.at], self.classes).float()


def test_outputs_in_another_order_are_named_with_the_accuracy_under_it(digits):
    textual = torch.tensor([0, 1, 10, 11, *range(2, 10)])  # where names that are numbers are sorted as text
    y = torch.arange(600) % 12
    test, classes = Split(torch.zeros(600, 1, 2, 2), y), [str(i) for i in range(12)]
    (said,) = other_order(Answers(textual.argsort()[y], 12), test, classes)
    assert "16.7 % are right without an attack, and 100.0 % where its output 2 is 10, 3 is 11, 4 is 2" in said
    assert len(said) <= 500


@pytest.mark.parametrize("right", [1.0, 0.8, 0.3, 0.1])
@pytest.mark.parametrize("images", [16, 64, 500])
def test_errors_at_random_are_not_taken_for_another_order(right, images):
    draw = torch.Generator().manual_seed(images)
    y = torch.randint(10, (images,), generator=draw)
    said = torch.where(torch.rand(images, generator=draw) < right, y, torch.randint(10, (images,), generator=draw))
    assert other_order(Answers(said), Split(torch.zeros(images, 1, 2, 2), y), "0123456789") == ()


def test_every_report_begins_with_the_order_of_the_classes(digits, net):
    assert remarks(Classifier(images=20), net, digits)[0] == (
        "Order of the classes: 0 0, 1 1, 2 2, 3 3, 4 4, 5 5, 6 6, 7 7, 8 8, 9 9."
    )


class Slow(torch.nn.Module):
    """A network that is slow on so many threads."""

    def __init__(self, threads):
        super().__init__()
        self.threads = threads

    def forward(self, x):
        time.sleep(0.2 * (torch.get_num_threads() == self.threads))
        return x.flatten(1)


def test_trying_threads_leaves_no_trace_in_a_network():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    use_threads_that_pay(net, load_data(Classifier()))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("slow", "used"), [(2, 1), (1, 2)])
def test_all_threads_are_used_only_where_they_take_less_time_than_one(slow, used):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert use_threads_that_pay(Slow(slow), load_data(Classifier())) == used
        assert torch.get_num_threads() == used
    finally:
        torch.set_num_threads(before)
