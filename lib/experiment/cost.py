"""The expected cost of a job, `seconds` on this machine with one worker and `flops` (a multiply and an add are two)."""

import json
import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeAlias

import pandas as pd
from torch import Tensor, ops
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lib.attacks.autoattack import PASSES as STAGE_PASSES
from lib.attacks.pgd import input_gradient
from lib.attacks.stopping import UntilConverged, UntilConvergedAsReleased, UntilGap, UntilWrong
from lib.data import Split, to_float
from lib.evaluate import AttackSpec
from lib.experiment.jobs import Check, Job
from lib.experiment.networks import Workspace, fresh_network, provenance
from lib.experiment.runs import start
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec
from lib.losses import cross_entropy
from lib.train import devices
from lib.train.meter import timed

QUICK = 0.2  # seconds; work on two images that takes longer is not repeated on a whole batch
PASSES = {"clean": 0.5, "fgsm": 1, "fgsm_random": 1, "jsma": 150, "jsma_as_published": 150}  # of an image
SANITY = AttackSpec("sanity checks", "pgd", steps=360)  # their passes, Square's forwards among them
STOPPING = (UntilWrong, UntilGap, UntilConverged, UntilConvergedAsReleased)  # at once, where a network is untrained
Cost: TypeAlias = "pd.Series[float]"


class OnPaper(TorchDispatchMode):
    """Inside, costs are counted and not timed: a convolution is answered with zeros of its shape, and seconds are 0."""

    now = False

    def __enter__(self) -> "OnPaper":
        self._turn(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._turn(False)
        super().__exit__(*error)

    def _turn(self, now: bool) -> None:
        OnPaper.now = now
        evaluation.cache_clear()  # what is kept was timed, or was not
        training.cache_clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is ops.aten.convolution.default:
            x, weight, _, stride, padding, dilation = args[:6]
            sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
            out = ((side + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, gap in sides)
            return x.new_zeros((len(x), len(weight), *out))
        if func is ops.aten.convolution_backward.default:
            x, weight, wanted = args[1], args[2], args[-1]
            shapes = (x.shape, weight.shape, weight.shape[:1])
            return tuple(x.new_zeros(shape) if needed else None for shape, needed in zip(shapes, wanted, strict=True))
        if func in (ops.aten.normal_.default, ops.aten.uniform_.default):
            return args[0].zero_()
        return func(*args, **kwargs or {})


def of(job: Job, workspace: Workspace, logs: Mapping[str, float], flops: bool) -> Cost:
    """The cost of what is left of a job; its training's seconds as `logged`, and else from its own steps."""
    columns = (replace(SANITY, images=job.images),) if isinstance(job, Check) else job.columns
    measuring = evaluation(job.network.model, job.data, workspace, columns)
    if not isinstance(job.network, RunSpec) or isinstance(job, Check) or workspace.store.has(job.network.digest):
        return measuring
    teacher = job.network.teacher and GivenWeights(job.network.teacher.model, "")
    spec = replace(job.network, seed=0, weights=(), teacher=teacher)
    epoch = None if spec.max_steps else logs.get(kind(spec.plain()))
    if epoch is None:
        return measuring + training(spec, workspace)
    return measuring + _cost(epoch * spec.schedule.epochs, training(spec, workspace)["flops"] if flops else 0.0)


@cache
def evaluation(model: str, data: DataSpec, workspace: Workspace, columns: tuple[AttackSpec, ...]) -> Cost:
    """The cost of measuring a network under `columns`, from one input gradient on a few images."""
    test, net = workspace.dataset(data).test, fresh_network(model, data, workspace).eval()
    gradient = _per_image(lambda x, y: input_gradient(lambda z: cross_entropy(net(z), y), x), test, 128)
    distinct = {column.what: column for column in columns}.values()  # two names, one attack
    return gradient * sum(_passes(column) * (column.images or len(test.labels)) for column in distinct)


@cache
def training(spec: RunSpec, workspace: Workspace) -> Cost:
    """The cost of a run's training, from one step of its own, in which no image stops before its time.

    A strategy's attack has the mean of its options' steps; that it learns is counted where it does in every step.
    """
    schedule, strategy, steps = spec.schedule, spec.strategy, spec.attack_steps
    if strategy is not None:
        of_options = dict(strategy.options).get("steps", (strategy.candidates / 4,))  # else CAT's level, half-way
        steps = max(1, round(statistics.mean(of_options)))
        options = tuple((dict(strategy.options) | {"steps": (float(steps),)}).items())
        strategy = replace(strategy, options=options) if strategy.options else None
    longer = replace(schedule, epochs=schedule.epochs + 10)  # the scheduler counts the steps made here
    changed = replace(spec, schedule=longer, strategy=strategy, attack_steps=steps, parallel=None)
    begun = start(changed, workspace, fresh_teacher=True)
    if begun.method.criterion in STOPPING:
        begun.method = replace(begun.method, criterion=None)
    whole = schedule.steps(len(begun.data.labels))
    made = min(whole, spec.max_steps or whole)
    scored = AttackSpec("PGD-10", "pgd", steps=10, images=spec.data.held_out or spec.selection_images)
    columns = (scored, replace(scored, steps=20), *[replace(scored, attack="clean")] * 4) if begun.follow else (scored,)
    scoring = evaluation(spec.model, spec.data, workspace, columns) * math.ceil(made * schedule.epochs / whole)
    size = -(-schedule.batch_size // devices.size())  # the part that one device has
    return _per_image(begun.train_step, begun.data, size) * schedule.batch_size * made + scoring


def logged(workspace: Workspace) -> dict[str, float]:
    """The median seconds of an epoch that finished runs of each `kind` logged here, on the same kind of device."""
    here, epochs = provenance(workspace)["device"], dict[str, list[float]]()
    for folder in sorted(workspace.store.runs.glob("[!.]*")):
        try:
            files = (folder / f"{name}.json" for name in ("spec", "provenance", "history"))
            run, facts, history = (json.loads(file.read_text()) for file in files)
            if facts["device"] == here:
                epochs.setdefault(kind(run), []).extend(row["seconds"] for row in history if "seconds" in row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no run, or of an older form
            continue
    return {name: statistics.median(each) for name, each in epochs.items() if each}


def kind(spec: Mapping[str, Any]) -> str:
    """What decides the seconds of an epoch, as text: no seed, weights, number of epochs, or teacher's origin."""
    teacher, schedule = spec["teacher"] or {}, {**spec["schedule"], "epochs": 0, "milestones": [], "lr": 0}
    same = {**spec, "seed": 0, "weights": [], "teacher": teacher.get("model"), "schedule": schedule}
    return json.dumps(same, sort_keys=True)


def _per_image(work: Callable[[Tensor, Tensor], object], data: Split, size: int) -> Cost:
    """The cost per image of work(x, y): on two images, and where that is quick, on up to `size`."""
    counter, tracker = FlopCounterMode(display=False), nullcontext()
    tracker.parents = {"Global"}  # type: ignore[attr-defined]
    counter.mod_tracker = tracker  # type: ignore[assignment]  # its own hooks fail under torch.autograd.grad (2.11 on)
    x, y = to_float(data.images[:2]), data.labels[:2]
    work(x, y)  # slower, being the first, and a search over settings begins with it
    with counter:
        work(x, y)
    if OnPaper.now:
        return _cost(0.0, counter.get_total_flops() / 2)
    clock = "process_time" if x.device.type == "cpu" else "perf_counter"  # not what other programs take
    _, taken = timed(partial(work, x, y), x.device, clock)  # outside of the counter, whose first use is slow
    if taken < QUICK:
        x, y = to_float(data.images[:size]), data.labels[:size]
        _, taken = timed(partial(work, x, y), x.device, clock)
    return _cost(taken / len(y), counter.get_total_flops() / 2)


def _cost(seconds: float, flops: float) -> Cost:
    return pd.Series({"seconds": seconds, "flops": flops})


def _passes(column: AttackSpec) -> float:
    """Forward-backwards per image of an attack, at most."""
    if column.attack == "autoattack":
        return sum(STAGE_PASSES[stage] / 2 for stage in column.stages)
    return column.restarts * PASSES.get(column.attack, column.steps)
