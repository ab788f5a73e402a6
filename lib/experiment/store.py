"""The run store: outputs/runs/<digest>/ holds what a run produced, published whole, read only if intact.

`python -m lib.experiment.store import FOLDER` takes what another machine made.
"""

import argparse
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lib.errors import UserError
from lib.experiment.spec import digest_of
from lib.files import disk_errors, file_digest, from_root, write_atomically
from lib.models.checkpoints import read_plain

MANIFEST, SPEC = "manifest.json", "spec.json"
WHOLE = {SPEC, "history.json", "provenance.json", "best.safetensors", "last.safetensors"}  # kept evidence has no last
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
        try:
            return dict(json.loads(file.read_text())) if file.exists() else {}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file} is damaged: delete its folder to make the run anew") from error

    def claim(self, digest: str) -> AbstractContextManager[Any]:
        """Hold the run `digest` against every other process until the block ends or this process dies."""
        lock = FileLock(self.claims / f"{digest}.lock")
        with disk_errors(self.claims):  # where there are no locks, too
            try:
                return lock.acquire(blocking=False)
            except Timeout:
                print(f"run {digest} is being made by another process; waiting for it", flush=True)
                return lock.acquire()

    def claim_now(self, *names: str) -> ExitStack | None:
        """All of these claims, or None where another process has one of them."""
        with disk_errors(self.claims), ExitStack() as stack:
            try:
                for name in names:
                    stack.enter_context(FileLock(self.claims / f"{name}.lock").acquire(blocking=False))
            except Timeout:
                return None
            return stack.pop_all()

    def tidy(self, digest: str) -> None:
        """Remove what a killed process left beside the finished run `digest`, unless another process is at it."""
        others = {file.stem for file in self.claims.glob(f"{digest}-*.lock")}  # of its evaluations and checks
        held = self.claim_now(*sorted({digest, f"{digest}-rows", *others}))
        if held is None:
            return
        with disk_errors(self.outputs), held:
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

    def publish(self, digest: str, contents: Mapping[str, bytes]) -> None:
        """Publish a run from its files' contents, its manifest among them; UserError where they are not those."""
        found = {name: sha256(content).hexdigest() for name, content in contents.items() if name != MANIFEST}
        try:
            wanted = json.loads(contents[MANIFEST])
        except (KeyError, ValueError):
            wanted = None
        if found != wanted:
            raise UserError(f"the run {digest} changed on its way here")
        with self.publishing(digest) as folder:
            for name in found:
                (folder / name).write_bytes(contents[name])

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
        file_digest(path)  # a disk that cannot read it says so, and not that it is damaged
        try:
            return dict(read_plain(path))
        except MemoryError:
            raise
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

    def take_run(self, other: "Store", digest: str) -> bool:
        """Whether the run `digest` of another store was copied, as it is not here; UserError where it does not fit."""
        other.has(digest)
        files, place = other.published(digest), other.folder(digest)
        if lacking := ", ".join(sorted(WHOLE - {*files})):
            raise UserError(f"the run in {place} has no {lacking}, so it is not whole")
        with self.claim(digest):
            if self.has(digest):
                weights = {name for name in (*files, *self.published(digest)) if name.endswith(".safetensors")}
                if any(files.get(name) != self.published(digest).get(name) for name in weights):
                    raise UserError(f"the run in {place} has other weights than the one here, which stays")
                return False
            with self.publishing(digest) as folder:
                for name, sha in files.items():
                    shutil.copyfile(place / name, folder / name)
                    if file_digest(folder / name) != sha:
                        raise UserError(f"{place / name} changed while it was copied")
        self.tidy(digest)
        return True

    def take_rows(self, other: "Store", digest: str, key: str) -> bool:
        """Whether the rows under `key` of another store were copied, as none are here; UserError if they do not fit."""
        file, weights = Path(digest, f"{key}.json"), self.published(digest)
        theirs, mine = other.read_rows(digest, key) or [], self.read_rows(digest, key)
        named = [row.get("of", {}) for row in theirs]
        made_of = {(of.get("weights"), weights.get(f"{of.get('checkpoint')}.safetensors")) for of in named}
        if len(made_of) != 1 or any(not of or (weights and of != here) for of, here in made_of):
            raise UserError(f"the evaluation {other.evaluations / file} does not name the weights that its run has")
        if mine is None:
            with disk_errors(self.outputs):
                (self.evaluations / digest).mkdir(parents=True, exist_ok=True)
                write_atomically(self.evaluations / file, (other.evaluations / file).read_bytes())
        elif _found(mine) != _found(theirs):
            raise UserError(f"the evaluation {other.evaluations / file} differs from the one here, which stays")
        return mine is None


def _found(rows: Rows) -> Rows:
    """What was found, without by whom and under which name of the column."""
    return [{name: row[name] for name in row if name not in ("provenance", "column", "of")} for row in rows]


def _json_digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def take(folder: Path, outputs: Path) -> bool:
    """Take what another outputs folder, or a folder of runs, has and this one has not; whether nothing was refused."""
    own, other = Store(outputs), Store(folder)
    other.runs = other.runs if other.runs.is_dir() else folder
    digests = sorted({path.name for each in (other.runs, other.evaluations) for path in each.glob("[0-9a-f]" * 12)})
    if not digests:
        raise UserError(f"there are no runs in {folder}; name an outputs folder, or the folder runs in it")
    own.prepared()
    done: dict[str, list[tuple[str, str]]] = {"took": [], "passed over": [], "refused": []}
    for digest in digests:
        keys = sorted(file.stem for file in (other.evaluations / digest).glob("[!.]*.json"))
        for key in ["", *keys] if other.folder(digest).exists() else keys:
            try:
                took = own.take_rows(other, digest, key) if key else own.take_run(other, digest)
                done["took" if took else "passed over"].append((digest, key))
            except UserError as error:
                print(error)
                done["refused"].append((digest, key))
                if not key:  # evaluations of a run that is refused are, too
                    done["refused"] += [(digest, one) for one in keys]
                    break
    for kind, each in done.items():
        runs, names = sum(not key for _, key in each), ", ".join(dict.fromkeys(digest for digest, _ in each))
        print(f"{kind} {runs} runs and {len(each) - runs} evaluations" + (f": {names}" if names else ""))
    return not done["refused"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.experiment.store", description=__doc__)
    command = parser.add_subparsers(required=True).add_parser("import", help="take what another machine made")
    command.add_argument("folder", help="its outputs folder, or a folder of runs")
    command.add_argument("--outputs", default="outputs")
    given = parser.parse_args()
    try:
        sound = take(from_root(given.folder), from_root(given.outputs))
    except UserError as error:
        parser.exit(1, f"{error}\n")
    parser.exit(not sound)


if __name__ == "__main__":
    main()
