"""The Jacobian-based saliency-map attack with DGAD's settings: few pixels, towards a target class (dgad: "JSMA")."""

import torch
from torch import Generator, Tensor

from lib.attacks.pgd import Net
from lib.errors import UserError

PAIRS = 2**22  # of pixels that are scored at once: 16 MiB for each of a few float32 tensors


def jsma(net: Net, x: Tensor, target: Tensor, *, theta: float = 0.1, gamma: float = 0.05) -> Tensor:
    """x'_p, x'_q <- min(x' + theta, 1) for (p, q) = argmax -alpha beta over the pairs with alpha > 0 and beta < 0.

    alpha_pq = sum_{i in {p, q}} dz_t/dx_i and beta_pq = sum_{i in {p, q}} sum_{j != t} dz_j/dx_i, z the logits (not the
    softmax), t the target. A pixel is one value of one channel, raised once at most: it leaves the search. An image
    stops where argmax z = t, where no pair is left, or after int(gamma C H W / 2) pairs.
    Shapes: x (N, C, H, W) in [0, 1], target (N,); returns x' in [0, 1], detached. Source: Papernot et al. 2016,
    Algorithms 1 and 3, with the settings and the search domain of DGAD's evaluation library (advertorch; a pixel
    already at 1 is searched there too, and stays as it is when chosen).
    """
    if not (theta > 0 and gamma >= 0):
        raise UserError(f"JSMA wants theta > 0 and gamma >= 0, got {theta}, {gamma}")
    x_adv = x.detach().clone()
    live = torch.arange(len(x), device=x.device)  # the images that have not stopped
    domain = torch.ones_like(x_adv, dtype=torch.bool).flatten(1)  # the pixels that were not raised yet
    for _ in range(int(gamma * x[:1].numel() / 2)):
        if not len(live):
            break
        logits, own, others = _derivatives(net, x_adv[live], target[live])
        pair, found = _best_pair(own, -others, domain[live])
        going = found & (logits.argmax(1) != target[live])
        live = live[going]
        domain[live] = domain[live].scatter(1, pair[going], False)
        step = torch.zeros_like(own[going]).scatter(1, pair[going], theta)
        x_adv[live] = (x_adv[live] + step.view_as(x_adv[live])).clamp(max=1)
    return x_adv


def published_target(y: Tensor) -> Tensor:
    """The true label, t = y, as DGAD's evaluation passes it: the numbers of its Table 7 come from no attack.

    Images that the network has right stay as they are, bit for bit; others are pushed towards the right class. On the
    network itself accuracy can only rise, and all JSMA entries of DGAD's Table 7 lie above the clean accuracy.
    """
    return y


def wrong_target(y: Tensor, classes: int, generator: Generator) -> Tensor:
    """A wrong class, t ~ U({0, ..., classes - 1} without y), drawn anew for every image (N,): JSMA as an attack."""
    return (y + torch.randint(1, classes, y.shape, generator=generator, device=y.device)) % classes


def _derivatives(net: Net, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z, dz_t/dx, d sum_{j != t} z_j/dx), shaped (N, classes), (N, D) and (N, D): beta wants no other gradient."""
    with torch.enable_grad():
        logits = net(x.requires_grad_())
        own = logits.gather(1, target[:, None]).sum()
        (toward,) = torch.autograd.grad(own, x, retain_graph=True)
        (away,) = torch.autograd.grad(logits.sum() - own, x)
    return logits.detach(), toward.flatten(1), away.flatten(1)


def _best_pair(a: Tensor, b: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
    """argmax (a_p + a_q)(b_p + b_q) over p != q of the domain (N, D) with both sums positive; (N, 2), (N,) found."""
    a, b = (values.masked_fill(~domain, float("-inf")) for values in (a, b))
    rows, parts = max(PAIRS // a.numel(), 1), []
    for start in range(0, a.shape[1], rows):
        alpha, minus_beta = (values[:, start : start + rows, None] + values[:, None] for values in (a, b))
        score = (alpha * minus_beta).masked_fill_((alpha <= 0) | (minus_beta <= 0), float("-inf"))
        score.diagonal(start, 1, 2).fill_(float("-inf"))  # a pixel with itself
        parts.append(score.max(2))
    best, partner = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
    score, first = best.max(1, keepdim=True)
    return torch.cat([first, partner.gather(1, first)], 1), score.squeeze(1) > float("-inf")
