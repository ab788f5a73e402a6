"""A call in a process of its own that a fault meets at the file operation of its number; for tests."""

import errno
import json
import os
import re
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch._dynamo  # what else every child would import anew
from PIL import Image
from pyautoattack import autopgd_base
from small import SETTINGS, parameters

from lib import data, report
from lib.errors import MOST, UserError
from lib.experiment import open_table, plan, run
from lib.experiment.jobs import Job, run_jobs
from lib.report import plot_style

assert torch._dynamo
assert autopgd_base
SMALLEST = SETTINGS | {
    "train_images": 30,
    "attack_steps": 1,
    "schedules": {"default": {"epochs": 2, "batch_size": 60}},
    "models": {"ResNet18": "ResNet8-w8", "WideResNet-34-10": "ResNet8-w8"},
}

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.fsync")  # Python's audit events
UNEQUAL = {"date", "seconds", "peak_mb", "resumed", "sha256", "uncommitted_changes"}  # of two equal runs


class Outcome(NamedTuple):
    """How a call ended, "" where it went well, the file operations that it came to, and those elsewhere."""

    said: str
    places: list[str]
    outside: list[str]


def attempt(work: Callable[[Path], object], folder: Path, fault: Callable[[str], None] | None = None, at: int = 0):
    """work(folder) in a child; `fault` is called before the operation number `at` below the folder, and what follows.

    An operation that is made again and again counts twice.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _in_child(work, folder, fault, at, writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        lines = file.read().splitlines()
    _, status = os.waitpid(pid, 0)
    ended = [json.loads(line)["said"] for line in lines if line.startswith("{")]
    said = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else (ended or ["left without a word"])[0]
    outside = [line for line in lines if line.startswith("outside: ")]
    return Outcome(said, [line for line in lines if not line.startswith(("{", "outside: "))], outside)


def _in_child(work, folder, fault, at, writer) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    said = ""
    try:
        sys.addaudithook(_watcher(str(folder), fault, at, writer))
        os.fsync = lambda fd, sync=os.fsync: (sys.audit("os.fsync", str(folder), fd), sync(fd))  # it has no event
        work(folder)
    except UserError as error:
        said = f"UserError: {error}"
    except BaseException:
        said = traceback.format_exc()
    os.write(writer, (json.dumps({"said": said}) + "\n").encode())
    os._exit(0)


def _watcher(folder: str, fault, at: int, writer: int):
    counts, number, busy = Counter(), 0, False

    def hook(event: str, args: tuple) -> None:
        nonlocal number, busy
        if busy or event not in CHANGES or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        inside = str(path).startswith(folder) or (event != "open" and not os.path.isabs(path) and args[-1] != -1)
        if (event == "open" and not args[2] & WRITES) or path == os.devnull:
            return
        if not inside:
            os.write(writer, f"outside: {event} {path}\n".encode())
            return
        place = f"{event} {without_chance(str(path).removeprefix(folder))}"
        counts[place] += 1
        busy = True
        try:
            if counts[place] <= 2:
                number += 1
                os.write(writer, f"{place}\n".encode())
            if fault is not None and number >= at:
                fault(event)
        finally:
            busy = False

    return hook


def without_chance(path: str) -> str:
    """A path without process numbers and random letters."""
    return re.sub(r"(/\.[0-9a-f]{12})-\w{8}(?=/|$)", r"\1-RANDOM", re.sub(r"\.\d+$", ".PID", path))


def die(_: str) -> None:
    """The process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_halfway(_: str) -> None:
    """The system kills the process in the next file that it writes more than 20 bytes to."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))


def fills_halfway(_: str) -> None:
    """Every file takes 20 bytes from now on, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))


def fails(number: int, *events: str) -> Callable[[str], None]:
    """Every operation, or those of these kinds, ends in this error from now on."""

    def fault(event: str) -> None:
        if event in (events or CHANGES):
            raise OSError(number, os.strerror(number))

    return fault


full = fails(errno.ENOSPC, "open", "os.mkdir")
"""No space, or no inode: nothing is made, but what is there can be moved and deleted."""
read_only = fails(errno.EROFS)
not_ours = fails(errno.EACCES)


def state_of(folder: Path) -> dict[str, object]:
    """Every file and folder below `folder`, with its content but for what differs between two equal runs."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> object:
    if path.is_dir():
        return "folder"
    if path.name == "manifest.json":
        return sorted(json.loads(path.read_text()))
    if path.suffix == ".json":
        return _without_time(json.loads(path.read_text()))
    return path.read_bytes()


def _without_time(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_time(each) for key, each in value.items() if key not in UNEQUAL}
    return [_without_time(each) for each in value] if isinstance(value, list) else value


class Tally:
    """What became of the tries of one fault."""

    def __init__(self, fault: str) -> None:
        self.fault, self.places, self.tries, self.said = fault, set[str](), 0, 0

    def killed(self, place: str) -> None:
        """A try that was killed at this place, and whose second call was right."""
        self.tries += 1
        self.places.add(place)

    def ended(self, outcome: Outcome, place: str) -> None:
        """A try under the fault: it ended well or in a sentence."""
        self.tries += 1
        self.places.add(place)
        if outcome.said:
            self.said += 1
            assert outcome.said.startswith("UserError: "), outcome
            assert len(outcome.said) <= MOST + len("UserError: ")
            assert "\n" not in outcome.said


@contextmanager
def tallied(fault: str) -> Iterator[Tally]:
    """A tally whose line is added to the file that the variable FAULTS names, where the test went well: so 0, 0."""
    tally = Tally(fault)
    yield tally
    if os.environ.get("FAULTS"):
        with open(os.environ["FAULTS"], "a") as file:
            file.write(f"| {fault} | {len(tally.places)} | {tally.tries} | 0 | 0 | {tally.said} |\n")


WORKS = ("run", "table", "images")


class Works:
    """What is tried: each makes one kind of file below a folder, the same every time.

    An evaluation is kept as a sanity check is; so that a try takes a second, there is none, nor a question to git.
    """

    def __init__(self, folder: Path) -> None:
        """Makes a table in `folder`, in a child: a process that has had gradients may have no children that do."""
        self.table = open_table("table4_dgad", parameters(folder, rows=["PGD-AT"], settings=SMALLEST))
        assert not attempt(self._make, folder).said
        self.results = run(replace(plan(self.table), todo=()))
        for number, part in enumerate(("train", "test")):
            (folder / "images" / part / "a").mkdir(parents=True)
            Image.new("RGB", (4, 4), (number, 2, 3)).save(folder / "images" / part / "a" / "0.png")
        self.folder, self.all = folder, {"run": self.a_run, "table": self.a_table, "images": self.images}

    def _make(self, _: Path) -> None:
        run_jobs(dict.fromkeys(self.table_jobs(), 1.0), self.table.workspace, 1)

    def table_jobs(self) -> tuple[Job, ...]:
        """All that the table needs."""
        return plan(self.table).todo

    def a_run(self, folder: Path) -> None:
        """A run with its epoch checkpoints, two evaluations and AutoAttack's partial results."""
        place, control = replace(self.table.workspace, outputs=folder / "outputs"), self.table.controls[0]
        columns = {column.name: replace(column, images=20) for column in self.table.cells[0].columns}
        line = replace(control, columns=(columns["Clean"], replace(columns["AA"], batch_size=2))).do(place)
        assert "Clean" in line
        assert "AA" in line
        place.store.tidy(control.digest)

    def a_table(self, folder: Path) -> None:
        """A table's files and a figure's."""
        report.save(report.compare(self.table, self.results), folder / "outputs")
        figure, axes = plot_style.panels(1, 1, 1, 1)
        axes[0, 0].plot([0, 1])
        plot_style.save(figure, "line", folder / "outputs")

    def images(self, folder: Path) -> None:
        """The decoded images of a folder of images, and what they are."""
        loaded = data.load("folder", data_dir=self.folder / "images", cache_dir=folder / "outputs" / "cache")
        assert loaded.digest() == data.load("folder", data_dir=self.folder / "images").digest()
