"""What a run will cost, from a few of its own steps on this machine: seconds, and floating-point operations."""

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
from lib.experiment.runs import Workspace, fresh_network, provenance, start
from lib.experiment.spec import DataSpec, RunSpec
from lib.losses import cross_entropy
from lib.methods.strategies import needs_network
from lib.methods.strategy import StrategySpec
from lib.train.meter import seconds

PROBE_SECONDS = 0.2  # a step on two images that takes longer is not repeated on a whole batch
PROBE_STEPS = 10  # more than a probe takes
WARM_UP_SECONDS = 5.0  # a first step may take this long because it is the first; it is then timed again
AUTOATTACK_PASSES = {"apgd-ce": 100, "apgd-t": 900, "fab-t": 1800, "square": 2500}  # per image, at most
STOPPING = (UntilWrong, UntilGap, UntilConverged)  # an untrained network would stop them at once
LEARNING = ("learned", "learned_as_released", "learned_awp_as_released", "adv_hp", "ohl")
CHECK_PASSES = 360  # of the sanity checks, Square's forwards among them, per image
LOGS = ("spec", "provenance", "history")
JSMA_PASSES = 150  # 76 steps of two backwards at 32x32, at most


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


def checks(model: str, data: DataSpec, workspace: Workspace, images: int) -> Cost:
    """The cost of a network's sanity checks on so many images."""
    column = AttackSpec("the checks", "pgd", steps=CHECK_PASSES, images=images)
    return evaluation(model, data, workspace, (column,), flops=False)


def training(spec: RunSpec, workspace: Workspace, flops: bool) -> Cost:
    """The cost of a run's training, from steps with one and with three attack steps.

    It is taken as linear in the attack's steps and in the images, so two images serve where a whole batch is slow. A
    strategy's attack has the mean of its options' steps, and its own step comes every k-th time. Where the place wants
    a calibration, which comes with the run, the probe has the standard levers.
    """
    size = spec.schedule.batch_size
    quiet = replace(spec, strategy=_without_learning(spec.strategy))
    short, long = (_step(_with_steps(quiet, steps), workspace, flops) for steps in (1, 3))
    attack_step = Cost(max(long.seconds - short.seconds, 0.0) / 2, (long.flops - short.flops) / 2)
    mean, learning = _mean_steps(spec), Cost()
    if spec.strategy is not None and spec.strategy.kind in LEARNING:
        asked = _step(
            _with_steps(replace(spec, strategy=replace(spec.strategy, every=1)), round(mean)), workspace, flops
        )
        learning = (asked + (short + attack_step * (round(mean) - 1)) * -1) * (1 / spec.strategy.every)
    step = (short + attack_step * (mean - 1) + learning) * size
    begun = start(spec, workspace, fresh_teacher=True)
    selection = AttackSpec("PGD-10", "pgd", steps=10, images=spec.data.held_out or spec.selection_images)
    told = (replace(selection, steps=20), *[replace(selection, attack="clean")] * 4) if begun.follow else ()
    epochs = -(-begun.stop // max(1, begun.total // spec.schedule.epochs))
    return step * begun.stop + evaluation(spec.model, spec.data, workspace, (selection, *told), flops) * epochs


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
            run, facts, history = (json.loads((folder / f"{n}.json").read_text()) for n in LOGS)
            alike = facts["device"] == here and _kind(run) == kind
            epochs += [row["seconds"] for row in history if "seconds" in row] if alike else []
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not a run of ours, or an older one's form
            continue
    return statistics.median(epochs) * spec.schedule.epochs if epochs else None


def _kind(spec: dict[str, Any]) -> str:
    """What decides the seconds of an epoch, as text."""
    teacher, schedule = spec["teacher"] or {}, {**spec["schedule"], "epochs": 0, "milestones": [], "lr": 0}
    same = {**spec, "seed": 0, "weights": [], "teacher": teacher.get("model"), "schedule": schedule}
    return json.dumps(same, sort_keys=True)


def _mean_steps(spec: RunSpec) -> float:
    """The attack's steps per image: its own, the mean of a strategy's options, or half of CAT's half-way level."""
    if spec.strategy is None:
        return float(spec.attack_steps)
    options = dict(spec.strategy.options).get("steps", (spec.strategy.candidates / 4,))
    return sum(options) / len(options)


def _without_learning(strategy: StrategySpec | None) -> StrategySpec | None:
    """Draws at the same price, and nothing learnt; without options, no strategy at all."""
    if strategy is None or not strategy.options:
        return None
    return replace(strategy, kind="frozen" if needs_network(strategy) else "random")


def _step(spec: RunSpec, workspace: Workspace, flops: bool) -> Cost:
    """One image's part of an optimisation step in which no image stops before its time."""
    longer = replace(spec.schedule, epochs=spec.schedule.epochs + PROBE_STEPS)  # the scheduler counts the probe's steps
    training = start(replace(spec, schedule=longer), workspace, fresh_teacher=True)
    if training.method.criterion in STOPPING:
        training.method = replace(training.method, criterion=None)
    return _per_image(training.train_step, training.data, spec.schedule.batch_size, flops)


def _with_steps(spec: RunSpec, steps: int) -> RunSpec:
    """The same run with one number of attack steps, also as its strategy's only option."""
    if spec.strategy is None:
        return replace(spec, attack_steps=steps)
    options = {**dict(spec.strategy.options), "steps": (float(steps),)}
    return replace(spec, attack_steps=steps, strategy=replace(spec.strategy, options=tuple(options.items())))


def _per_image(work: Callable[[Tensor, Tensor], object], data: Split, size: int, flops: bool) -> Cost:
    """The cost per image of work(x, y): once on two images, and where that is quick, timed again on up to `size`."""
    x, y = to_float(data.images[:2]), data.labels[:2]
    counter = _counter()
    with counter if flops else nullcontext():
        taken = seconds(lambda: work(x, y), x.device)
    flops_done = counter.get_total_flops()
    if PROBE_SECONDS < taken < WARM_UP_SECONDS:
        taken = seconds(lambda: work(x, y), x.device)
    first = Cost(taken, flops_done) * (1 / len(y))
    if taken > PROBE_SECONDS:
        return first
    x, y = to_float(data.images[:size]), data.labels[:size]
    return replace(first, seconds=min(seconds(lambda: work(x, y), x.device) for _ in range(2)) / len(y))


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
    if column.attack.startswith("jsma"):
        return JSMA_PASSES
    return column.restarts * {"clean": 0.5, "fgsm": 1, "fgsm_random": 1}.get(column.attack, column.steps)
