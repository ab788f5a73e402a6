"""Targeted FAB (Croce & Hein 2020b), L-inf: the boundary to one class after another, as near to the image as it finds.

FAB-T draws no random number, so an image and a target are a run of their own: the batch is refilled from the runs that
wait, in the order of targets. An image whose nearest point so far lies in the ball is broken, and leaves with its runs.
"""

import torch
from torch import Tensor

from lib.attacks.batches import Batch, Net, Setting

OVERSHOOT, BACK, LARGEST_SHARE = 1.05, 0.9, 0.1  # eta, beta and alpha_max


def fab_t(net: Net, batch: Batch, setting: Setting) -> Tensor:
    """x' of FAB-T: the first point in the ball that is misclassified."""
    x, y = batch
    with torch.no_grad():
        ranking = net(x).sort(1).indices
    images = torch.arange(len(x), device=x.device).repeat(setting.targets)
    order = torch.arange(setting.targets, device=x.device).repeat_interleave(len(x))
    target = ranking[images, ranking.shape[1] - 2 - order]
    x_adv, point, asked = x.clone(), x[images], torch.zeros_like(images)
    broken = torch.zeros_like(y, dtype=torch.bool)
    waiting = torch.arange(len(images), device=x.device)
    while len(waiting):
        runs, rest = waiting[: setting.width], waiting[setting.width :]
        image = images[runs]
        stepped = _step(net, point[runs], x[image], y[image], target[runs])
        with torch.no_grad():
            wrong = net(stepped).argmax(1) != y[image]
        near = wrong & ((stepped - x[image]).abs().flatten(1).amax(1) <= setting.epsilon)
        x_adv[image[near]], broken[image[near]] = stepped[near], True
        back = x[image] + (stepped - x[image]) * BACK
        point[runs] = torch.where(wrong.view(-1, *[1] * (x.dim() - 1)), back, stepped)
        asked[runs] += 1
        waiting = torch.cat([runs[asked[runs] < setting.steps], rest])
        if bool(near.any()):
            waiting = waiting[~broken[images[waiting]]]
    return x_adv


def _step(net: Net, point: Tensor, x: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Towards the linearised boundary z_t = z_y, a little beyond it, and a share of the way back to the image."""
    z, each = point.detach().requires_grad_(), torch.arange(len(point), device=point.device)
    with torch.enable_grad():
        logits = net(z)
        ahead = logits[each, target] - logits[each, y]
        (w,) = torch.autograd.grad(ahead.sum(), z)
    w, ahead = w.flatten(1), ahead.detach()
    b = -ahead + (w * point.flatten(1)).sum(1)
    both = torch.cat((point.flatten(1), x.flatten(1)))
    moves = to_hyperplane(both, torch.cat((w, w)), torch.cat((b, b)))
    length = moves.abs().amax(1).clamp(min=1e-8).view(2, -1, *[1] * (x.dim() - 1))
    from_point, from_x = moves.view(2, *x.shape)
    share = (length[0] / (length[0] + length[1])).clamp(0, LARGEST_SHARE)
    return ((point + OVERSHOOT * from_point) * (1 - share) + (x + from_x * OVERSHOOT) * share).clamp(0, 1)


def to_hyperplane(t: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """d with the smallest max|d| such that <w, t + d> = b and t + d in [0, 1], or as near as the box lets it; (n, D).

    Every pixel moves by the same length until it meets its bound, so <w, d> is piecewise linear in the length, with a
    knot per pixel: sorted and summed up, the piece that holds b is found by counting.
    """
    sign = torch.where((w * t).sum(1) >= b, 1.0, -1.0)
    w, b = w * sign[:, None], b * sign
    upper = (w < 0).to(w.dtype)  # the bound that the pixel moves to
    d = (upper - t) * (w != 0)
    room = upper - t * (2 * upper - 1)
    order = room.argsort(1)
    largest_first = order.flip(1)
    slopes = w.gather(1, largest_first)
    reach = (w * d).sum(1)
    at_zero = -slopes * d.gather(1, largest_first)
    slope, offset = slopes.abs().cumsum(1), at_zero.cumsum(1) + reach[:, None]
    lack = b - (w * t).sum(1)
    value = offset - slope * room.gather(1, largest_first)
    first = lack > offset[:, -1] - slope[:, -1] * room.gather(1, order[:, :1]).squeeze(1)
    piece = ((lack[:, None] > value)[:, :-1].sum(1) - 1).clamp(min=0)
    piece = torch.where(first, piece.new_tensor(w.shape[1] - 1), piece)[:, None]
    length = ((lack[:, None] - offset.gather(1, piece)) / -slope.gather(1, piece)).clamp(min=0)
    within = torch.where(first[:, None], (2 * upper - 1) * length, d.clamp(-length, length))
    moved = torch.where((first | (lack > reach))[:, None], within, d)
    return moved * (w != 0)
