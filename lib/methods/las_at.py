"""LAS-AT's strategy network (Jia et al. 2022): it picks each image's attack and learns by REINFORCE what pays."""

import math

import torch
from torch import Tensor, nn

from lib.attacks.pgd import PerImage, input_gradient, pgd, project, uniform_in_image
from lib.losses import cross_entropy, reinforce, smoothed_cross_entropy
from lib.methods.core import Net, Recorder
from lib.methods.strategy import Settings, Strategy, StrategySpec, Target, draw, log_prob

JUDGING_STEPS = 10
RESTARTS = 2  # of the released code's judging attack


class Frozen(Strategy):
    """A strategy network that stays at its random start: the control for everything that learning adds."""

    net: nn.Module
    state: tuple[str, ...] = ("net",)

    def logits(self, x: Tensor) -> list[Tensor]:
        """One (N, options) per setting; the heads are the parts of one linear layer."""
        return list(self.net(x).split(self.spec.sizes, dim=1))

    def settings(self, target: Target, x: Tensor) -> Settings:
        """A draw from p(a | x) per image, the strategy network in eval mode."""
        self.net.eval()
        return super().settings(target, x)


class Learned(Frozen):
    """Every k-th batch: theta <- theta + lr mean_i r_i grad log p(a_i | x_i), r_i = L1 + alpha L2 + beta L3 (eq. 12).

    L1 is the method's loss of x_adv, what the attack gains now; L2 = -CE(f_w'(x'), y) and L3 = -CE(f_w'(x), y) are
    what the target w' after one step on x_adv withstands and still knows.
    """

    state = ("net", "optimizer", "batches")

    def __init__(self, spec: StrategySpec, net: nn.Module) -> None:
        super().__init__(spec, net)
        self.optimizer = torch.optim.SGD(net.parameters(), spec.lr, spec.momentum, weight_decay=spec.weight_decay)

    def learn(self, target: Target, x: Tensor, y: Tensor) -> None:
        """One step of the strategy network on this batch, if it is a k-th one."""
        if not self.due():
            return
        self.net.train()
        logits = self.logits(x)
        chosen = draw(logits, target.generator)
        reward = self.reward(target, x, y, self.values(chosen))
        self.rewards.append(reward.mean())
        self.optimizer.zero_grad(set_to_none=True)
        reinforce(log_prob(logits, chosen), reward).mean().backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.spec.clip)
        if self.spec.lr_falls:
            self.optimizer.param_groups[0]["lr"] = self.spec.lr * target.lr_share
        self.optimizer.step()

    @torch.no_grad()
    def reward(self, target: Target, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
        """r_i (N,): L1 + alpha L2 + beta L3 of each image under its settings."""
        x_adv, settings = target.craft_under(x, y, settings)
        target.student.eval()
        reward = self.hardness(target, x, x_adv, y, settings).clamp(max=self.spec.hardest)
        if not self.spec.adv and not self.spec.clean:
            return reward
        copy = target.at_precision(target.after_step(x, x_adv, y, settings, weight_decay=False).eval())
        if self.spec.adv:
            reward = reward - self.spec.adv * cross_entropy(copy(judged(copy, x, y, target)), y)
        return reward - self.spec.clean * cross_entropy(copy(x), y)

    def hardness(self, target: Target, x: Tensor, x_adv: Tensor, y: Tensor, settings: Settings) -> Tensor:
        """L1 (N,) of the student as it stands."""
        if self.spec.own_l1:
            return target.losses(target.student, x, x_adv, y, settings)
        return cross_entropy(target.at_precision(target.student)(x_adv), y)


class LearnedAsReleased(Learned):
    """The authors' code: one reward for the whole batch, L2 and L3 accuracies in [0, 1], L1 cut, no baseline.

    The copy's step has weight decay; its judging attack runs twice, the copy in train mode, and leaves broken images.
    Where L1 is the method's own loss (LAS-TRADES), the target is in train mode for it: its batch-norm statistics move.
    """

    stops = True  # the judging attack leaves broken images
    true_share: float | None = None  # of the smoothed labels that the copy learns from; None: the method's own loss

    @torch.no_grad()
    def reward(self, target: Target, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
        """r (N,), the same for every image: min(L1, cut) + alpha acc(x') + beta acc(x)."""
        x_adv, settings = target.craft_under(x, y, settings)
        target.student.train(self.spec.own_l1)
        reward = self.hardness(target, x, x_adv, y, settings).mean().clamp(max=self.spec.hardest)
        if self.spec.adv or self.spec.clean:
            share = self.true_share
            loss = None if share is None else lambda net: smoothed_cross_entropy(net(x_adv), y, share)
            copy = target.after_step(x, x_adv, y, settings, weight_decay=True, loss=loss).train()
            net = target.at_precision(copy)
            x_hat = judged_as_released(net, x, y, target, self.stops)
            copy.eval()
            robust, accurate = ((net(images).argmax(1) == y).float().mean() for images in (x_hat, x))
            reward = reward + self.spec.adv * robust + self.spec.clean * accurate
        return reward.expand(len(x))


class LearnedAWPAsReleased(LearnedAsReleased):
    """As LAS-AWP's scripts have it: radii above the training's own only change the path, x' is cut back to its ball.

    That holds for what the target trains on, not for the reward. The copy learns from smoothed labels, which the target
    does not, and its judging attack goes on with broken images.
    """

    stops, true_share = False, 0.7

    def trained_on(self, target: Target, x: Tensor, x_adv: Tensor) -> Tensor:
        """x' in the ball of the training's radius."""
        return project(x_adv, x, target.epsilon)


def judged(net: Net, x: Tensor, y: Tensor, target: Target) -> Tensor:
    """PGD-10 on the network as it stands, at the training's radius, a quarter of it a step, from a uniform start."""
    objective, epsilon = PerImage(lambda z, y: cross_entropy(net(z), y), (y,)), target.epsilon
    return pgd(objective, x, epsilon=epsilon, step_size=epsilon / 4, steps=JUDGING_STEPS, generator=target.generator)


def judged_as_released(net: Net, x: Tensor, y: Tensor, target: Target, stops: bool) -> Tensor:
    """The same twice, the larger cross-entropy of each image kept; `stops`: only images that are right now move.

    In train mode the others of a batch decide too, so an image that was wrong may be right, and move, again. With
    `stops` a try ends where no image is right: its first forward and the one that judges it are then all it makes.
    """
    best, highest, step_size = x, torch.full_like(x[:, 0, 0, 0], -math.inf), target.epsilon / 4
    recorder = Recorder(net)
    for _ in range(RESTARTS):
        x_hat = uniform_in_image(x, x.new_tensor(target.epsilon), target.generator)
        for _ in range(JUDGING_STEPS):
            gradient = input_gradient(lambda z: cross_entropy(recorder(z), y), x_hat)
            _, logits = recorder.outputs.pop()
            moving = (logits.argmax(1) == y) | (not stops)
            if not moving.any():
                break
            x_hat = project(x_hat + moving[:, None, None, None] * step_size * gradient.sign(), x, target.epsilon)
        loss = cross_entropy(net(x_hat), y)
        best = torch.where((loss >= highest)[:, None, None, None], x_hat, best)
        highest = torch.maximum(loss, highest)
    return best
