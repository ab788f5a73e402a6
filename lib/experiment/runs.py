"""Making one run: its networks, its training from wherever an earlier try stopped, its accuracies."""

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib import ROOT, data
from lib.attacks.levers import PLAIN, STANDARD, Levers
from lib.attacks.pgd import pgd
from lib.errors import UserError, choose
from lib.evaluate import VERSION, Accuracy, AttackSpec, Resources, accuracy, evaluate
from lib.experiment.calibrated import Calibration, calibrated
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec, digest_of
from lib.experiment.store import Store
from lib.files import file_digest
from lib.methods import METHODS, strategies
from lib.models import build
from lib.models.checkpoints import load_weights, save_weights
from lib.models.modes import mode
from lib.train import Training, TrainingExtras

CLEAN = AttackSpec("Clean", "clean")
FOLLOWED = 1000  # images that an epoch's PGD-20 is told on, at most
PACKAGES = ("torch", "numpy", "torchattacks", "pyautoattack")
Network = RunSpec | GivenWeights


@dataclass(frozen=True)
class Workspace:
    """Where a run is made; none of it changes what the run is."""

    outputs: Path
    data_dir: Path
    download: bool = False
    device: str = "cpu"
    weights_files: dict[str, Path] = field(default_factory=dict)  # SHA-256 of a given file -> where it lies
    levers: Levers | None = STANDARD  # None: a calibration finds them; bf16 is the run's to decide, by its precision

    @property
    def store(self) -> Store:
        """The run store of this workspace."""
        return Store(self.outputs)

    def dataset(self, spec: DataSpec) -> data.Dataset:
        """The data that `spec` names, its subset taken, on the device."""
        whole = _load(spec.name, self.data_dir, self.download, self.outputs / "cache")
        return whole.subset(spec.train_images).to(torch.device(self.device))


@lru_cache(maxsize=2)
def _load(name: str, data_dir: Path, download: bool, cache_dir: Path) -> data.Dataset:
    return data.load(name, data_dir=data_dir, download=download, cache_dir=cache_dir)


def describe_data(workspace: Workspace, name: str, train_images: int, held_out: int) -> DataSpec:
    """The spec of the data called `name` as it lies at `place`.

    Raises:
        UserError: it is not there, or has fewer images than asked for.
    """
    whole = _load(name, workspace.data_dir, workspace.download, workspace.outputs / "cache")
    if held_out:
        data.hold_out(whole.subset(train_images).train, held_out)
    return DataSpec(name, whole.digest(), train_images, held_out)


def network(spec: Network, data_spec: DataSpec, workspace: Workspace, checkpoint: str = "best") -> nn.Module:
    """The trained network of a finished run or of a given file, in eval mode on the place's device.

    Raises:
        UserError: the run is not there or damaged, or the file does not fit.
    """
    net = fresh_network(spec.model, data_spec, workspace)
    if isinstance(spec, GivenWeights):
        path = workspace.weights_files[spec.sha256]
        if file_digest(path) != spec.sha256:
            raise UserError(f"{path} is not the file any more that this table was opened with")
        load_weights(net, path)
    elif workspace.store.has(spec.digest):
        load_weights(net, workspace.store.folder(spec.digest) / f"{checkpoint}.safetensors")
    else:
        raise UserError(f"run {spec.digest} ({spec.method}, {spec.model}) has not been made yet")
    return net.eval()


def guide(spec: RunSpec, data_spec: DataSpec, workspace: Workspace) -> nn.Module:
    """The guide of a finished run as its last epoch left it, in eval mode on the place's device.

    Raises:
        UserError: the run has none, is not there or is damaged.
    """
    if not spec.guide or not workspace.store.has(spec.digest):
        raise UserError(f"run {spec.digest} ({spec.method}, {spec.model}) has not been made yet, or trains no guide")
    net = fresh_network(spec.guide, data_spec, workspace)
    load_weights(net, workspace.store.folder(spec.digest) / "guide.safetensors")
    return net.eval()


def fresh_network(model: str, data_spec: DataSpec, workspace: Workspace) -> nn.Module:
    """An untrained `model` for this data, drawn from torch's global generator."""
    dataset = workspace.dataset(data_spec)
    return _built(model, len(dataset.classes), dataset, workspace)


def _built(model: str, outputs: int, dataset: data.Dataset, workspace: Workspace) -> nn.Module:
    net = build(model, classes=outputs, channels=dataset.channels)
    return net.to(workspace.device).to(memory_format=torch.channels_last)


def make(spec: RunSpec, workspace: Workspace, notify: Callable[[float], None] = lambda share: None) -> None:
    """Train the run unless it is there; goes on from its last epoch checkpoint, and publishes it whole.

    Its teacher has to be there already. `notify` hears the finished share after every epoch.
    """
    store = workspace.store
    with store.claim(spec.digest):
        if store.has(spec.digest):
            return
        chosen = levers_of(spec, workspace)
        training = start(spec, replace(workspace, levers=chosen.levers))
        resumed = store.load_checkpoint(spec.digest)
        seconds = 0.0
        if resumed is not None:
            training.load_state_dict(resumed["training"])
            seconds = resumed["seconds"]
        begun = time.monotonic() - seconds

        def after_epoch(training: Training) -> None:
            state = {"training": training.state_dict(), "seconds": time.monotonic() - begun}
            store.save_checkpoint(spec.digest, state)
            notify(training.step / training.stop)

        training.run(after_epoch)
        done: dict[str, Any] = {"seconds": round(time.monotonic() - begun, 2), "resumed": resumed is not None}
        done["levers"] = chosen.told(training.engine.levers, training.engine.said)
        _publish(spec, training, workspace, done)
        store.drop_checkpoint(spec.digest)


def start(spec: RunSpec, workspace: Workspace, fresh_teacher: bool = False) -> Training:
    """The training of `spec` at its first step; a probe of its cost may use an untrained teacher."""
    dataset = workspace.dataset(spec.data)
    train, selection = dataset.train, dataset.test.take(slice(0, spec.selection_images or None))
    if spec.selection == "held_out":
        train, selection = data.hold_out(dataset.train, spec.data.held_out)
    teacher = guide = strategy_net = None
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.manual_seed(spec.seed)
        student = fresh_network(spec.model, spec.data, workspace)
        if spec.teacher is not None:
            untrained = partial(fresh_network, spec.teacher.model, spec.data, workspace)
            teacher = untrained() if fresh_teacher else network(spec.teacher, spec.data, workspace)
        if spec.guide:
            guide = fresh_network(spec.guide, spec.data, workspace)
        if spec.strategy is not None and strategies.needs_network(spec.strategy):
            strategy_net = _built(spec.strategy.model, sum(spec.strategy.sizes), dataset, workspace)
    column = AttackSpec("PGD-10", "pgd", spec.epsilon, spec.epsilon / 4, 10, seed=spec.seed)
    longer = replace(column, name="PGD-20", steps=20)
    method = choose("method", spec.method, METHODS)
    judge = CLEAN if method.objective is None else column  # under PGD an undefended network's epochs differ by chance
    return Training(
        student,
        teacher,
        method,
        attack=partial(pgd, epsilon=spec.epsilon, step_size=spec.step_size, steps=spec.attack_steps),
        data=train,
        schedule=spec.schedule,
        extras=TrainingExtras(
            guide,
            strategies.build(spec.strategy, strategy_net) if spec.strategy else None,
            spec.awp,
            choose("method", spec.awp.method, METHODS) if spec.awp and spec.awp.method else None,
            spec.average,
        ),
        score=lambda net: _score(net, selection, judge),
        weights=dict(spec.weights),
        padding=dataset.padding,
        flip=dataset.flip,
        seed=spec.seed,
        precision=spec.precision,
        max_steps=spec.max_steps,
        follow=partial(follow, selection=selection, column=longer) if method.trains_guide or method.guided else None,
        execution="plain" if workspace.levers == PLAIN else "fast",
    )


def levers_of(spec: RunSpec, workspace: Workspace) -> Calibration:
    """The place's levers; where it names none, those that a calibration for this run finds, or found before.

    A run without an attack, or one that is cut off after some steps, is not worth a calibration.
    """
    if workspace.levers is not None or spec.max_steps or METHODS[spec.method].objective is None:
        return Calibration(workspace.levers or STANDARD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        net = fresh_network(spec.model, spec.data, workspace)
    x, y = next(workspace.dataset(spec.data).train.batches(spec.schedule.batch_size))
    return calibrated(spec, net, x, y, workspace.store, provenance(workspace)["device"])


def measure(
    spec: Network,
    data_spec: DataSpec,
    workspace: Workspace,
    columns: tuple[AttackSpec, ...],
    checkpoint: str = "best",
    surrogates: tuple[RunSpec, ...] = (),
) -> list[Accuracy]:
    """The accuracies of a network under `columns`; each column is computed once and kept, whatever it is called.

    `surrogates` are the finished runs that transfer columns are made on.
    """
    store, digest = workspace.store, network_digest(spec, data_spec)
    if not measured(spec, data_spec, workspace, columns, checkpoint):
        with store.claim(f"{digest}-rows"):
            net, test = network(spec, data_spec, workspace, checkpoint), workspace.dataset(data_spec).test
            keys = {_key(column, checkpoint): column for column in columns}  # two names may be one attack at this scale
            missing = [column for key, column in keys.items() if store.read_rows(digest, key) is None]
            begun = store.partial / f"{digest}-{checkpoint}-attack"

            def keep(row: Accuracy) -> None:
                made = {**row.to_json(), "provenance": provenance(workspace)}
                store.write_rows(digest, _key(row.column, checkpoint), [made])

            for made_on in dict.fromkeys(column.surrogate for column in missing):
                source = next((network(s, data_spec, workspace) for s in surrogates if s.digest == made_on), None)
                columns_on = tuple(column for column in missing if column.surrogate == made_on)
                if made_on and source is None:
                    raise UserError(f"column {columns_on[0].name}: its surrogate {made_on} was not given")
                evaluate(net, test, columns_on, source, Resources(begun, found=keep))
            shutil.rmtree(begun, ignore_errors=True)
    kept = [store.read_rows(digest, _key(column, checkpoint)) for column in columns]
    return [replace(Accuracy.from_json(rows[0]), column=c) for c, rows in zip(columns, kept, strict=True) if rows]


def measured(
    spec: Network, data_spec: DataSpec, workspace: Workspace, columns: tuple[AttackSpec, ...], checkpoint: str = "best"
) -> bool:
    """Whether `measure` would compute nothing."""
    digest = network_digest(spec, data_spec)
    return all(workspace.store.read_rows(digest, _key(column, checkpoint)) is not None for column in columns)


def network_digest(spec: Network, data_spec: DataSpec) -> str:
    """What the accuracies of a network are kept under."""
    return spec.digest if isinstance(spec, RunSpec) else digest_of([asdict(spec), asdict(data_spec)])


def made_with(spec: Network, data_spec: DataSpec, workspace: Workspace) -> list[dict[str, Any]]:
    """The provenance of a network's training and of its accuracies, as stored when they were made."""
    store, digest = workspace.store, network_digest(spec, data_spec)
    files = sorted((store.evaluations / digest).glob("*.json"))
    stored = [row["provenance"] for file in files for row in store.read_rows(digest, file.stem) or []]
    if isinstance(spec, RunSpec):
        stored.append(json.loads((store.folder(digest) / "provenance.json").read_text()))
    return stored


def edited(spec: Network, workspace: Workspace) -> bool:
    """Whether the code of a finished run's method is another now; a run from before this was kept does not say."""
    if not isinstance(spec, RunSpec) or not workspace.store.folder(spec.digest).exists():
        return False
    facts = json.loads((workspace.store.folder(spec.digest) / "provenance.json").read_text())
    code = METHODS[spec.method].code
    return bool(facts.get("method_code", code) != code)


def provenance(workspace: Workspace) -> dict[str, Any]:
    """What is running now: code, versions, machine, threads."""
    device = torch.device(workspace.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": gpu or f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cudnn.allow_tf32 if gpu else None,
    }


def git(*arguments: str) -> str:
    """What git says of this checkout, or "" where it cannot be asked."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _score(net: nn.Module, selection: data.Split, column: AttackSpec) -> float:
    net.eval()
    return accuracy(net, selection, column).percent


def follow(training: Training, selection: data.Split, column: AttackSpec) -> dict[str, Any]:
    """What an epoch made of a target and its guide, in %: clean accuracies, the target's under `column`, right labels.

    Clean is on the unseen images and on as many training images, `column` on the first thousand unseen ones; the labels
    are those that the guide gave in the epoch's batches. A guide that was trained beforehand is the teacher. No
    statistic moves, and no random number of the training is drawn.
    """
    count = len(selection.labels)
    parts = {"train": training.data.take(slice(0, count)), "unseen": selection}
    hard = replace(column, images=min(count, FOLLOWED))
    nets = {"target": training.kept, "guide": training.teacher if training.guide is None else training.guide}
    told: dict[str, Any] = {}
    for name, net in nets.items():
        assert net is not None
        with mode(net, train=False):
            told[name] = {part: accuracy(net, split, CLEAN).percent for part, split in parts.items()}
            if name == "target":
                told[name][hard.name] = accuracy(net, selection, hard).percent
    right = training.labels_right
    return told | {"label": 100 * float(torch.stack(right).mean()) if right else None}


def _key(column: AttackSpec, checkpoint: str) -> str:
    return digest_of([asdict(column.what), checkpoint, VERSION])


def _publish(spec: RunSpec, training: Training, workspace: Workspace, done: dict[str, Any]) -> None:
    facts = provenance(workspace) | done | {"steps": training.step, "method_code": METHODS[spec.method].code}
    facts["best_epoch"], facts["best_score"] = training.best["epoch"], training.best["score"]
    history = [row | cost for row, cost in zip(training.history, training.costs, strict=True)]
    with workspace.store.publishing(spec.digest) as folder:
        save_weights(training.best["weights"], folder / "best.safetensors")
        save_weights(training.kept.state_dict(), folder / "last.safetensors")
        if training.guide is not None:
            save_weights(training.guide.state_dict(), folder / "guide.safetensors")
        for name, value in (("spec", asdict(spec)), ("history", history), ("provenance", facts)):
            (folder / f"{name}.json").write_text(json.dumps(value, indent=1))
