"""What a strategy is: it picks the attack's settings, and other per-image numbers of a method, for every batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from lib.attacks.pgd import Start
from lib.errors import UserError, choose
from lib.methods.core import Net

Settings = dict[str, Tensor]  # the attack's, a weight of the method, or what its criterion observed -> (N,)
ATTACK_SETTINGS = ("epsilon", "step_size", "steps")
PER_IMAGE_WEIGHTS = ("trade_off",)  # weights of methods that may differ from image to image
UNITS = {"epsilon": 255, "step_size": 255}  # options are written in 1/255
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(UNITS, ("lie in (0, 1], the range of images (255/255 is 1)", lambda value: 0 < value <= 1)),
    "steps": ("be whole numbers >= 1", lambda value: value >= 1 and value % 1 == 0),
    **dict.fromkeys(("every", "candidates"), ("be at least 1", lambda value: value >= 1)),
    **dict.fromkeys(("lr", "clip", "hardest", "patience"), ("be above 0", lambda value: value > 0)),
}
_OTHERS = ("be finite and 0 or more", lambda value: 0 <= value < math.inf)


@dataclass(frozen=True)
class StrategySpec:
    """A strategy as a value. `options` are what it picks from: radii and step sizes in [0, 1], whole steps, weights.

    `every` is k, the number of the target's steps per step of the strategy. `adv` and `clean` are the coefficients of
    L2 and L3 in the reward; 0 leaves a loss out. `model` is the strategy network. 4 and 4.0 are the same strategy. An
    option set that is empty or names a value twice, or a number out of range, raises a UserError.
    """

    kind: str
    options: tuple[tuple[str, tuple[float, ...]], ...] = ()
    model: str = ""
    every: int = 40
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = math.inf
    adv: float = 2.0
    clean: float = 4.0
    start: str = "drawn"  # the ball that attacks start in: the drawn radius's, or the training's
    lr_falls: bool = False  # lr falls in proportion to the target's
    hardest: float = math.inf  # L1 is cut here
    own_l1: bool = True  # L1 is the method's own loss; False: the cross-entropy of the hard label
    candidates: int = 4
    patience: float = 10 / 120

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.type is float):
            object.__setattr__(self, name, float(getattr(self, name)))
        choose("start of a strategy", self.start, dict.fromkeys(("drawn", "training")))
        numbers = {f.name: (getattr(self, f.name),) for f in fields(self) if f.type in (int, float)}
        for whose, sets in (("the options for", dict(self.options)), ("a strategy's", numbers)):
            for name, values in sets.items():
                if not values or len(set(values)) < len(values):
                    raise UserError(f"{whose} {name} are empty or name one value twice: {values}")
                wanted, fits = _RANGES.get(name, _OTHERS)
                if not all(map(fits, values)):
                    raise UserError(f"{whose} {name} must {wanted}, got {', '.join(map(str, values))}")

    @property
    def sizes(self) -> list[int]:
        """The number of options of each setting, in order: the heads of the policy."""
        return [len(values) for _, values in self.options]


class Target(Protocol):
    """What a strategy sees of the target network's training; `ExtendedTraining` says what each part does."""

    student: nn.Module
    generator: Generator
    epsilon: float

    @property
    def progress(self) -> float: ...
    @property
    def lr_share(self) -> float: ...
    def at_precision(self, net: Net) -> Net: ...
    def craft_under(self, x: Tensor, y: Tensor, settings: Settings) -> tuple[Tensor, Settings]: ...
    def losses(self, student: Net, x: Tensor, x_adv: Tensor, y: Tensor, settings: Settings) -> Tensor: ...
    def after_step(self, *batch: Any, **how: Any) -> nn.Module: ...


class Strategy:
    """The base of all strategies: uniform draws from the options, per image, which nothing changes."""

    state: tuple[str, ...] = ()  # names of the attributes that a continuation needs, between epochs

    def __init__(self, spec: StrategySpec, net: nn.Module | None = None) -> None:
        self.spec, self.net, self.batches = spec, net, 0
        self.counts = {name: torch.zeros(len(values), dtype=torch.long) for name, values in spec.options}
        self.rewards: list[Tensor] = []

    def learn(self, target: Target, x: Tensor, y: Tensor) -> None:
        """Called before every step of the target, with its batch."""

    def logits(self, x: Tensor) -> list[Tensor]:
        """One (N, options) per setting: the policy's for the batch x (N, C, H, W)."""
        return [torch.zeros(len(x), size, device=x.device) for size in self.spec.sizes]

    @torch.no_grad()
    def settings(self, target: Target, x: Tensor) -> Settings:
        """The settings for the batch: a draw per image."""
        return self.take(draw(self.logits(x), target.generator))

    def start(self, target: Target, start: Start) -> Start:
        """Where the attack starts: the method's own start in the ball that was picked, or in the training's."""
        if self.spec.start == "drawn":
            return start
        return lambda x, epsilon, generator: start(x, x.new_tensor(target.epsilon), generator)

    def trained_on(self, target: Target, x: Tensor, x_adv: Tensor) -> Tensor:
        """What the target trains on of the x' that the settings made."""
        return x_adv

    def after_epoch(self, target: Target, score: float) -> None:
        """Called when an epoch is over, with the score that picks the epoch."""

    def due(self) -> bool:
        """Count a batch; whether it is a k-th one."""
        self.batches += 1
        return self.batches % self.spec.every == 0

    def take(self, chosen: list[Tensor]) -> Settings:
        """The options behind the indices (N,), counted."""
        for counts, picked in zip(self.counts.values(), chosen, strict=True):
            counts += picked.bincount(minlength=len(counts)).cpu()
        return self.values(chosen)

    def values(self, chosen: list[Tensor]) -> Settings:
        """The options behind the indices (N,)."""
        heads = zip(self.spec.options, chosen, strict=True)
        return {name: torch.tensor(values, device=picked.device)[picked] for (name, values), picked in heads}

    def report(self) -> dict[str, Any]:
        """What was chosen since the last call, as counts per option, and the mean reward; starts anew."""
        options = {name: [str(float(value)) for value in values] for name, values in self.spec.options}
        chosen = {name: dict(zip(options[name], count.tolist(), strict=True)) for name, count in self.counts.items()}
        reward = float(torch.stack(self.rewards).mean()) if self.rewards else None
        self.counts, self.rewards = {name: torch.zeros_like(count) for name, count in self.counts.items()}, []
        return {"chosen": chosen, "reward": reward}

    def state_dict(self) -> dict[str, Any]:
        """The attributes of `state`, networks and optimisers as their own state."""
        values = ((name, getattr(self, name)) for name in self.state)
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name in self.state:
            own = getattr(self, name)
            if hasattr(own, "load_state_dict"):
                own.load_state_dict(state[name])
            else:
                setattr(self, name, state[name])


def draw(logits: list[Tensor], generator: Generator) -> list[Tensor]:
    """One index (N,) per head, from the categorical of its logits (N, options); UserError if one is not finite."""
    if not all(bool(torch.isfinite(head).all()) for head in logits):
        raise UserError("the strategy network diverged: its logits are not finite; a smaller lr or clip may help")
    return [torch.multinomial(head.softmax(1), 1, generator=generator).squeeze(1) for head in logits]


def log_prob(logits: list[Tensor], chosen: list[Tensor]) -> Tensor:
    """sum_h log p_h(a_h | x) of the factorised policy, (N,); a head with one option adds 0."""
    heads = zip(logits, chosen, strict=True)
    return torch.stack([head.log_softmax(1).gather(1, a[:, None]).squeeze(1) for head, a in heads]).sum(0)
