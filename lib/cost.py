"""What a run will cost, from a few of its own steps on this machine: seconds, and floating-point operations."""

import time
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.attacks import input_gradient
from lib.evaluate import Column
from lib.losses import cross_entropy
from lib.runs import Place, start
from lib.spec import RunSpec
from lib.train import Training

PROBE_SECONDS = 0.2  # a step on two images that takes longer is not repeated on a whole batch
AUTOATTACK_PASSES = {"apgd-ce": 100, "apgd-t": 900, "fab-t": 1800, "square": 2500}  # per image, at most


@dataclass(frozen=True)
class Cost:
    """A run's cost: seconds here, one worker, and FLOPs (attack and training step; multiply and add count as two)."""

    seconds: float
    flops: float


def estimate(spec: RunSpec, place: Place, columns: tuple[Column, ...], train: bool, count_flops: bool) -> Cost:
    """Training (unless `train` is False) and evaluation of `spec`, extrapolated from steps with 1 and 3 attack steps."""
    few = start(replace(spec, attack_steps=1), place, fresh_teacher=True)
    more = start(replace(spec, attack_steps=3), place, fresh_teacher=True)
    y = few.data.labels
    size = 2 if _step_seconds(few, 2) > PROBE_SECONDS else min(spec.schedule.batch_size, len(y))
    images = spec.schedule.batch_size / size  # the probed batch's share of a real one, inverted
    per_image, per_image_flops = _gradient_cost(few, size, count_flops)
    selection = spec.data.held_out or spec.data.test_images or len(place.dataset(spec.data).test.labels)
    test = spec.data.test_images or len(place.dataset(spec.data).test.labels)
    passes = sum(_passes(column) * (column.images or test) for column in columns)
    seconds, flops = passes * per_image, passes * per_image_flops
    if train:
        one, three = (min(_step_seconds(t, size) for _ in range(2)) for t in (few, more))
        step = one + max(three - one, 0.0) / 2 * (spec.attack_steps - 1)
        checks = spec.schedule.epochs * selection * 10
        seconds += images * step * few.stop + checks * per_image
        if count_flops:
            one_f, three_f = (_step_flops(t, size) for t in (few, more))
            flops += images * (one_f + (three_f - one_f) / 2 * (spec.attack_steps - 1)) * few.stop
            flops += checks * per_image_flops
    return Cost(seconds, flops)


def _step_seconds(training: Training, size: int) -> float:
    begun = time.perf_counter()
    _step(training, size)
    return time.perf_counter() - begun


def _step(training: Training, size: int) -> None:
    from lib.data import to_float

    training.train_step(to_float(training.data.images[:size]), training.data.labels[:size])
    if training.data.images.is_cuda:
        torch.cuda.synchronize()


def _step_flops(training: Training, size: int) -> float:
    with FlopCounterMode(display=False) as counter:
        _step(training, size)
    return counter.get_total_flops()


def _gradient_cost(training: Training, size: int, count_flops: bool) -> tuple[float, float]:
    """Seconds and FLOPs of one input gradient of the student, per image."""
    from lib.data import to_float

    x, y = to_float(training.data.images[:size]), training.data.labels[:size]
    net = training.student.eval()

    def gradient() -> None:
        input_gradient(lambda z: cross_entropy(net(z), y), x)

    gradient()
    begun = time.perf_counter()
    gradient()
    seconds = (time.perf_counter() - begun) / size
    if not count_flops:
        return seconds, 0.0
    with FlopCounterMode(display=False) as counter:
        gradient()
    return seconds, counter.get_total_flops() / size


def _passes(column: Column) -> float:
    """Forward-backwards per image of an attack, at most."""
    if column.attack == "autoattack":
        return sum(AUTOATTACK_PASSES[stage] for stage in column.stages)
    return {"clean": 0.5, "fgsm": 1}.get(column.attack, column.steps)
