"""The networks of runs and where they are made; their accuracies, each computed once and kept."""

import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib import ROOT, data
from lib.errors import UserError, choose
from lib.evaluate import VERSION, Accuracy, AttackSpec, Resources, evaluate
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec, digest_of
from lib.experiment.store import Rows, Store
from lib.files import file_digest
from lib.models import build
from lib.models.checkpoints import load_weights

Network = RunSpec | GivenWeights
PACKAGES = ("torch", "numpy", "torchattacks", "pyautoattack")


@dataclass(frozen=True)
class Workspace:
    """Where and how runs are made; none of it changes what a run is."""

    outputs: Path
    data_dir: Path
    download: bool = False
    device: str = "cpu"
    weights_files: dict[str, Path] = field(default_factory=dict, hash=False)  # SHA-256 of a given file -> where it lies
    execution: str = "fast"

    @property
    def store(self) -> Store:
        """The run store of this workspace."""
        return Store(self.outputs).prepared()

    def dataset(self, spec: DataSpec) -> data.Dataset:
        """The data that `spec` names, its subset taken, on the device."""
        return _load(self, spec.name).subset(spec.train_images).to(torch.device(self.device))

    def describe(self, name: str, train_images: int, held_out: int) -> DataSpec:
        """The spec of the data called `name` as it lies here, which has to have as many images."""
        whole = _load(self, name)
        if held_out:
            data.hold_out(whole.subset(train_images).train, held_out)
        return DataSpec(name, _digest(self, name), train_images, held_out)

    def counts(self, spec: DataSpec) -> tuple[int, int]:
        """How many classes the data has and how many test images."""
        whole = _load(self, spec.name)
        return len(whole.classes), len(whole.test.labels)

    def weights(self, spec: Network, checkpoint: str) -> str:
        """The SHA-256 of the weights that a network has now; "" where that is not known."""
        if isinstance(spec, GivenWeights):
            return spec.sha256
        return self.store.published(spec.digest).get(f"{checkpoint}.safetensors", "")


@lru_cache(maxsize=2)
def _load(place: Workspace, name: str) -> data.Dataset:
    return data.load(name, data_dir=place.data_dir, download=place.download, cache_dir=place.outputs / "cache")


@lru_cache(maxsize=8)  # it reads every pixel
def _digest(place: Workspace, name: str) -> str:
    return _load(place, name).digest()


def provenance(workspace: Workspace) -> dict[str, Any]:
    """What is running now and when: code, versions, machine, threads."""
    device = torch.device(workspace.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": gpu or f"{device.type} ({platform.machine()})",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cudnn.allow_tf32 if gpu else None,
    }


@cache
def _processor() -> str:
    """The processor's name where the system tells it, and which of its instructions torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {torch.backends.cpu.get_cpu_capability()}"


def git(*arguments: str) -> str:
    """The answer of git about this checkout, or "" where there is none, or where the repository is one around it."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def fresh_network(model: str, data_spec: DataSpec, workspace: Workspace, outputs: int = 0) -> nn.Module:
    """An untrained `model` for this data, drawn from torch's global generator; `outputs` logits, or one per class."""
    dataset = _load(workspace, data_spec.name)
    net = build(model, classes=outputs or len(dataset.classes), channels=dataset.channels)
    return net.to(workspace.device).to(memory_format=torch.channels_last)


def network(spec: Network, data_spec: DataSpec, workspace: Workspace, checkpoint: str = "best") -> nn.Module:
    """The trained network of a finished run or of a given file, in eval mode; raises UserError if it is not there.

    `checkpoint` is "best" or "last", or "guide": the network that was trained beside it, as the last epoch left it.
    """
    if checkpoint == "guide" and not getattr(spec, "guide", ""):
        raise UserError(f"the network {network_digest(spec, data_spec)} ({spec.model}) has no guide")
    net = fresh_network(getattr(spec, "guide" if checkpoint == "guide" else "model"), data_spec, workspace)
    if isinstance(spec, GivenWeights):
        path = workspace.weights_files[spec.sha256]
        if file_digest(path) != spec.sha256:
            raise UserError(f"{path} is not the file any more that this table was opened with")
    elif workspace.store.has(spec.digest):
        path = workspace.store.folder(spec.digest) / f"{checkpoint}.safetensors"
    else:
        raise UserError(f"run {spec.digest} ({spec.method}, {spec.model}) has not been made yet")
    load_weights(net, path)
    return net.eval()


def network_digest(spec: Network, data_spec: DataSpec) -> str:
    """The digest that the accuracies of a network are kept under."""
    return spec.digest if isinstance(spec, RunSpec) else digest_of([asdict(spec), asdict(data_spec)])


def measure(
    spec: Network,
    data_spec: DataSpec,
    workspace: Workspace,
    columns: tuple[AttackSpec, ...],
    checkpoint: str = "best",
    surrogates: Sequence[RunSpec] = (),
) -> list[Accuracy]:
    """The accuracies under `columns`, each computed once and kept; transfer columns are made on the `surrogates`."""
    given = (spec, data_spec, workspace, columns, checkpoint)
    if None in stored(*given):
        store, digest = workspace.store, network_digest(spec, data_spec)
        with store.claim(f"{digest}-rows"):
            net, test = network(spec, data_spec, workspace, checkpoint), workspace.dataset(data_spec).test
            rows = zip(columns, stored(*given), strict=True)
            missing = {column.what: column for column, row in rows if row is None}.values()  # two names, one attack
            begun = store.partial / f"{digest}-{checkpoint}-attack"

            def keep(row: Accuracy) -> None:
                made = {**row.to_json(), "provenance": provenance(workspace)}
                write_rows(spec, data_spec, workspace, _key(row.column, checkpoint), checkpoint, [made])

            for made_on in dict.fromkeys(column.surrogate for column in missing):
                run = choose("surrogate", made_on, {"": None, **{run.digest: run for run in surrogates}})
                source = None if run is None else network(run, data_spec, workspace)
                on_it = tuple(column for column in missing if column.surrogate == made_on)
                evaluate(net, test, on_it, source, Resources(begun, found=keep))
            shutil.rmtree(begun, ignore_errors=True)
    found = [row for row in stored(*given) if row is not None]
    if len(found) < len(columns):
        raise UserError(f"accuracies were deleted from {workspace.outputs} while they were made; call again")
    return found


def stored(
    spec: Network, data_spec: DataSpec, workspace: Workspace, columns: tuple[AttackSpec, ...], checkpoint: str = "best"
) -> list[Accuracy | None]:
    """What `measure` returns, with None for a column that it would compute.

    Raises UserError for an accuracy that is another column's, or whose count is not the sum of its flags.
    """
    kept = ((column, read_rows(spec, data_spec, workspace, _key(column, checkpoint))) for column in columns)
    return [_checked(rows[0], column, checkpoint) if rows else None for column, rows in kept]


def _checked(row: dict[str, Any], column: AttackSpec, checkpoint: str) -> Accuracy:
    try:
        made = Accuracy.from_json(row)
        sound = _key(made.column, checkpoint) == _key(column, checkpoint)
        sound = sound and (made.k, made.n) == (made.flags.count("1"), len(made.flags))
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        key = _key(column, checkpoint)
        raise UserError(f"{key}.json among the evaluations is not of {column.name} ({checkpoint}): delete that file")
    return replace(made, column=column)


def write_rows(spec: Network, data_spec: DataSpec, workspace: Workspace, key: str, checkpoint: str, rows: Rows) -> None:
    """Keep rows about a network under `key`, with the weights that they are of."""
    of = {"checkpoint": checkpoint, "weights": workspace.weights(spec, checkpoint)}
    workspace.store.write_rows(network_digest(spec, data_spec), key, rows, **of)


def read_rows(spec: Network, data_spec: DataSpec, workspace: Workspace, key: str) -> Rows | None:
    """What is kept under `key`; None where that is nothing, or is of other weights than the network has now."""
    rows = workspace.store.read_rows(network_digest(spec, data_spec), key)
    made_of = [row["of"] for row in rows or () if "of" in row]
    now = {of["checkpoint"]: workspace.weights(spec, of["checkpoint"]) for of in made_of}
    return None if any(now[of["checkpoint"]] not in ("", of["weights"]) for of in made_of) else rows


def _key(column: AttackSpec, checkpoint: str) -> str:
    return digest_of([asdict(column.what), checkpoint, VERSION])


def made_with(spec: Network, data_spec: DataSpec, workspace: Workspace) -> list[dict[str, Any]]:
    """The provenance of a network's training and of its accuracies, as stored when they were made."""
    store, digest = workspace.store, network_digest(spec, data_spec)
    files = sorted((store.evaluations / digest).glob("*.json"))
    rows = [row for file in files for row in read_rows(spec, data_spec, workspace, file.stem) or []]
    stored = [row["provenance"] for row in rows]
    if isinstance(spec, RunSpec):
        stored.append(json.loads((store.folder(digest) / "provenance.json").read_text()))
    return stored
