"""The Jacobian-based saliency-map attack with DGAD's settings: few pixels, towards a target class (dgad: "JSMA")."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lib.attacks.pgd import Net
from lib.errors import UserError

PAIRS = 2**24  # of pixels that are scored at once: 64 MiB for each of a few float32 tensors


def jsma(
    net: Net,
    x: Tensor,
    target: Tensor,
    *,
    theta: float = 0.1,
    gamma: float = 0.05,
) -> Tensor:
    """x'_p, x'_q <- min(x' + theta, 1) for (p, q) = argmax -alpha beta over the pairs with alpha > 0 and beta < 0.

    alpha_pq = sum_{i in {p, q}} dz_t/dx_i and beta_pq = sum_{i in {p, q}} sum_{j != t} dz_j/dx_i, z the logits (not the
    softmax), t the target. A pixel is one value of one channel, raised once at most: it leaves the search. An image
    stops where argmax z = t, where no pair is left, or after int(gamma C H W / 2) pairs. Only the sum over the other
    classes enters beta, so two gradients per pair do, whatever the number of classes; the best pair is exact
    (`_best_pair`).
    Shapes: x (N, C, H, W) in [0, 1], target (N,); theta in the unit of x, gamma a share of the C H W pixel values;
    returns x' in [0, 1], detached. No parameter's `.grad` is touched. Networks' modes are the caller's. Source:
    Papernot et al. 2016, Algorithms 1 and 3, with the settings and the search domain of DGAD's evaluation library
    (advertorch; a pixel already at 1 is searched there too, and stays as it is when chosen).

    Raises:
        UserError: theta is not positive, or gamma is negative.
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

    Images that the network classifies correctly have reached this target and stay as they are, bit for bit; the others
    are pushed towards the right class. On the network itself accuracy can only rise, and all JSMA entries of DGAD's
    Table 7 lie above the clean accuracy. Shapes: y (N,); returns (N,).
    """
    return y


def wrong_target(y: Tensor, classes: int, generator: Generator) -> Tensor:
    """A wrong class, t ~ U({0, ..., classes - 1} without y), drawn anew for every image: JSMA as an attack.

    Shapes: y (N,); returns (N,). The generator is on y's device.

    Raises:
        UserError: there is no wrong class.
    """
    if classes < 2:
        raise UserError(f"a wrong target wants at least 2 classes, got {classes}")
    return (y + torch.randint(1, classes, y.shape, generator=generator, device=y.device)) % classes


def _derivatives(net: Net, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z, dz_t/dx, d sum_{j != t} z_j/dx), shaped (N, classes), (N, D) and (N, D); by two backward passes."""
    x = x.requires_grad_()
    with torch.enable_grad():
        logits = net(x)
        own = logits.gather(1, target[:, None]).sum()
        (toward,) = torch.autograd.grad(own, x, retain_graph=True)
        (away,) = torch.autograd.grad(logits.sum() - own, x)
    return logits.detach(), toward.flatten(1), away.flatten(1)


def _best_pair(a: Tensor, b: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
    """argmax (a_p + a_q)(b_p + b_q) over p < q of the domain with both sums positive, and whether there is one.

    Both factors grow with a and b, so a pixel with two others at least as large in both never helps: one of the two can
    take its place beside any partner. All pairs of the pixels that are left are scored, PAIRS at a time.
    Shapes: a, b, domain (N, D); returns (N, 2) and (N,), the pair being meaningless where there is none.
    """
    a, b = (values.masked_fill(~domain, float("-inf")) for values in (a, b))
    index = _undominated(a, b)
    p, q = torch.triu_indices(index.shape[1], index.shape[1], 1, device=a.device)
    best = []
    for part in torch.stack([a.gather(1, index), b.gather(1, index)]).split(max(PAIRS // len(p), 1), 1):
        alpha, minus_beta = part[..., p] + part[..., q]
        score = (alpha * minus_beta).masked_fill((alpha <= 0) | (minus_beta <= 0), float("-inf"))
        best.append(score.max(1))
    score, where = (torch.cat(values) for values in zip(*best, strict=True))
    return index.gather(1, torch.stack([p[where], q[where]], 1)), score > float("-inf")


def _undominated(a: Tensor, b: Tensor) -> Tensor:
    """The pixels with fewer than two others at least as large in both a and b: indices (N, K), K >= 2.

    Of pixels equal in both the first two stay. K is the largest number in the batch; rows with fewer are filled up with
    other pixels. In the order of falling a, a pixel stays if b exceeds the second largest b before it.
    """
    order = a.argsort(dim=1, descending=True, stable=True)
    b = b.gather(1, order)
    stays = b > _before(torch.minimum(b, _before(b)))
    return order.gather(1, (~stays).byte().argsort(dim=1, stable=True)[:, : max(int(stays.sum(1).max()), 2)])


def _before(values: Tensor) -> Tensor:
    """max_{j < i} values_j along the second axis, -inf for the first."""
    return F.pad(values.cummax(1).values[:, :-1], (1, 0), value=float("-inf"))
