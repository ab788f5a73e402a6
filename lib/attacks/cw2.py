"""Carlini & Wagner's L2 attack with DGAD's settings: no radius, a constant that is never searched (dgad: "CW2")."""

import torch
from torch import Tensor

from lib.attacks.pgd import Net
from lib.losses import margin

SHRINK = 0.999999  # keeps arctanh finite at pixels of 0 and 1, so that these can move too


def cw2(
    net: Net, x: Tensor, y: Tensor, *, c: float = 0.1, confidence: float = 0.01, steps: int = 1000, lr: float = 0.01
) -> Tensor:
    """min_w ||x'(w) - x||_2^2 + c max(0, z_y - max_{j != y} z_j + confidence), x'(w) = (1 + tanh w) / 2, by Adam.

    Without a radius, and with c fixed (no binary search), it measures c as much as the model. An image is broken when
    another logit exceeds z_y + confidence; its nearest broken iterate is returned, and the image itself where there is
    none. Every steps/10 iterations the attack stops if the loss of the whole batch did not fall, so the result depends
    slightly on the batch. Shapes: x (N, C, H, W) in [0, 1], y (N,). Source: Carlini & Wagner 2017.
    """
    centre = torch.atanh(SHRINK * (2 * x - 1))
    anchor = (1 + centre.tanh()) / 2  # distances are measured to the image as tanh space can show it
    shift = torch.zeros_like(x, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=lr)
    best, best_distance = x.clone(), torch.full_like(x[:, 0, 0, 0], float("inf"))
    previous = float("inf")
    for t in range(steps):
        with torch.enable_grad():
            x_adv = (1 + (centre + shift).tanh()) / 2
            distance = (x_adv - anchor).square().flatten(1).sum(1)
            lead = margin(net(x_adv), y)
            loss = (distance + c * (confidence - lead).clamp_min(0)).sum()
        (shift.grad,) = torch.autograd.grad(loss, shift)
        if t % max(steps // 10, 1) == 0:
            if loss.item() > 0.999999 * previous:
                break
            previous = loss.item()
        closer = (lead > confidence) & (distance < best_distance)
        best = torch.where(closer[:, None, None, None], x_adv.detach(), best)
        best_distance = torch.where(closer, distance.detach(), best_distance)
        optimizer.step()
    return best
