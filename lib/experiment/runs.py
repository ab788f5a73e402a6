"""Making a run: its training, from wherever an earlier try stopped, to the folder that it publishes."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lib import data
from lib.attacks.pgd import pgd
from lib.evaluate import AttackSpec, accuracy
from lib.experiment.measuring import measure as measure
from lib.experiment.networks import Network, Workspace, fresh_network, network, provenance
from lib.experiment.networks import guide as guide
from lib.experiment.spec import RunSpec, method_of
from lib.methods import strategies
from lib.models.checkpoints import save_weights
from lib.models.modes import mode
from lib.train import Training, TrainingExtras, build_training

CLEAN = AttackSpec("Clean", "clean")
FOLLOWED = 1000  # images that an epoch's PGD-20 is measured on, at most


def make(spec: RunSpec, workspace: Workspace, notify: Callable[[float], None] = lambda share: None) -> None:
    """Train the run unless it is there; goes on from its last epoch checkpoint, and publishes it whole.

    Its teacher has to be there already. `notify` is called with the finished share after every epoch.
    """
    store = workspace.store
    with store.claim(spec.digest):
        if store.has(spec.digest):
            return
        training, resumed = start(spec, workspace), store.load_checkpoint(spec.digest)
        if resumed is not None:
            training.load_state_dict(resumed["training"])
        begun = time.monotonic() - (resumed["seconds"] if resumed else 0.0)

        def after_epoch(training: Training) -> None:
            store.save_checkpoint(spec.digest, {"training": training.state_dict(), "seconds": time.monotonic() - begun})
            notify(training.step / training.stop)

        training.run(after_epoch)
        seconds = round(time.monotonic() - begun, 2)
        _publish(spec, training, workspace, {"seconds": seconds, "resumed": resumed is not None})
        store.drop_checkpoint(spec.digest)


def start(spec: RunSpec, workspace: Workspace, fresh_teacher: bool = False) -> Training:
    """The training of `spec` at its first step; `fresh_teacher` is for timing it with an untrained teacher."""
    dataset, method = workspace.dataset(spec.data), method_of(spec.method)
    train, selection = dataset.train, dataset.test.take(slice(0, spec.selection_images or None))
    if spec.selection == "held_out":
        train, selection = data.hold_out(dataset.train, spec.data.held_out)
    fresh = partial(fresh_network, data_spec=spec.data, workspace=workspace)
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, in this order
        torch.manual_seed(spec.seed)
        student, teacher = fresh(spec.model), None
        if spec.teacher is not None:
            teacher = fresh(spec.teacher.model) if fresh_teacher else network(spec.teacher, spec.data, workspace)
        extras = _extras(spec, fresh)
    selector = AttackSpec("PGD-10", "pgd", spec.epsilon, spec.epsilon / 4, 10, seed=spec.seed)
    judge = CLEAN if method.objective is None else selector  # under PGD an undefended network's epochs differ by chance
    followed = partial(follow, selection=selection, column=replace(selector, name="PGD-20", steps=20))
    return build_training(
        student,
        teacher,
        method,
        attack=partial(pgd, epsilon=spec.epsilon, step_size=spec.step_size, steps=spec.attack_steps),
        data=train,
        schedule=spec.schedule,
        extras=extras,
        score=lambda net: accuracy(net.eval(), selection, judge).percent,
        weights=dict(spec.weights),
        padding=dataset.padding,
        flip=dataset.flip,
        seed=spec.seed,
        precision=spec.precision,
        max_steps=spec.max_steps,
        follow=followed if method.trains_guide or method.guided else None,
        execution=workspace.execution,
    )


def _extras(spec: RunSpec, fresh: Callable[..., nn.Module]) -> TrainingExtras:
    guide = fresh(spec.guide) if spec.guide else None
    strategy = None
    if spec.strategy is not None:
        has_network = strategies.needs_network(spec.strategy)
        net = fresh(spec.strategy.model, outputs=sum(spec.strategy.sizes)) if has_network else None
        strategy = strategies.build(spec.strategy, net)
    awp_method = method_of(spec.awp.method) if spec.awp and spec.awp.method else None
    return TrainingExtras(guide, strategy, spec.awp, awp_method, spec.average)


def follow(training: Training, selection: data.Split, column: AttackSpec) -> dict[str, Any]:
    """The accuracies in % of a target and its guide after an epoch: clean, the target's under `column`, right labels.

    Clean is on the unseen images and on as many training images, `column` on the first thousand unseen ones; the labels
    are those that the guide gave in the epoch's batches. A guide that was trained beforehand is the teacher. No
    statistic moves, and no random number of the training is drawn.
    """
    count = len(selection.labels)
    parts = {"train": training.data.take(slice(0, count)), "unseen": selection}
    hard = replace(column, images=min(count, FOLLOWED))
    nets = {"target": training.kept, "guide": training.teacher if training.guide is None else training.guide}
    measured: dict[str, Any] = {}
    for name, net in nets.items():
        assert net is not None
        with mode(net, train=False):
            measured[name] = {part: accuracy(net, split, CLEAN).percent for part, split in parts.items()}
            if name == "target":
                measured[name][hard.name] = accuracy(net, selection, hard).percent
    right = training.labels_right
    return measured | {"label": 100 * float(torch.stack(right).mean()) if right else None}


def _publish(spec: RunSpec, training: Training, workspace: Workspace, facts: dict[str, Any]) -> None:
    facts = provenance(workspace) | facts | {"execution": training.engine.describe(), "steps": training.step}
    facts |= {"method_code": method_of(spec.method).code}
    facts |= {"best_epoch": training.best["epoch"], "best_score": training.best["score"]}
    history = [row | cost for row, cost in zip(training.history, training.costs, strict=True)]
    with workspace.store.publishing(spec.digest) as folder:
        save_weights(training.best["weights"], folder / "best.safetensors")
        save_weights(training.kept.state_dict(), folder / "last.safetensors")
        if training.guide is not None:
            save_weights(training.guide.state_dict(), folder / "guide.safetensors")
        for name, value in (("spec", asdict(spec)), ("history", history), ("provenance", facts)):
            (folder / f"{name}.json").write_text(json.dumps(value, indent=1))


def edited(spec: Network, workspace: Workspace) -> bool:
    """Whether the code of a finished run's method is another now; a run from before this was kept does not say."""
    if not isinstance(spec, RunSpec) or not workspace.store.folder(spec.digest).exists():
        return False
    facts = json.loads((workspace.store.folder(spec.digest) / "provenance.json").read_text())
    code = method_of(spec.method).code
    return bool(facts.get("method_code", code) != code)
