"""Files written whole or not at all, a full disk reported in one sentence, and processes that outlive no parent."""

import errno
import hashlib
import multiprocessing
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from lib import ROOT
from lib.errors import UserError


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    What processes of this machine left that were killed while they wrote it goes as well.
    """
    own = f".{path.name}.{platform.node()}."
    temporary = path.with_name(f"{own}{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for left in path.parent.glob(f"{escape(own)}*"):
        try:
            os.kill(int(left.name.removeprefix(own)), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except PermissionError:  # alive, and another user's
            continue


def from_root(path: str) -> Path:
    """A path of a parameter: from the checkout, ~ being the home folder; UserError where there is none."""
    try:
        return ROOT / Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} cannot be resolved ({error}); write the folder itself") from error


@contextmanager
def disk_errors(outputs: Path) -> Iterator[None]:
    """A full disk or an unwritable folder as a UserError, in place of the OSError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"cannot write ({error.strerror or error})"
        raise UserError(f"{what} at {outputs}; what was finished is kept, and a new call goes on from it") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; UserError where there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def begin_worker() -> None:
    """What a worker process begins with: it takes one thread, and ends with its parent, also while it imports torch.

    It stands here because this module imports nothing that is slow.
    """
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
