"""The state of an AutoAttack: one file per finished batch in a folder of its own, so that a killed run goes on."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lib.attacks.batches import Answer
from lib.errors import UserError
from lib.files import disk_errors, write_atomically

ABOUT = "about.json"


class Saved:
    """A folder that holds what the finished batches found; with no folder, nothing is kept.

    Raises:
        UserError: the folder holds another attack's state, or cannot be written.
    """

    def __init__(self, folder: Path | None, about: dict[str, object]) -> None:
        self.folder = folder
        if folder is None:
            return
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / ABOUT).exists():
                write_atomically(folder / ABOUT, json.dumps(about, indent=1))
        if _read_json(folder / ABOUT) != about:
            raise UserError(f"{folder} holds the state of another AutoAttack: give this one a folder of its own")

    def read(self, stage: str, number: int, index: Tensor) -> Answer | None:
        """What the batch of the images at `index` (n,) found, or None where it is to be attacked (again)."""
        if self.folder is None or not (path := self._path(stage, number)).exists():
            return None
        try:
            found = load(path.read_bytes())
        except (SafetensorError, OSError):  # damaged
            return None
        if not found["index"].equal(index.cpu()):
            return None
        return found["broken"].to(index.device), found["x_adv"].to(index.device)

    def write(self, stage: str, number: int, index: Tensor, answer: Answer) -> None:
        """Keep what a batch found, whole or not at all."""
        if self.folder is None:
            return
        tensors = dict(zip(("index", "broken", "x_adv"), (index, *answer), strict=True))
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        with disk_errors(self.folder):
            write_atomically(self._path(stage, number), content)

    def _path(self, stage: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{stage}-{number:05}.safetensors"


def digest(*tensors: Tensor) -> str:
    """The SHA-256 of the tensors' shapes, types and values."""
    sha = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        sha.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None
