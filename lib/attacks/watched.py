"""A network whose input gradients are watched: an attack that has none to follow leaves an image where it is."""

import torch
from torch import Tensor

from lib.attacks.pgd import Net


class Watched:
    """`net` as an attack on the images x (N, C, H, W) calls it; `blind` (N,) bool are those it could not follow.

    That is where a gradient of the input is not finite at some iterate, or cannot be had at all (under no_grad, or of a
    detached output). It is then taken as zero, so that every attack comes to its end. An attack may call the network
    with some of the images: they are then the nearest ones.
    """

    def __init__(self, net: Net, x: Tensor) -> None:
        self.net, self.x, self.blind = net, x, torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def __call__(self, z: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and z.requires_grad):
            return self.net(z)
        at, z = z.detach(), z.view_as(z)
        z.register_hook(lambda gradient: self._finite(at, gradient))
        logits = self.net(z)
        if logits.requires_grad:
            return logits
        self._mark(at, torch.ones(len(at), dtype=torch.bool, device=at.device))
        return logits.clone() + 0 * z.flatten(1).sum(1, keepdim=True)

    def _finite(self, at: Tensor, gradient: Tensor) -> Tensor:
        broken = ~gradient.isfinite().flatten(1).all(1)
        if not bool(broken.any()):
            return gradient
        self._mark(at, broken)
        return torch.where(gradient.isfinite(), gradient, 0)

    def _mark(self, at: Tensor, broken: Tensor) -> None:
        if len(at) == len(self.blind):
            self.blind |= broken
        else:  # equal images, between which nothing tells, are all marked
            distance = torch.cdist(at[broken].flatten(1), self.x.flatten(1), p=torch.inf)
            self.blind |= (distance <= distance.amin(1, keepdim=True)).any(0)
