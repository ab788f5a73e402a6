"""What a batch is attacked with, and batches attacked one after another or in several processes."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lib.attacks.processes import pool
from lib.errors import UserError

Net = Callable[[Tensor], Tensor]
Answer = tuple[Tensor, Tensor]  # which images of a batch are broken (n,) bool, and their x' (k, C, H, W)


@dataclass(frozen=True)
class Setting:
    """What every batch of a stage is attacked with: epsilon in [0, 1]; `targets` classes in APGD-T and FAB-T.

    Each batch is seeded anew, as the authors do it. `width` is how many inputs a pass through the network may have.
    """

    epsilon: float
    seed: int
    targets: int
    width: int
    steps: int = 100
    queries: int = 5000


class Batch(NamedTuple):
    """Images (n, C, H, W) that the network has right, and their labels (n,)."""

    x: Tensor
    y: Tensor


Stage = Callable[[Net, Batch, Setting], Tensor]  # -> x' (n, C, H, W), x itself where the stage found nothing


class Judged(NamedTuple):
    """The network that attacks are made on, say a folded one, and the one that says what is right."""

    net: Net
    judge: Net


class Job(NamedTuple):
    """A stage's attack on a batch."""

    stage: Stage
    batch: Batch
    setting: Setting


def broken(judged: Judged, job: Job) -> Answer:
    """Which images the stage breaks, and their x'; what counts is the judge's answer.

    An x' that fools the folded network and not the network itself has been made of rounding; that is so rare that the
    batch is simply attacked again, on the network itself.
    """
    net, judge = judged
    x_adv = job.stage(net, job.batch, job.setting)
    moved = (x_adv != job.batch.x).flatten(1).any(1)
    wrong = moved & ~right(judge, *Batch(x_adv, job.batch.y), len(x_adv))
    if net is not judge and bool((moved & ~wrong).any()):
        return broken(Judged(judge, judge), job)
    return wrong, x_adv[wrong]


@torch.no_grad()
def right(net: Net, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """argmax net(x) = y, (N,) bool."""
    return torch.cat([net(images).argmax(1) for images in x.split(batch_size)]) == y


Attacks = Callable[[Mapping[int, Job]], Iterator[tuple[int, Answer]]]


@contextmanager
def attacking(judged: Judged, workers: int) -> Iterator[Attacks]:
    """`broken` of numbered jobs, as each is done: here, or in `workers` processes of one thread each.

    Raises:
        UserError: the network cannot be sent to other processes, or one of them died.
    """
    if workers == 1:
        yield lambda jobs: ((number, broken(judged, job)) for number, job in jobs.items())
        return
    try:
        sent = pickle.dumps(judged)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(f"this network cannot be sent to other processes ({error}); give workers=1") from error
    with pool(workers, _receive, sent) as executor:

        def attack(jobs: Mapping[int, Job]) -> Iterator[tuple[int, Answer]]:
            running = {executor.submit(_work, pickle.dumps(job)): number for number, job in jobs.items()}
            for done in as_completed(running):
                try:
                    yield running[done], pickle.loads(done.result())
                except BrokenProcessPool as error:
                    raise UserError("a worker process died (out of memory?): call again, with fewer workers") from error

        yield attack


_HERE: list[Judged] = []  # what this worker process was begun with


def _receive(sent: bytes) -> None:
    _HERE.append(pickle.loads(sent))


def _work(job: bytes) -> bytes:
    return pickle.dumps(broken(_HERE[0], pickle.loads(job)))
