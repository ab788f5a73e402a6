"""Square (Andriushchenko et al. 2020), L-inf: random squares of +-2 epsilon, kept where the margin falls.

All images of a batch are offered the same squares, so the whole list is drawn first. A query is not asked where its
answer is known: the square leaves the image as it is, or was turned down since the image last changed. An image that
turns squares down for long is asked for several at once, as if it would turn down all of them; the first that it takes
counts, and those behind it are offered again.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lib.attacks.batches import Batch, Net, Setting

FIRST = 0.8  # the share of the pixels that a square covers at first
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
LOOK_AHEAD = 512  # queries that are looked through for some that are worth asking
PATIENCE = 4  # squares turned down in a row for every further one that is asked at once


@dataclass(frozen=True)
class Squares:
    """The squares of all queries (Q,): rows from `top`, columns from `left`, `size` of each; `shift` (Q, C)."""

    top: Tensor
    left: Tensor
    size: Tensor
    shift: Tensor
    before: Tensor  # the query that last offered the same square, -1 for none

    def on(self, x: Tensor, query: Tensor) -> Tensor:
        """What the queries (n,) add to images like x (n, C, H, W)."""
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
        top, left, size = (value[query, None] for value in (self.top, self.left, self.size))
        inside = ((rows >= top) & (rows < top + size))[:, :, None] & ((columns >= left) & (columns < left + size))[
            :, None
        ]
        return inside[:, None] * self.shift[query][:, :, None, None]


def square(net: Net, batch: Batch, setting: Setting) -> Tensor:
    """x' of Square: where an image is first misclassified."""
    x, y = batch
    generator = Generator().manual_seed(setting.seed)
    stripes = (2 * torch.rand((len(x), x.shape[1], 1, x.shape[3]), generator=generator) - 1).sign().to(x.device)
    squares = drawn(x, setting, generator)
    low, high = x - setting.epsilon, x + setting.epsilon
    best = (x + setting.epsilon * stripes).clamp(0, 1)
    margin = _margin(net, best, y)
    changed = torch.full_like(y, -1)  # the query that an image last took
    query, left = torch.zeros_like(y), (margin > 0).nonzero().flatten()
    while len(left):
        at_once = (1 + (query[left] - changed[left]) // PATIENCE).clamp(max=max(1, setting.width // len(left)))
        image, asked, query[left] = _worth_asking(squares, query[left], changed[left], at_once)
        image = left[image]
        offered = best[image] + squares.on(x[image], asked)
        offered = torch.minimum(torch.maximum(offered, low[image]), high[image]).clamp(0, 1)
        new = (offered != best[image]).flatten(1).any(1)
        image, asked, offered = image[new], asked[new], offered[new]
        if len(image):
            value = _margin(net, offered, y[image])
            taken = ((value < margin[image]) | (value <= 0)).nonzero().flatten()
            taken = taken[_first_of_each(image[taken])]
            at = image[taken]
            best[at], margin[at], changed[at], query[at] = offered[taken], value[taken], asked[taken], asked[taken] + 1
        left = left[(margin[left] > 0) & (query[left] < setting.queries)]
    return torch.where((margin > 0).view(-1, 1, 1, 1), x, best)


def drawn(x: Tensor, setting: Setting, generator: Generator) -> Squares:
    """The squares of every query, drawn on the CPU in the authors' order: row, column, sign of each channel."""
    channels, height, width = x.shape[1:]
    numbers = torch.rand((setting.queries, 2 + channels), generator=generator)
    size = torch.tensor([_side(i, height, width) for i in range(setting.queries)])
    top, left = ((numbers[:, i] * (side - size)).long() for i, side in enumerate((height, width)))
    sign = (2 * numbers[:, 2:] - 1).sign()
    last: dict[tuple[int, ...], int] = {}
    before = []
    for i, key in enumerate(map(tuple, torch.column_stack((size, top, left, sign.long())).tolist())):
        before.append(last.get(key, -1))
        last[key] = i
    parts = (top, left, size, 2.0 * setting.epsilon * sign, torch.tensor(before))
    return Squares(*(part.to(x.device) for part in parts))


def _side(query: int, height: int, width: int) -> int:
    """The side of the query's square: its share of the pixels is halved at fixed queries."""
    share = FIRST / 2 ** sum(query > at for at in HALVED_AT)
    return min(max(round((share * height * width) ** 0.5), 1), height, width)


def _worth_asking(squares: Squares, query: Tensor, changed: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(which image (m,), which query (m,), where each image goes on (n,)): the next `count` of each image, in order.

    A square that was offered since the image last changed was turned down, and is left out.
    """
    ahead = query[:, None] + torch.arange(LOOK_AHEAD, device=query.device)
    there = ahead < len(squares.size)
    asked = there & (squares.before[ahead.clamp(max=len(squares.size) - 1)] <= changed[:, None])
    number = asked.cumsum(1)
    asked &= number <= count[:, None]
    image, offset = asked.nonzero(as_tuple=True)
    end = (number < count[:, None]).sum(1) + 1  # behind the last that is asked, or behind all that were looked at
    return image, ahead[image, offset], query + end.clamp(max=LOOK_AHEAD)


@torch.no_grad()
def _margin(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j, (n,)."""
    logits, own = net(x), y[:, None]
    return logits.gather(1, own).squeeze(1) - logits.scatter(1, own, float("-inf")).amax(1)


def _first_of_each(image: Tensor) -> Tensor:
    """Where each image comes first in an ascending list."""
    return torch.cat([torch.ones_like(image[:1], dtype=torch.bool), image[1:] != image[:-1]]).nonzero().flatten()
