"""The expected cost of a run: seconds on this machine, and floating-point operations."""

import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib.attacks.pgd import input_gradient
from lib.attacks.stopping import UntilConverged, UntilGap, UntilWrong
from lib.data import Split, to_float
from lib.evaluate import AttackSpec
from lib.experiment.networks import Workspace, fresh_network, provenance
from lib.experiment.runs import start
from lib.experiment.spec import DataSpec, RunSpec
from lib.losses import cross_entropy
from lib.methods.strategies import needs_network
from lib.train.meter import seconds

QUICK = 0.2  # seconds; work on two images that takes longer is not repeated on a whole batch
WARM_UP = 5.0  # seconds; a first call may take this long because it is the first, and is then timed again
PASSES = {"clean": 0.5, "fgsm": 1, "fgsm_random": 1, "jsma": 150, "jsma_as_published": 150}  # of an image
AUTOATTACK_PASSES = {"apgd-ce": 100, "apgd-t": 900, "fab-t": 1800, "square": 2500}  # at most
SANITY = AttackSpec("sanity checks", "pgd", steps=360)  # their passes, Square's forwards among them
STOPPING = (UntilWrong, UntilGap, UntilConverged)  # an untrained network would stop them at once
LEARNING = ("learned", "learned_as_released", "learned_awp_as_released", "adv_hp", "ohl")


@dataclass(frozen=True)
class Cost:
    """Seconds here with one worker, and FLOPs (a multiply and an add are two)."""

    seconds: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.flops + other.flops)

    def __mul__(self, times: float) -> "Cost":
        return Cost(times * self.seconds, times * self.flops)


def evaluation(model: str, data: DataSpec, workspace: Workspace, columns: tuple[AttackSpec, ...], flops: bool) -> Cost:
    """The cost of measuring a network under `columns`, from one input gradient on a few images."""
    dataset = workspace.dataset(data)
    net = fresh_network(model, data, workspace).eval()
    gradient = _per_image(lambda x, y: input_gradient(lambda z: cross_entropy(net(z), y), x), dataset.test, 128, flops)
    return gradient * sum(_passes(column) * (column.images or len(dataset.test.labels)) for column in columns)


def training(spec: RunSpec, workspace: Workspace, flops: bool) -> Cost:
    """The cost of a run's training, from one step of its own; where its strategy learns, from a second one, which does.

    A strategy's attack has the mean of its options' steps, and its own step comes every k-th time.
    """
    step, strategy = _step(spec, workspace, flops), spec.strategy
    if strategy is not None and strategy.kind in LEARNING:
        step += (_step(spec, workspace, flops, learning=True) + step * -1) * (1 / strategy.every)
    begun = start(spec, workspace, fresh_teacher=True)
    epochs = -(-begun.stop // max(1, begun.total // spec.schedule.epochs))
    scored = AttackSpec("PGD-10", "pgd", steps=10, images=spec.data.held_out or spec.selection_images)
    columns = (scored, replace(scored, steps=20), *[replace(scored, attack="clean")] * 4) if begun.follow else (scored,)
    scoring = evaluation(spec.model, spec.data, workspace, columns, flops)
    return step * spec.schedule.batch_size * begun.stop + scoring * epochs


def logged(spec: RunSpec, workspace: Workspace) -> float | None:
    """Seconds of a run's training from what finished runs of its kind logged here per epoch, or None without any.

    Of one kind are runs that differ in seed, the method's weights, the number of epochs, or in how the teacher came to
    be; here is the same kind of device. A run that is cut off after some steps is not told from whole epochs.
    """
    if spec.max_steps:
        return None
    kind, here = _kind(asdict(spec)), provenance(workspace)["device"]
    epochs: list[float] = []
    for folder in sorted(workspace.store.runs.glob("[!.]*")):
        try:
            files = (folder / f"{name}.json" for name in ("spec", "provenance", "history"))
            run, facts, history = (json.loads(file.read_text()) for file in files)
            if facts["device"] == here and _kind(run) == kind:
                epochs += [row["seconds"] for row in history if "seconds" in row]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no run, or of an older form
            continue
    return statistics.median(epochs) * spec.schedule.epochs if epochs else None


def _kind(spec: dict[str, Any]) -> str:
    """What decides the seconds of an epoch, as text."""
    teacher, schedule = spec["teacher"] or {}, {**spec["schedule"], "epochs": 0, "milestones": [], "lr": 0}
    same = {**spec, "seed": 0, "weights": [], "teacher": teacher.get("model"), "schedule": schedule}
    return json.dumps(same, sort_keys=True)


def _step(spec: RunSpec, workspace: Workspace, flops: bool, learning: bool = False) -> Cost:
    """One image's part of an optimisation step in which no image stops before its time."""
    longer = replace(spec.schedule, epochs=spec.schedule.epochs + 10)  # the scheduler counts the steps made here
    steps, strategy = spec.attack_steps, spec.strategy
    if strategy is not None:
        of_options = dict(strategy.options).get("steps", (strategy.candidates / 4,))  # else CAT's level, half-way
        steps = max(1, round(sum(of_options) / len(of_options)))
        kind = strategy.kind if learning else "frozen" if needs_network(strategy) else "random"
        options = tuple((dict(strategy.options) | {"steps": (float(steps),)}).items())
        strategy = replace(strategy, kind=kind, options=options, every=1) if strategy.options else None
    changed = replace(spec, schedule=longer, attack_steps=steps, strategy=strategy)
    training = start(changed, workspace, fresh_teacher=True)
    if training.method.criterion in STOPPING:
        training.method = replace(training.method, criterion=None)
    return _per_image(training.train_step, training.data, spec.schedule.batch_size, flops)


def _per_image(work: Callable[[Tensor, Tensor], object], data: Split, size: int, flops: bool) -> Cost:
    """The cost per image of work(x, y): on two images, and where that is quick, on up to `size`."""
    x, y = to_float(data.images[:2]), data.labels[:2]
    counter = _counter()
    with counter if flops else nullcontext():
        taken = seconds(lambda: work(x, y), x.device)
    if taken < WARM_UP:
        taken = seconds(lambda: work(x, y), x.device)
    flops_each = counter.get_total_flops() / len(y)
    if taken < QUICK:
        x, y = to_float(data.images[:size]), data.labels[:size]
        taken = seconds(lambda: work(x, y), x.device)
    return Cost(taken / len(y), flops_each)


def counted(work: Callable[[], object]) -> float:
    """The floating-point operations of one call: products and convolutions, a multiply and an add being two."""
    with _counter() as counter:
        work()
    return float(counter.get_total_flops())


def _counter() -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules(AbstractContextManager[None]):
    """In place of the counter's module tracker, whose hooks fail under torch.autograd.grad (2.11 to 2.15)."""

    parents = frozenset({"Global"})

    def __exit__(self, *_: object) -> None:
        return None


def _passes(column: AttackSpec) -> float:
    """Forward-backwards per image of an attack, at most."""
    if column.attack == "autoattack":
        return sum(AUTOATTACK_PASSES[stage] for stage in column.stages)
    return column.restarts * PASSES.get(column.attack, column.steps)
