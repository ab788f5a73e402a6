"""Whether what is faster finds the same: the flags of one attack under each lever, judged in fp32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from lib.attacks.levers import PLAIN, Levers
from lib.attacks.pgd import pgd
from lib.benchmark.bars import EXACT, FLAGS, SHIFT
from lib.benchmark.forms import attack_of
from lib.data import Split, load, to_float
from lib.evaluate import AttackSpec, accuracy, mcnemar
from lib.methods import METHODS
from lib.models import build
from lib.train import Schedule, Training

DIGITS_RADIUS = 38 / 255  # as at scale quick
ON_WEIGHTS = ("fused", "in_backward")  # the levers that no attack knows


def digits_net(epochs: int, device: torch.device, precision: str = "fp32") -> tuple[nn.Module, Split]:
    """A small network trained by PGD-AT on the embedded digits, in eval mode, and the digits it did not see."""
    data = load("digits", data_dir=Path()).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build("ResNet8-w8", classes=10, channels=data.channels).to(device)
    attack = partial(pgd, epsilon=DIGITS_RADIUS, step_size=DIGITS_RADIUS / 4, steps=5)
    schedule = Schedule(epochs, batch_size=64)
    Training(
        net, None, METHODS["pgd_at"], attack, data.train, schedule, score=lambda net: 0.0, precision=precision
    ).run()
    return net.eval(), data.test


def agreement(net: nn.Module, test: Split, steps: int, variants: Mapping[str, Levers]) -> pd.DataFrame:
    """PGD on the same images from the same start under each variant, judged by the network itself in fp32.

    Where images leave the batch, they have from one step to `steps`, on both sides. On a GPU fp32 is fp32 here: TF32,
    which torch uses in convolutions, rounds a folded weight otherwise. Columns: robust accuracy in %, its shift from
    the plain path in points, and how many images are judged otherwise.
    """
    x, y = to_float(test.images), test.labels
    run, rows = partial(attack_of, net, x, y, DIGITS_RADIUS, steps), {}
    uneven = {"steps": 1 + torch.arange(len(y), device=y.device) % steps}
    for name, levers in variants.items():
        chosen = uneven if name == "leave" else {}
        with _without_tf32():
            base, right = (_right(net, run(which)(**chosen), y) for which in (PLAIN, levers))
        shift = 100 * float(right.float().mean() - base.float().mean())
        rows[name] = {"robust %": 100 * float(right.float().mean()), "shift": shift}
        rows[name] |= {"judged otherwise": int((right != base).sum()), "of": len(y)}
    return pd.DataFrame.from_dict(rows, orient="index")


def trainings(nets: Mapping[str, nn.Module], test: Split, steps: int) -> pd.DataFrame:
    """Networks on the same images under PGD in fp32: robust accuracy in %, and the first one's lead over each.

    The lead is in points with its standard error; `noise` where McNemar's test at 5 % cannot tell it from none.
    """
    column = AttackSpec("PGD", "pgd", DIGITS_RADIUS, DIGITS_RADIUS / 4, steps)
    found = {name: accuracy(net, test, column) for name, net in nets.items()}
    first, rows = next(iter(found.values())), {}
    for name, one in found.items():
        lead = mcnemar(first.flags, one.flags)
        said = {"lead": lead.difference, "error": lead.error, "noise": not lead.significant}
        rows[name] = {"robust %": one.percent, "of": one.n} | said
    return pd.DataFrame.from_dict(rows, orient="index")


def changes(agreed: pd.DataFrame, levers: Levers) -> dict[str, float]:
    """What the bars ask of `agreement`: how many flags fp32 levers change; the share of flags, the points, of bf16."""
    low = ["bf16", "all of them"] if levers.bf16 else []
    exact, rounded = agreed.drop(index=low), agreed.loc[low]
    found = {EXACT: float(exact["judged otherwise"].sum())}
    if low:
        found[FLAGS] = float((rounded["judged otherwise"] / rounded["of"]).max())
        found[SHIFT] = float(rounded["shift"].abs().max())
    return found


@contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@torch.no_grad()
def _right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return net(x).argmax(1) == y


def each_alone(levers: Levers) -> dict[str, Levers]:
    """Every lever of the attack that is on, by itself, and then all of them together."""
    alone = {
        name: replace(PLAIN, **{name: True}) for name, on in asdict(levers).items() if on and name not in ON_WEIGHTS
    }
    return alone | {"all of them": levers}
