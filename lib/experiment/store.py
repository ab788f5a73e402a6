"""The run store: outputs/runs/<digest>/ holds what a run produced, published whole, read only if intact."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lib.errors import UserError
from lib.experiment.spec import digest_of
from lib.files import disk_errors, file_digest, write_atomically
from lib.models.checkpoints import read_plain

MANIFEST, SPEC = "manifest.json", "spec.json"
Rows = list[dict[str, Any]]


class Store:
    """Runs, evaluations and epoch checkpoints under one outputs folder."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.runs, self.partial, self.claims = outputs / "runs", outputs / "partial", outputs / "claims"
        self.evaluations = outputs / "evaluations"  # beside the runs, which never change once published

    def prepared(self) -> "Store":
        """The store with its folders made; raises UserError if they cannot be written."""
        with disk_errors(self.outputs):
            for folder in (self.runs, self.partial, self.claims, self.evaluations):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.runs):
                pass
        return self

    def folder(self, digest: str) -> Path:
        """Where the run `digest` is or will be."""
        return self.runs / digest

    def has(self, digest: str) -> bool:
        """Whether the run is there, every file as it was published; raises UserError if it is damaged, or another."""
        folder = self.folder(digest)
        if not folder.exists():
            return False
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            files = {path.name: file_digest(path) for path in folder.iterdir()}
            damaged = [name for name, sha in manifest.items() if files.get(name) != sha]
            if not damaged and SPEC in manifest:
                other = digest_of(json.loads((folder / SPEC).read_text()))
                damaged = [f"it is the run {other}"] if other != digest else []
        except (OSError, ValueError, AttributeError, UserError):
            damaged = [MANIFEST]
        if damaged:
            names = ", ".join(damaged)
            raise UserError(f"the run in {folder} is damaged ({names}): delete that folder to make it anew")
        return True

    def published(self, digest: str) -> dict[str, str]:
        """The SHA-256 of every file that the run was published with, by name; {} where it is not there."""
        file = self.folder(digest) / MANIFEST
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def claim(self, digest: str) -> AbstractContextManager[Any]:
        """Hold the run `digest` against every other process until the block ends or this process dies."""
        lock = FileLock(self.claims / f"{digest}.lock")
        with disk_errors(self.claims):  # where there are no locks, too
            try:
                return lock.acquire(blocking=False)
            except Timeout:
                print(f"run {digest} is being made by another process; waiting for it", flush=True)
                return lock.acquire()

    def tidy(self, digest: str) -> None:
        """Remove what a killed process left beside the finished run `digest`, unless another process is at it."""
        with suppress(Timeout), ExitStack() as stack, disk_errors(self.outputs):
            for name in (digest, f"{digest}-rows"):
                stack.enter_context(FileLock(self.claims / f"{name}.lock").acquire(blocking=False))
            for folder in (*self.runs.glob(f".{digest}-*"), *self.partial.glob(f"{digest}-*-attack")):
                shutil.rmtree(folder, ignore_errors=True)
            beside = (*self.partial.glob(f".{digest}.*"), *(self.evaluations / digest).glob(".*"))
            for file in (*beside, self.checkpoint(digest)):
                file.unlink(missing_ok=True)

    @contextmanager
    def publishing(self, digest: str) -> Iterator[Path]:
        """A temporary folder that becomes the run `digest` in one rename when the block ends well, and goes if not."""
        with disk_errors(self.outputs), ExitStack() as stack:
            parent = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=self.runs))
            stack.callback(shutil.rmtree, parent, ignore_errors=True)  # what a failing disk leaves is tidied later
            folder = parent / digest  # made by mkdir, so others may read it as they may the rest
            folder.mkdir()
            yield folder
            manifest = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
            os.rename(folder, self.folder(digest))

    def checkpoint(self, digest: str) -> Path:
        """Where the run's epoch checkpoint is, if it was begun and can go on."""
        return self.partial / f"{digest}.pt"

    def save_checkpoint(self, digest: str, state: dict[str, Any]) -> None:
        """Replace the run's epoch checkpoint; the old one stays until the new one is whole."""
        buffer = io.BytesIO()
        torch.save(state, buffer)  # into memory first: torch turns a full disk into a RuntimeError
        with disk_errors(self.outputs):
            write_atomically(self.checkpoint(digest), buffer.getvalue())

    def load_checkpoint(self, digest: str) -> dict[str, Any] | None:
        """The run's epoch checkpoint, or None; raises UserError if it is damaged, which its CRC-32 sums tell."""
        path = self.checkpoint(digest)
        if not path.exists():
            return None
        try:
            return dict(read_plain(path))
        except Exception as error:  # whatever a changed byte leads to
            raise UserError(f"the checkpoint {path} is damaged: delete that file to begin its run anew") from error

    def read_rows(self, digest: str, key: str) -> Rows | None:
        """The rows stored under `key` for the run `digest`, or None; UserError if damaged, or another place's.

        Rows from before they named their place are taken as they are.
        """
        path = self.evaluations / digest / f"{key}.json"
        if not path.exists():
            return None
        try:
            stored = json.loads(path.read_text())
            rows: Rows = stored["rows"]
            places = {(row["of"]["run"], row["of"]["key"]) for row in rows if "of" in row}
            sound = stored["sha256"] == _json_digest(rows)
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if not sound or places - {(digest, key)}:
            what = f"of another run or column, {places}" if sound else "damaged"
            raise UserError(f"the evaluation {path} is {what}: delete that file to make it anew")
        return rows

    def write_rows(self, digest: str, key: str, rows: Rows, **of: str) -> None:
        """Store an evaluation's rows, whole or not at all; each names its run, its key and what it is `of`."""
        path = self.evaluations / digest / f"{key}.json"
        rows = [row | {"of": {"run": digest, "key": key, **of}} for row in rows]
        with disk_errors(self.outputs):
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json.dumps({"sha256": _json_digest(rows), "rows": rows}))


def _json_digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
