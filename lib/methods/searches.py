"""Strategies that LAS-AT is compared with: hyper-parameter searches without the image, and a hand-made curriculum.

LAS-AT's Figure 3 names OHL and AdvHP without their settings; params/choices/las_at.yaml says what was decided here.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lib.losses import cross_entropy, reinforce
from lib.methods.las_at import judged
from lib.methods.strategy import Settings, Strategy, StrategySpec, Target, draw, log_prob

WARM_STEPS = 10.0  # CAT's step is the diameter over the image's steps times U(1, 10 / steps)


class SampleAgnostic(Strategy):
    """One categorical per setting, the same for every image; `learn` of the classes below moves it."""

    state: tuple[str, ...] = ("parameters", "optimizer", "batches")

    def __init__(self, spec: StrategySpec, net: None = None) -> None:
        super().__init__(spec, net)
        self.parameters = nn.ParameterList(torch.zeros(size) for size in spec.sizes)
        self.optimizer = torch.optim.SGD(self.parameters, spec.lr, spec.momentum)

    def logits(self, x: Tensor) -> list[Tensor]:
        """The same logits for every image."""
        return [logits.to(x.device).expand(len(x), -1) for logits in self.parameters]

    def reinforced(self, logits: list[Tensor], chosen: list[Tensor], reward: Tensor) -> Tensor:
        """REINFORCE with the rewards brought to mean 0 and spread 1, as both papers have it."""
        self.rewards.append(reward.mean())
        centred = (reward - reward.mean()) / reward.std(correction=0).clamp_min(1e-6)
        return reinforce(log_prob(logits, chosen), centred).mean()


class AdvHP(SampleAgnostic):
    """Adversarial AutoAugment's controller (Zhang et al. 2020): rewarded by the target's loss.

    It moves once per epoch, along the mean of the policy gradients of the epoch's k-th batches.
    """

    summed = 0  # policy gradients of this epoch

    def learn(self, target: Target, x: Tensor, y: Tensor) -> None:
        """On every k-th batch, add the policy gradient of the losses under new draws to the epoch's."""
        if not self.due():
            return
        self.summed += 1
        logits = self.logits(x)
        chosen = draw(logits, target.generator)
        x_adv, settings = target.craft_under(x, y, self.values(chosen))
        target.student.eval()
        with torch.no_grad():
            reward = target.losses(target.student, x, x_adv, y, settings)
        self.reinforced(logits, chosen, reward).backward()

    def after_epoch(self, target: Target, score: float) -> None:
        """One step of the controller."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= self.summed
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.summed = 0


class OHL(SampleAgnostic):
    """Online hyper-parameter learning (Lin et al. 2019) over trajectories of one step.

    Before every k-th batch, `candidates` copies of the target take one step each with one drawn setting for the whole
    batch; the reward is what each then withstands of the judging attack (-CE), and the best one's setting is the one
    the target itself trains with until the next draw, which is what broadcasting the best copy comes to.
    """

    state = (*SampleAgnostic.state, "best")
    best: tuple[int, ...] = ()  # the option of each setting that the target trains with

    def learn(self, target: Target, x: Tensor, y: Tensor) -> None:
        """Try the candidates, move the distribution, keep the best one's setting."""
        if not self.due() and self.best:
            return
        logits = [head.expand(self.spec.candidates, -1) for head in self.logits(x[:1])]
        chosen, rewards = draw(logits, target.generator), []
        for one in zip(*chosen, strict=True):
            x_adv, settings = target.craft_under(x, y, self.values([index.expand(len(x)) for index in one]))
            copy = target.at_precision(target.after_step(x, x_adv, y, settings, weight_decay=True).eval())
            x_hat = judged(copy, x, y, target)
            with torch.no_grad():
                rewards.append(-cross_entropy(copy(x_hat), y).mean())
        reward = torch.stack(rewards)
        self.optimizer.zero_grad()
        self.reinforced(logits, chosen, reward).backward()
        self.optimizer.step()
        self.best = tuple(int(index[reward.argmax()]) for index in chosen)

    def settings(self, target: Target, x: Tensor) -> Settings:
        """The best candidate's setting for every image."""
        return self.take([torch.full((len(x),), index, device=x.device) for index in self.best])


class CAT(Strategy):
    """Curriculum adversarial training (Cai et al. 2018): the batch in k + 1 equal parts attacked with 0 to k steps.

    k grows from 0 to `candidates`, by one when the score has not risen for `patience`, a share of the training. The
    part with n steps has a step of 2 epsilon / n times U(1, 10 / n), drawn per part, and the one with 0 is left clean;
    the last takes what is over of the batch. CAT's restart from the best weights is left out.
    """

    state = ("level", "best", "since")
    level, best, since = 0, -1.0, 0.0  # since: the share of the training at which the score last rose

    def settings(self, target: Target, x: Tensor) -> Settings:
        """Radius, steps and step size of each part of the batch, whose order is random already."""
        each = max(1, len(x) // (self.level + 1))
        steps = (torch.arange(len(x), device=x.device) // each).clamp(max=self.level)
        n = torch.arange(self.level + 1, device=x.device).clamp(min=1)
        u = torch.rand(n.shape, generator=target.generator, device=x.device)
        size = (2 * target.epsilon / n) * (1 + u * (WARM_STEPS / n - 1).clamp(min=0))
        return {"epsilon": target.epsilon * (steps > 0), "steps": steps, "step_size": size[steps]}

    def after_epoch(self, target: Target, score: float) -> None:
        """The next level, once the score stands still."""
        if score > self.best:
            self.best, self.since = score, target.progress
        elif target.progress - self.since >= self.spec.patience and self.level < self.spec.candidates:
            self.level, self.best, self.since = self.level + 1, -1.0, target.progress

    def report(self) -> dict[str, Any]:
        """The level it trains at."""
        return {"level": self.level}
