"""The state of an AutoAttack: one file per finished batch in a folder of its own, so that a killed run goes on."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lib.errors import UserError
from lib.files import disk_errors, write_atomically

ABOUT = "about.json"
Answer = tuple[Tensor, Tensor]  # which images of a batch are broken (n,) bool, and their x' (k, C, H, W)


class Saved:
    """A folder with the finished batches of one attack; with no folder, nothing is kept.

    Raises:
        UserError: the folder holds another attack's state, or cannot be written.
    """

    def __init__(self, folder: Path | None, about: dict[str, object]) -> None:
        self.folder = folder
        if folder is None:
            return
        content = json.dumps(about, indent=1)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / ABOUT).exists():
                write_atomically(folder / ABOUT, content)
        if (folder / ABOUT).read_text() != content:
            raise UserError(f"{folder} holds the state of another AutoAttack: give this one a folder of its own")

    def read(self, stage: str, number: int, index: Tensor) -> Answer | None:
        """The answer for the batch of the images at `index` (n,), or None where it is to be attacked (again)."""
        if self.folder is None or not (path := self._path(stage, number)).exists():
            return None
        try:
            batch = load(path.read_bytes())
        except (SafetensorError, OSError):  # damaged
            return None
        if not batch["index"].equal(index.cpu()):
            return None
        return batch["broken"].to(index.device), batch["x_adv"].to(index.device)

    def write(self, stage: str, number: int, index: Tensor, answer: Answer) -> None:
        """Keep the answer for a batch, whole or not at all."""
        if self.folder is None:
            return
        tensors = {"index": index, "broken": answer[0], "x_adv": answer[1]}
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
