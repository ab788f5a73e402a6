"""A table of a paper as a value: which student, teacher, method and seed every cell is, and the numbers reported."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lib import ROOT
from lib.checkpoints import file_digest
from lib.errors import UserError, choose
from lib.evaluate import Column
from lib.methods import METHODS
from lib.parameters import PARAMS, Parameters, Scale, device_of, load_scale, read_yaml
from lib.runs import Network, Place, describe_data, network
from lib.spec import DataSpec, GivenWeights, RunSpec, typed

TEACHER_METHOD = "pgd_at"  # how the companion trains a teacher that no file is given for


@dataclass(frozen=True)
class Row:
    """One line of a table: a method by its key, under the name the paper prints, with weights per student."""

    row: str
    method: str
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    checkpoint: str = "best"
    only_students: tuple[str, ...] = ()
    quoted: dict[str, str] = field(default_factory=dict)  # student -> the paper its reported numbers were copied from


@dataclass(frozen=True)
class TableFile:
    """What params/tables/<name>.yaml holds. `more_rows` and `controls` run when asked for and always, respectively."""

    paper: str
    item: str
    title: str
    columns: list[str]
    students: list[str]
    teachers: list[str]
    rows: list[Any]
    more_rows: list[Any] = field(default_factory=list)
    controls: list[Any] = field(default_factory=list)
    control_columns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One trained student: where it stands in the table, and the run behind it."""

    student: str
    teacher: str  # "" for a method without one
    row: Row
    seed: int
    spec: RunSpec


@dataclass(frozen=True)
class Table:
    """A table at a scale, ready to be planned and run."""

    name: str
    file: TableFile
    scale_name: str
    scale: Scale
    place: Place
    workers: int
    data: DataSpec
    students: tuple[str, ...]
    teacher_names: tuple[str, ...]
    teachers: dict[str, Network]  # those that some row learns from
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    controls: tuple[Cell, ...]
    columns: tuple[Column, ...]
    control_columns: tuple[Column, ...]
    replaced: dict[str, Any]  # the settings that the parameters put in place of the scale's

    @property
    def reported(self) -> dict[str, Any]:
        """The paper's entry for this item, as params/reported/<paper>.yaml has it."""
        return read_yaml(PARAMS / "reported" / f"{self.file.paper}.yaml")[self.file.item]

    def headings(self) -> dict[str, str]:
        """Each column's name with what this scale reduces."""
        images = len(self.place.dataset(self.data).test.labels)
        return {column.name: column.heading(images) for column in self.columns}


def open_table(name: str, parameters: Parameters) -> Table:
    """The table params/tables/<name>.yaml under these parameters; nothing is trained.

    Paths are taken from the checkout. On a CPU it sets torch to one thread, as in every worker: equal bits however many
    runs go on at once.

    Raises:
        UserError: whatever in the parameters, the scale or the data does not fit, in one sentence.
    """
    files = {path.stem: path for path in sorted((PARAMS / "tables").glob("*.yaml"))}
    file: TableFile = typed(TableFile, read_yaml(choose("table", name, files)), f"table {name}")
    scale = load_scale(parameters)
    files_of = {teacher: _from_root(path) for teacher, path in parameters.teacher_files.items()}
    digests = {teacher: file_digest(path) for teacher, path in files_of.items()}
    place = Place(
        outputs=_from_root(parameters.outputs),
        data_dir=_from_root(parameters.data_dir),
        download=parameters.download,
        device=str(device_of(parameters)),
        weights_files={digests[teacher]: path for teacher, path in files_of.items()},
    )
    if place.device == "cpu":
        torch.set_num_threads(1)
    place.store  # noqa: B018  an outputs folder that cannot be written is said now, not after the training
    data = describe_data(place, scale.dataset, scale.train_images, scale.held_out)
    builder = _Builder(file, scale, parameters, data, digests)
    for net in builder.teachers.values():
        if isinstance(net, GivenWeights):
            network(net, data, place)  # a file that does not fit is said now
    return Table(
        name=name,
        file=file,
        scale_name=parameters.scale,
        scale=scale,
        place=place,
        workers=parameters.workers,
        data=data,
        students=builder.students,
        teacher_names=builder.teacher_names,
        teachers=builder.teachers,
        rows=builder.rows,
        cells=tuple(builder.cells(builder.rows)),
        controls=tuple(builder.cells(tuple(_row(row) for row in file.controls))),
        columns=tuple(scale.column(column) for column in file.columns),
        control_columns=tuple(scale.column(column) for column in file.control_columns),
        replaced=parameters.settings,
    )


def _from_root(path: str) -> Path:
    return ROOT / Path(path).expanduser()


def _row(given: Any) -> Row:
    row: Row = typed(Row, given, "row")
    choose("method", row.method, METHODS)
    choose("checkpoint", row.checkpoint, dict.fromkeys(("best", "last")))
    return row


def _picked(what: str, wanted: list[str], known: dict[str, Any], default: list[str]) -> list[Any]:
    return [choose(what, name, known) for name in dict.fromkeys(wanted or default)]


class _Builder:
    """Turns names into specs, for one table and one set of parameters."""

    def __init__(
        self, file: TableFile, scale: Scale, parameters: Parameters, data: DataSpec, files: dict[str, str]
    ) -> None:
        self.scale, self.parameters, self.data, self.files = scale, parameters, data, files
        default = [_row(row) for row in file.rows]
        known = {row.row: row for row in default + [_row(row) for row in file.more_rows]}
        self.rows = tuple(_picked("row", parameters.rows, known, [row.row for row in default]))
        names = (
            dict(zip(file.students, file.students, strict=True)),
            dict(zip(file.teachers, file.teachers, strict=True)),
        )
        self.students = tuple(_picked("student", parameters.students, names[0], file.students))
        self.teacher_names = tuple(_picked("teacher", parameters.teachers, names[1], file.teachers))
        for name in files:
            choose("teacher", name, names[1])
        if not parameters.seeds:
            raise UserError("parameter seeds is empty; give at least one, such as [0]")
        taught = any(METHODS[row.method].needs_teacher for row in self.rows)
        self.teachers = {name: self.teacher(name) for name in self.teacher_names if taught}

    def teacher(self, name: str) -> Network:
        """The weights given for a teacher, or the run that trains it."""
        if name in self.files:
            return GivenWeights(self.model(name), self.files[name])
        return self.run(name, Row("teacher", TEACHER_METHOD), None, seed=0)

    def cells(self, rows: tuple[Row, ...]) -> Iterator[Cell]:
        """Student by teacher by row by seed; a method without a teacher stands once."""
        for student in self.students:
            for row in rows:
                if row.only_students and student not in row.only_students:
                    continue
                taught = METHODS[row.method].needs_teacher
                for name, teacher in self.teachers.items() if taught else [("", None)]:
                    for seed in dict.fromkeys(self.parameters.seeds):
                        yield Cell(student, name, row, seed, self.run(student, row, teacher, seed))

    def run(self, name: str, row: Row, teacher: Network | None, seed: int) -> RunSpec:
        """The run of one cell."""
        known = METHODS[row.method].weights
        for key in (chosen := row.weights.get(name, {})):
            choose(f"weight of method {row.method}", key, known)
        weights = {**known, **{key: float(value) for key, value in chosen.items()}}
        return RunSpec(
            data=self.data,
            model=self.model(name),
            method=row.method,
            weights=tuple(sorted(weights.items())),
            teacher=teacher,
            schedule=self.scale.schedule(row.method),
            epsilon=self.scale.epsilon / 255,
            step_size=self.scale.step_size / 255,
            attack_steps=self.scale.attack_steps,
            selection=self.scale.selection,
            selection_images=self.scale.test_images if self.scale.selection == "test" else 0,
            seed=seed,
            precision=self.scale.precision,
            max_steps=self.scale.max_steps,
        )

    def model(self, name: str) -> str:
        """The network that stands for the paper's `name` at this scale."""
        return choose("model of this scale", name, self.scale.models)


def show_path(path: Path) -> str:
    """A path as a reader should see it: relative to the checkout where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
