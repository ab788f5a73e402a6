"""What a run will cost, from a few of its own steps on this machine: seconds, and floating-point operations."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.attacks import input_gradient
from lib.data import to_float
from lib.evaluate import Column
from lib.losses import cross_entropy
from lib.runs import Place, start
from lib.spec import RunSpec

PROBE_SECONDS = 0.2  # a step on two images that takes longer is not repeated on a whole batch
AUTOATTACK_PASSES = {"apgd-ce": 100, "apgd-t": 900, "fab-t": 1800, "square": 2500}  # per image, at most


@dataclass(frozen=True)
class Cost:
    """Seconds here with one worker, and FLOPs (a multiply and an add are two)."""

    seconds: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.flops + other.flops)

    def __mul__(self, times: float) -> "Cost":
        return Cost(times * self.seconds, times * self.flops)


def estimate(spec: RunSpec, place: Place, columns: tuple[Column, ...], train: bool, flops: bool) -> Cost:
    """The cost of a run's evaluation, and of its training where `train`; extrapolated from a few small steps.

    A training step is timed with one and with three attack steps, on a whole batch where that is quick and on two
    images where it is not; its cost is taken as linear in both. FLOPs are counted only where asked for.
    """
    dataset = place.dataset(spec.data)
    test = len(dataset.test.labels)
    one, three = (start(replace(spec, attack_steps=steps), place, fresh_teacher=True) for steps in (1, 3))
    x, y = to_float(one.data.images[:2]), one.data.labels[:2]
    if _measure(lambda: one.train_step(x, y), flops=False).seconds < PROBE_SECONDS:
        x, y = to_float(one.data.images[: spec.schedule.batch_size]), one.data.labels[: spec.schedule.batch_size]
    net = one.student.eval()
    gradient = _measure(lambda: input_gradient(lambda z: cross_entropy(net(z), y), x), flops) * (1 / len(y))
    total = gradient * sum(_passes(column) * (column.images or test) for column in columns)
    if train:
        short, long = (_measure(lambda t=t: t.train_step(x, y), flops) for t in (one, three))  # type: ignore[misc]
        attack_step = Cost(max(long.seconds - short.seconds, 0.0) / 2, (long.flops - short.flops) / 2)
        step = (short + attack_step * (spec.attack_steps - 1)) * (spec.schedule.batch_size / len(y))
        selection = gradient * (10 * spec.schedule.epochs * (spec.data.held_out or test))
        total = total + step * one.stop + selection
    return total


def _measure(work: Callable[[], object], flops: bool) -> Cost:
    """The faster of two goes, and the FLOPs of a third."""
    seconds = min(_seconds(work) for _ in range(2))
    if not flops:
        return Cost(seconds)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        work()
    return Cost(seconds, counter.get_total_flops())


class _NoModules(AbstractContextManager[None]):
    """In place of the counter's module tracker, whose hooks fail under torch.autograd.grad (2.11 to 2.15)."""

    parents = frozenset({"Global"})

    def __exit__(self, *_: object) -> None:
        return None


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _passes(column: Column) -> float:
    """Forward-backwards per image of an attack, at most."""
    if column.attack == "autoattack":
        return sum(AUTOATTACK_PASSES[stage] for stage in column.stages)
    return {"clean": 0.5, "fgsm": 1}.get(column.attack, column.steps)
