"""Weights of one's own, as the public files have them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.errors import UserError
from lib.experiment.your_model import Classifier, load, load_data, validate
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


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: {**state, "mu": MEAN.view(1, 1, 1), "sigma": STD.view(1, 1, 1)},
        lambda state: {"0.mean": MEAN, "0.std": STD, **{f"1.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"normalize.mean": MEAN, "normalize.std": STD, **{f"model.{n}": t for n, t in state.items()}},
    ],
    ids=["mu and sigma", "a Sequential", "a named layer"],
)
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
    torch.save({"weight": torch.ones(3)}, tmp_path / "net.pt")
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
        validate(given)


def test_a_normalised_networks_gradient_is_with_respect_to_the_image():
    net = nn.Sequential(Normalise(torch.tensor([0.5]), torch.tensor([0.1])), nn.Flatten())
    x = torch.rand(1, 1, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 10.0))
