"""Which levers pay on the machine at hand: each is tried in turn beside the best so far, and kept if it is faster."""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lib.attacks.engine import PRECISIONS, Engine
from lib.attacks.levers import PLAIN, Levers
from lib.attacks.pgd import PerImage, at_image, pgd
from lib.attacks.update import Stepper
from lib.errors import UserError, choose
from lib.losses import cross_entropy
from lib.train.meter import seconds

PAYS = 1.02  # how many times as fast a lever has to be, not to be taken for noise
STRAYS = 0.25  # the share of pixels that rounding may send the other way in one step; an attack gone wrong: half
GPU_ONLY = {
    "compile": "on a CPU it takes longer to build than it saves",
    "cuda_graph": "needs a CUDA device",
}
ORDER = ("folding", "bf16", "channels_last", "leave", "compile", "cuda_graph", "fused", "in_backward")
ON_WEIGHTS = ("fused", "in_backward")  # the levers that no attack knows

Work = Callable[[], object]
Clock = Callable[[], float]


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
        line: dict[str, str | float | bool] = {"lever": self.lever, "tried on": acts_on(self.lever)}
        return line | {"times as fast": middle, "lowest": low, "highest": high, "verdict": self.why}


def acts_on(lever: str) -> str:
    """The work that a lever is tried on."""
    if lever in ON_WEIGHTS:
        return "the optimiser's step"
    return "PGD with steps per image" if lever == "leave" else "PGD"


class Probed:
    """PGD on the cross-entropy of a copy of `net` under some levers, from x itself, in steps of epsilon / 4."""

    def __init__(self, net: nn.Module, epsilon: float, engine: Engine) -> None:
        self.net, self.engine = deepcopy(net).eval(), engine
        engine.laid_out(self.net)
        self.pgd = partial(pgd, epsilon=epsilon, step_size=epsilon / 4)

    def __call__(self, x: Tensor, y: Tensor, **chosen: Any) -> Tensor:
        seen = self.engine.seen(self.net, x)
        objective = PerImage(lambda z, y: cross_entropy(seen(z), y), (y,))
        return self.engine.attack(self.pgd, objective, x, **{"start": at_image, **chosen})

    @torch.no_grad()
    def turn(self) -> None:
        """Change the network, in place: the sign of every weight of a convolution or a linear layer."""
        for parameter in self.net.parameters():
            if parameter.dim() > 1:
                parameter.neg_()


@dataclass(frozen=True)
class Probe:
    """The work that levers are tried on: `steps` steps of PGD on net's cross-entropy at (x, y), radius epsilon."""

    net: nn.Module
    x: Tensor
    y: Tensor
    epsilon: float
    steps: int
    precision: str = "fp32"  # of the training that the attack is part of
    said: dict[str, str] = field(default_factory=dict)  # what its engines could not have, and why

    def attacker(self, levers: Levers) -> Probed:
        """The attack under `levers`, to be told its images, labels and steps."""
        return Probed(self.net, self.epsilon, Engine(levers, self.precision, said=self.said))

    def attack(self, levers: Levers) -> Callable[..., Tensor]:
        """The same for all of (x, y)."""
        return partial(self.attacker(levers), self.x, self.y, steps=self.steps)

    def uneven(self, levers: Levers) -> Work:
        """The same with 1 to 2 x steps per image, which is what `leave` acts on."""
        generator = Generator().manual_seed(0)
        steps = torch.randint(1, 2 * self.steps + 1, (len(self.x),), generator=generator).to(self.x)
        return partial(self.attacker(levers), self.x, self.y, steps=steps)

    def update(self, levers: Levers) -> Work:
        """The optimiser's step, which is what `fused` and `in_backward` act on: in parts under the second."""
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

    def on(self, lever: str, levers: Levers) -> Work:
        """The work that `lever` acts on, under `levers`."""
        return {"leave": self.uneven, **dict.fromkeys(ON_WEIGHTS, self.update)}.get(lever, self.attack)(levers)

    def strays(self, before: Levers, after: Levers) -> float:
        """The share of x''s pixels that one step under `after` puts elsewhere than under `before`.

        Asked of a network that has changed since the first call, and of one image fewer: a recording has to follow.
        """
        made, rest = [], slice(min(1, len(self.x) - 1), None)
        for attacker in (self.attacker(before), self.attacker(after)):
            attacker(self.x, self.y, steps=1)
            attacker.turn()
            made.append(attacker(self.x[rest], self.y[rest], steps=1))
        return float(((made[0] - made[1]).abs() > 1e-6).float().mean())


def calibrate(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    steps: int = 1,
    repeats: int = 3,
    precision: str = "",
    clock: Clock = time.perf_counter,
) -> tuple[Levers, list[Tried]]:
    """The levers that pay for attacks on `net` with batches like x (N, C, H, W), y (N,), and what was found of each.

    epsilon is in [0, 1]; a step is a quarter of it. A lever under which one step puts more than a quarter of the pixels
    elsewhere than without it is refused: rounding moves some percent, another attack half. bf16 changes more than
    rounding: a training's `precision` decides it, and without one it is tried as all others are, and the caller has to
    see what it changes. What needs another device is not tried, and says so. `in_backward` is for memory: it is timed,
    and kept whatever it costs.

    Raises:
        UserError: fewer than one round, or no such precision.
    """
    if repeats < 1:
        raise UserError(f"a calibration wants repeats >= 1, got {repeats}")
    choose("precision", precision, dict.fromkeys(("", *PRECISIONS)))
    probe = Probe(net, x, y, epsilon, steps, "bf16" if precision == "bf16" else "fp32")
    levers, tried = replace(PLAIN, bf16=precision in ("bf16", "bf16_crafting")), []
    for name in ORDER:
        if name == "bf16" and precision:
            found = Tried(name, (), levers.bf16, f"not tried: the precision is {precision}")
        else:
            found = _try(probe, name, levers, repeats, clock)
        levers = replace(levers, **{name: found.kept})
        tried.append(found)
    return levers, tried


def _try(probe: Probe, name: str, levers: Levers, repeats: int, clock: Clock) -> Tried:
    if name in GPU_ONLY and probe.x.device.type != "cuda":
        return Tried(name, (), False, f"not tried: {GPU_ONLY[name]}")
    candidate = replace(levers, **{name: True})
    try:
        if name not in ON_WEIGHTS and (strays := probe.strays(levers, candidate)) > STRAYS:
            return Tried(name, (), False, f"refused: {strays:.0%} of the pixels come out otherwise")
        shares = _rounds(probe.on(name, levers), probe.on(name, candidate), repeats, probe.x.device, clock)
    except RuntimeError as error:
        return Tried(name, (), False, "failed: " + str(error).partition("\n")[0])
    if fell_back := probe.said.get(name):
        return Tried(name, shares, False, f"not to be had here: {fell_back}")
    if name == "in_backward":
        return Tried(name, shares, True, "kept for memory")
    pays = statistics.median(shares) >= PAYS
    return Tried(name, shares, pays, "pays" if pays else "does not pay")


def _rounds(before: Work, after: Work, repeats: int, device: torch.device, clock: Clock) -> tuple[float, ...]:
    """before / after in seconds, taken in turns, each called once uncounted."""
    before(), after()
    return tuple(seconds(before, device, clock) / seconds(after, device, clock) for _ in range(repeats))
