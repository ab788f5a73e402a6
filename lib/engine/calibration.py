"""Which levers pay on the machine at hand: each is tried in turn beside the best so far, and kept if it is faster."""

import statistics
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lib.attacks import PerImage, at_image, pgd
from lib.engine.core import Engine
from lib.engine.levers import PLAIN, Levers
from lib.engine.update import Stepper
from lib.errors import UserError
from lib.losses import cross_entropy
from lib.meter import seconds

PAYS = 1.02  # how many times as fast a lever has to be, not to be taken for noise
FLIPS = 0.01  # the share of images whose verdict bf16 may change
STRAYS = 0.25  # the share of pixels that rounding may send the other way in a step or two; an attack gone wrong: half
GPU_ONLY = {
    "cudnn_benchmark": "a CPU has no cuDNN",
    "compile": "on a CPU it takes longer to build than it saves",
    "cuda_graph": "needs a CUDA device",
}
ORDER = ("folding", "bf16", "channels_last", "leave", "cudnn_benchmark", "compile", "cuda_graph", "fused")

Work = Callable[[], object]
Low = ("bf16", "bf16_crafting")


@dataclass(frozen=True)
class Tried:
    """One lever: how many times as fast it made the work that it acts on, and whether it is kept."""

    lever: str
    shares: tuple[float, ...]  # seconds without it / seconds with it, round by round; none if it was not timed
    kept: bool
    why: str

    @property
    def row(self) -> dict[str, str | float | bool]:
        """A line of the report: the median ratio, its lowest and highest, and the decision."""
        middle, low, high = (f(self.shares or (float("nan"),)) for f in (statistics.median, min, max))
        return {"lever": self.lever, "times faster": middle, "lowest": low, "highest": high, "": self.why}


@dataclass(frozen=True)
class Probe:
    """The work that levers are tried on: `steps` steps of PGD on net's cross-entropy at (x, y)."""

    net: nn.Module
    x: Tensor
    y: Tensor
    epsilon: float
    steps: int
    precision: str = "fp32"  # of the training that the attack is part of
    said: dict[str, str] = field(default_factory=dict)  # what its engines could not have, and why

    def attack(self, levers: Levers) -> Callable[..., Tensor]:
        """The attack under `levers`, on a copy of the network; images have different steps where `leave` is tried."""
        net, engine = deepcopy(self.net).eval(), Engine(levers, self.precision, said=self.said)
        engine.laid_out(net)
        run = partial(pgd, epsilon=self.epsilon, step_size=self.epsilon / 4, steps=self.steps)

        def work(**chosen: Any) -> Tensor:
            seen = engine.seen(net, self.x)
            objective = PerImage(lambda z, y: cross_entropy(seen(z), y), (self.y,))
            return engine.attack(run, objective, self.x, **{"start": at_image, **chosen})

        return work

    def uneven(self, levers: Levers) -> Work:
        """The same with 1 to 2 x steps per image, which is what `leave` acts on."""
        generator = Generator().manual_seed(0)
        steps = torch.randint(1, 2 * self.steps + 1, (len(self.x),), generator=generator).to(self.x)
        return partial(self.attack(levers), steps=steps)

    def update(self, levers: Levers) -> Work:
        """The optimiser's step, which is what `fused` acts on: in parts where it is done in the backward."""
        net = deepcopy(self.net)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, **levers.optimizer)

        def work() -> None:
            stepper = Stepper(optimizer)
            for parameter in net.parameters():
                parameter.requires_grad_().grad = torch.zeros_like(parameter)
                if levers.in_backward:
                    stepper.add(parameter)
            optimizer.step()
            stepper.free()

        return work

    def strays(self, lever: str, levers: Levers) -> float:
        """The share of pixels of x' that are not where the plain path puts them; 0 for `fused`, which makes no x'."""
        if lever == "fused":
            return 0.0
        plain, other = (self.on(lever, which)() for which in (PLAIN, levers))
        return float(((plain - other).abs() > 1e-6).float().mean())

    def on(self, lever: str, levers: Levers) -> Callable[[], Any]:
        """The work that `lever` acts on, under `levers`."""
        return {"leave": self.uneven, "fused": self.update}.get(lever, self.attack)(levers)

    def flips(self, levers: Levers) -> int:
        """On how many images the network itself says another class of x' than of the plain path's x'.

        Of a network that says one class of everything this tells nothing.
        """
        judge = deepcopy(self.net).eval()
        with torch.no_grad():
            plain, other = (judge(self.attack(which)()).argmax(1) for which in (PLAIN, levers))
        return int((plain != other).sum())


def calibrate(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    steps: int = 1,
    repeats: int = 3,
    exact: bool = False,
    precision: str = "fp32",
) -> tuple[Levers, list[Tried]]:
    """The levers that pay for attacks on `net` with batches like x (N, C, H, W), y (N,), and what was found of each.

    A lever that sends a quarter of the pixels elsewhere than the plain path does is refused. bf16 changes more than
    rounding: it is kept only if at most 1 % of these images, or one, are judged otherwise, and not tried where the
    result has to be `exact`; a training whose `precision` is bf16 or bf16_crafting attacks in it anyway. What needs
    another device is not tried either, and says so. `in_backward` is always kept: it is for memory, and may cost time.

    Raises:
        UserError: fewer than one round.
    """
    if repeats < 1:
        raise UserError(f"a calibration wants repeats >= 1, got {repeats}")
    low, trained_in = precision in Low, "bf16" if precision == "bf16" else "fp32"
    probe, levers, tried = Probe(net, x, y, epsilon, steps, trained_in), replace(PLAIN, in_backward=True, bf16=low), []
    why = "the precision is bf16 anyway" if low else "the result has to be exact" if exact else ""
    for name in ORDER:
        found = _try(probe, name, levers, repeats, why if name == "bf16" else "")
        levers = replace(levers, **{name: True}) if found.kept else levers
        tried.append(found)
    return levers, tried


def _try(probe: Probe, name: str, levers: Levers, repeats: int, refused: str) -> Tried:
    refused = refused or (GPU_ONLY.get(name, "") if probe.x.device.type != "cuda" else "")
    if refused:
        return Tried(name, (), False, f"not tried: {refused}")
    candidate = replace(levers, **{name: True})
    if name == "bf16" and (flips := probe.flips(candidate)) > max(1, FLIPS * len(probe.y)):
        return Tried(name, (), False, f"refused: {flips} of {len(probe.y)} images are judged otherwise")
    try:
        if (strays := probe.strays(name, candidate)) > STRAYS:
            return Tried(name, (), False, f"refused: {strays:.0%} of the pixels come out otherwise")
        shares = _rounds(probe.on(name, levers), probe.on(name, candidate), repeats, probe.x.device)
    except RuntimeError as error:
        return Tried(name, (), False, "failed: " + str(error).partition("\n")[0])
    if fell_back := probe.said.get(name):
        return Tried(name, shares, False, f"not to be had here: {fell_back}")
    pays = statistics.median(shares) >= PAYS
    return Tried(name, shares, pays, "pays" if pays else "does not pay")


def _rounds(before: Work, after: Work, repeats: int, device: torch.device) -> tuple[float, ...]:
    """before / after in seconds, taken in turns, each called once uncounted."""
    before(), after()
    return tuple(seconds(before, device) / seconds(after, device) for _ in range(repeats))
