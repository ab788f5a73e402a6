"""Making a run: its training, from wherever an earlier try stopped, to the folder that it publishes."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lib import data
from lib.attacks.pgd import pgd
from lib.evaluate import AttackSpec, accuracy
from lib.experiment.networks import Workspace, fresh_network, network, provenance
from lib.experiment.spec import RunSpec, method_of
from lib.files import disk_errors
from lib.methods import strategies
from lib.models.checkpoints import as_safetensors
from lib.models.modes import mode
from lib.train import Training, TrainingExtras, build_training, devices

CLEAN = AttackSpec("Clean", "clean")
FOLLOWED = 1000  # images that an epoch's PGD-20 is measured on, at most


def make(spec: RunSpec, workspace: Workspace, notify: Callable[[float], None] = lambda share: None) -> None:
    """Train the run from its last epoch checkpoint on, unless it is there; `notify` gets the share after each epoch."""
    store = workspace.store
    with store.claim(spec.digest):
        if store.has(spec.digest):
            return
        devices.announce(spec.digest)
        (training, resumed), begun = begin(spec, workspace), time.monotonic()
        here, begun_on = _machine(workspace), None
        if resumed is not None:
            begun -= resumed["seconds"]
            begun_on = resumed.get("made_on", here)
            if begun_on != here:
                text = f"run {spec.digest} was begun on {begun_on} and goes on on {here}"
                print(f"{text}: its weights are not those of one machine, bit for bit", flush=True)

        def after_epoch(training: Training) -> None:
            devices.weights_agree(training.kept)
            state = {
                "training": training.state_dict(),
                "seconds": time.monotonic() - begun,
                "made_on": begun_on or here,
            }
            store.save_checkpoint(spec.digest, state)
            notify(training.step / training.stop)

        training.run(after_epoch)
        seconds = round(time.monotonic() - begun, 2)
        facts = {"seconds": seconds, "resumed": resumed is not None}
        _publish(spec, training, workspace, facts | ({"begun_on": begun_on} if begun_on not in (None, here) else {}))
        with disk_errors(store.outputs):
            store.checkpoint(spec.digest).unlink(missing_ok=True)


def begin(spec: RunSpec, workspace: Workspace) -> tuple[Training, dict[str, Any] | None]:
    """The training of `spec` where its last epoch checkpoint left it, and that checkpoint; at its start without one."""
    training, resumed = start(spec, workspace), workspace.store.load_checkpoint(spec.digest)
    if resumed is not None:
        training.load_state_dict(resumed["training"])
    return training, resumed


def _machine(workspace: Workspace) -> str:
    facts = provenance(workspace)
    count = f"{devices.size()} x " if devices.size() > 1 else ""
    return f"{count}{facts['device']}, {facts['processor']}, torch {facts['packages']['torch']}"


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
        score=lambda net: devices.from_first(lambda: accuracy(net.eval(), selection, judge).percent),
        weights=dict(spec.weights),
        padding=dataset.padding,
        flip=dataset.flip,
        seed=spec.seed,
        precision=spec.precision,
        max_steps=spec.max_steps,
        follow=followed if (method.trains_guide or method.guided) and devices.rank() == 0 else None,
        execution=workspace.execution,
        parallel=spec.parallel,
    )


def _extras(spec: RunSpec, fresh: Callable[..., nn.Module]) -> TrainingExtras:
    own, strategy = spec.strategy, None
    second = fresh(spec.guide) if spec.guide else None
    if own is not None:
        net = fresh(own.model, outputs=sum(own.sizes)) if strategies.needs_network(own) else None
        strategy = strategies.build(own, net)
    awp_method = method_of(spec.awp.method) if spec.awp and spec.awp.method else None
    return TrainingExtras(second, strategy, spec.awp, awp_method, spec.average)


def follow(training: Training, selection: data.Split, column: AttackSpec) -> dict[str, Any]:
    """The accuracies in % of a target and its guide, or teacher, after an epoch; no statistic or generator moves.

    Clean is on the unseen images and on as many training images, `column` on the first thousand unseen ones; `label` is
    the share of right labels that the guide gave in the epoch's batches.
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
    facts |= {"devices": devices.size()} if spec.parallel else {}
    facts |= {f"best_{key}": training.best[key] for key in ("epoch", "score")}
    facts["method_code"] = method_of(spec.method).code
    history = [row | cost for row, cost in zip(training.history, training.costs, strict=True)]
    with workspace.store.publishing(spec.digest) as folder:
        (folder / "best.safetensors").write_bytes(as_safetensors(training.best["weights"]))
        for name, net in (("last", training.kept), ("guide", training.guide)):
            if net is not None:
                (folder / f"{name}.safetensors").write_bytes(as_safetensors(net.state_dict()))
        for name, value in (("spec", spec.plain()), ("history", history), ("provenance", facts)):
            (folder / f"{name}.json").write_text(json.dumps(value, indent=1))


def edited(spec: RunSpec, workspace: Workspace) -> bool:
    """Whether the code of a finished run's method is another now; a run from before this was kept does not say."""
    file, code = workspace.store.folder(spec.digest) / "provenance.json", method_of(spec.method).code
    return file.exists() and bool(json.loads(file.read_text()).get("method_code", code) != code)
