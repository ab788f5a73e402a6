"""The networks of runs, and where and with what they are made."""

import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib import ROOT, data
from lib.errors import UserError
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec, digest_of
from lib.experiment.store import Store
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

    def whole(self, name: str) -> data.Dataset:
        """The data set called `name`."""
        return _load(self, name)

    def dataset(self, spec: DataSpec) -> data.Dataset:
        """The data that `spec` names, its subset taken, on the device."""
        return self.whole(spec.name).subset(spec.train_images).to(torch.device(self.device))

    def describe(self, name: str, train_images: int, held_out: int) -> DataSpec:
        """The spec of the data called `name` as it lies here, which has to have as many images."""
        return _describe(self, name, train_images, held_out)

    def counts(self, spec: DataSpec) -> tuple[int, int]:
        """How many classes the data has and how many test images."""
        whole = self.whole(spec.name)
        return len(whole.classes), len(whole.test.labels)

    def weights(self, spec: Network, checkpoint: str) -> str:
        """The SHA-256 of the weights that a network has now; "" where that is not known."""
        if isinstance(spec, GivenWeights):
            return spec.sha256
        return self.store.published(spec.digest).get(f"{checkpoint}.safetensors", "")


@lru_cache(maxsize=2)
def _load(workspace: Workspace, name: str) -> data.Dataset:
    cache = workspace.outputs / "cache"
    return data.load(name, data_dir=workspace.data_dir, download=workspace.download, cache_dir=cache)


@lru_cache(maxsize=8)  # it copies and reads every pixel
def _describe(workspace: Workspace, name: str, train_images: int, held_out: int) -> DataSpec:
    whole = workspace.whole(name)
    if held_out:
        data.hold_out(whole.subset(train_images).train, held_out)
    return DataSpec(name, whole.digest(), train_images, held_out)


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
    dataset = workspace.whole(data_spec.name)
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
