"""The pieces of work that the speed benchmark times: ours, torchattacks', and the plain forms, on the same images."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor, nn

from lib.attacks.calibration import Probe
from lib.attacks.levers import Levers
from lib.attacks.pgd import pgd, uniform_in_image
from lib.attacks.trajectory import snapshots
from lib.benchmark import released
from lib.benchmark.cases import Case, training
from lib.benchmark.measure import Work
from lib.benchmark.released import Ball, PlainNets
from lib.data import Split, crop_and_flip, to_float
from lib.losses import cross_entropy
from lib.methods import Nets, kl_clean

BATCH, LOADED = 128, 512  # images of a batch, and of the epoch that loading is timed on


def pgd_forms(net: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int, levers: Levers) -> dict[str, Work]:
    """PGD as torchattacks has it, as the loop around loss.backward(), and ours, in fp32 too where the levers have bf16.

    None of them changes the network.
    """
    theirs, looped, ball = deepcopy(net).eval(), deepcopy(net).eval(), Ball(radius, radius / 4, steps)
    forms: dict[str, Work] = {
        "torchattacks": lambda: released.pgd_by_torchattacks(theirs, x, y, ball),
        "loss.backward()": lambda: released.pgd_with_backward(looped, x, y, _start(x, radius), ball),
        "ours": attack_of(net, x, y, radius, steps, levers),
    }
    if levers.bf16:
        forms["ours in fp32"] = attack_of(net, x, y, radius, steps, replace(levers, bf16=False))
    return forms


def attack_of(net: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int, levers: Levers) -> Callable[[], Tensor]:
    """Our PGD on net's cross-entropy under `levers`, on a copy of it."""
    return partial(Probe(net, x, y, radius, steps).attack(levers), start=lambda *_: _start(x, radius))


def _start(x: Tensor, radius: float) -> Tensor:
    generator = Generator(x.device).manual_seed(0)
    return uniform_in_image(x, x.new_tensor(radius), generator)


def our_step(case: Case, levers: Levers, precision: str = "") -> Work:
    """One training step of ours per call, in this precision; without one, bf16 throughout where the levers have it."""
    ours = training(case, levers, precision or ("bf16" if levers.bf16 else "fp32"))
    return lambda: ours.train_step(case.x, case.y)


def unswitched(net: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int) -> dict[str, tuple[Work, Work]]:
    """What has no switch, as (without, with): it is always done, and changes no result."""
    net = deepcopy(net).eval()
    start, ball = _start(x, radius), Ball(radius, radius / 4, steps)
    times = -(-LOADED // len(x))
    split = Split((255 * x).byte().repeat(times, 1, 1, 1), y.repeat(times))
    loader = released.loader(split, BATCH)
    run = partial(pgd, epsilon=radius, step_size=radius / 4, start=lambda *_: start)

    def separate() -> None:
        for count in (steps // 2, steps):
            run(lambda z: cross_entropy(net(z), y), x, steps=count)

    def shared() -> None:
        generator, at = Generator(x.device).manual_seed(0), (steps // 2, steps)
        radii = {"epsilon": radius, "step_size": radius / 4}
        snapshots(net, x, y, cross_entropy, **radii, at=at, freeze=False, batch_size=len(x), generator=generator)

    return {
        "gradients for the input only": (
            lambda: released.pgd_with_backward(net, x, y, start, ball),
            lambda: run(lambda z: cross_entropy(net(z), y), x, steps=steps),
        ),
        "constants computed once (TRADES)": (
            lambda: released.attack(_recomputed(net, x, y), released.by_grad, x, start, ball),
            lambda: run(kl_clean(Nets(net), x, y), x, steps=steps),
        ),
        "one trajectory for PGD-n/2 and PGD-n": (separate, shared),
        f"{LOADED} images: data and augmentation on the device, not in a DataLoader without workers": (
            partial(_by_loader, loader, x.device),
            partial(_on_device, split),
        ),
    }


def _recomputed(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: released.RELEASED["trades_as_released"].inner(PlainNets(net), x, z, y)


def _by_loader(loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
    for x, y in loader:
        x.to(device), y.to(device)


def _on_device(split: Split) -> None:
    """As `Training.epoch` takes its batches."""
    device = split.images.device
    generator = Generator(device).manual_seed(0)
    for index in torch.randperm(len(split.labels), generator=generator, device=device).split(BATCH):
        x, _ = to_float(split.images[index]), split.labels[index]
        crop_and_flip(x, padding=4, flip=True, generator=generator)
