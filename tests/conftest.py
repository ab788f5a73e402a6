"""Shared by all tests: one thread, a fixed seed, and a network and a batch as small as the claims allow."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

torch.set_num_threads(1)

CLASSES = 10


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked gpu where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of measured numbers does not depend on the evidence that is kept at present."""
    monkeypatch.setattr("lib.experiment.kept.SCALES", ())


@pytest.fixture
def make_net() -> Callable[[], nn.Module]:
    """Convolution, batch-norm, relu, linear for 3x4x4 images and ten classes; every call draws other weights."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)
        )

    return make


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Six 3x4x4 images, pixels of exactly 0 and 1 among them, with their labels."""
    x = (1.4 * torch.rand(6, 3, 4, 4) - 0.2).clamp(0, 1)
    return x, torch.randint(CLASSES, (6,))


@pytest.fixture
def images(make_net):
    """A small network, images, and what it answers on them."""
    net, x = make_net().eval(), torch.rand(12, 3, 4, 4)
    return net, x, net(x).argmax(1)


@pytest.fixture(scope="module")
def works(tmp_path_factory):
    """What faults are tried on, and without them finished once."""
    from faults import Works

    from lib.attacks import autoattack
    from lib.experiment import networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoattack, "STEPS", 3)
        patch.setattr(networks, "git", lambda *_: "")
        yield Works(tmp_path_factory.mktemp("finished"))
