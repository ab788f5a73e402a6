"""A table of a paper as a value: which network, data, method and seed every cell is, and the numbers reported."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch

from lib import ROOT
from lib.errors import UserError, check_type, choose
from lib.evaluate import PROTOCOLS, AttackSpec, check_fits, heading
from lib.experiment.jobs import Job
from lib.experiment.networks import Network, Workspace, network
from lib.experiment.parameters import Parameters, Scale, device_of, load_scale, refuse
from lib.experiment.reference import weights_path
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec, method_of
from lib.experiment.table_file import Row, TableFile, pick, read_table
from lib.files import file_digest, from_root
from lib.methods import Piecewise, Weight
from lib.models.checkpoints import chosen, read_state


@dataclass(frozen=True, kw_only=True)
class Cell(Job):
    """The job behind one place in the table; `teacher` is "" for a method without one."""

    student: str
    teacher: str
    row: Row = field(hash=False)
    seed: int


@dataclass(frozen=True)
class Table:
    """A table's file under some parameters at a scale; names become specs when they are first read."""

    name: str
    file: TableFile
    parameters: Parameters
    scale: Scale
    workspace: Workspace
    given: Mapping[str, str]  # a teacher's or a row's name -> the SHA-256 of the weights given for it

    @property
    def scale_name(self) -> str:
        """The scale's name."""
        return self.parameters.scale

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows that run."""
        read = [*map(self.file.read_row, self.file.rows + self.file.more_rows)]
        rows = {row.row: row for row in read}
        repeated = ", ".join(name for name in rows if [row.row for row in read].count(name) > 1)
        refuse(f"table {self.name}", {f"two rows are called {repeated}": repeated})
        names = pick("row", self.parameters.rows or [row["row"] for row in self.file.rows], rows)
        pick("teacher", [*self.given], {**self.file.trained("teachers"), **rows})
        return tuple(rows[name] for name in names)

    @cached_property
    def students(self) -> tuple[str, ...]:
        """The students, or the blocks that stand in their place."""
        students = pick("student", self.parameters.students, dict.fromkeys(self.file.students))
        if not any(set(row.only_students or students) & set(students) for row in self.rows):
            names = ", ".join(row.row for row in self.rows)
            raise UserError(f"no row of {names} is for the students {', '.join(students)}")
        return students

    @cached_property
    def teacher_names(self) -> tuple[str, ...]:
        """The teachers' names; ("",) for a table without teachers."""
        return pick("teacher", self.parameters.teachers, self.file.trained("teachers")) or ("",)

    @cached_property
    def teachers(self) -> dict[str, Network]:
        """The teachers that some row learns from."""
        needed = any(method_of(row.method).needs_teacher for row in self.rows)
        rows = self.file.trained("teachers") if needed else {}
        return {name: self._network("", rows[name], None, 0) for name in self.teacher_names if name in rows}

    @cached_property
    def surrogates(self) -> dict[str, RunSpec]:
        """The networks that a block's attacks are made on, in a table of transfers."""
        rows = self.file.trained("surrogates")
        return {name: self.run("", rows[name], None, 0) for name in self.students if name in rows}

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Student by teacher by row by seed; a method without a teacher stands once."""
        presets = choose("protocol", self.protocol, {"": {}, **PROTOCOLS})
        more = self._columns({f"{name} ({self.protocol})": preset for name, preset in presets.items()})
        return tuple(self._cells(self.rows, (*self.columns, *self._named(self.file.control_columns), *more)))

    @cached_property
    def controls(self) -> tuple[Cell, ...]:
        """The networks without a defence that are measured beside the rows."""
        rows = tuple(map(self.file.read_row, self.file.controls))
        return tuple(self._cells(rows, self._named(self.file.control_columns)))

    @cached_property
    def columns(self) -> tuple[AttackSpec, ...]:
        """The attacks of the paper's columns."""
        return self._named(self.file.columns)

    @property
    def protocol(self) -> str:
        """Which protocol the cells are measured under as well, its columns' names followed by it in brackets; or ""."""
        return self.parameters.protocol or self.file.other_protocol

    @property
    def data(self) -> DataSpec:
        """The table's data."""
        return self.data_of("")

    def data_of(self, name: str) -> DataSpec:
        """The data that stands for the paper's `name`, or for the table's, at this scale."""
        stand_in = choose("data set of this scale", name or self.file.dataset, self.scale.datasets)
        held_out = self.scale.held_out if self.scale.selection == "held_out" else 0
        return self.workspace.describe(stand_in, self.scale.train_images, held_out)

    @property
    def reported(self) -> dict[str, Any]:
        """The paper's entry for this item, as params/reported/<paper>.yaml has it."""
        return self.file.reported()

    def headings(self) -> dict[str, str]:
        """Each column's name with what this scale reduces."""
        _, images = self.workspace.counts(self.data)
        return {column.name: heading(column, images) for column in self.columns}

    def run(self, student: str, row: Row, teacher: Network | None, seed: int) -> RunSpec:
        """The run of one cell."""
        scale = self.scale
        return RunSpec(
            data=self.data_of(row.dataset),
            model=self._model(row.model or self.file.student_model or student),
            method=row.method,
            weights=tuple(sorted(self._weights(student, row).items())),
            teacher=teacher,
            schedule=scale.schedule(row.schedule or row.method),
            epsilon=scale.from_paper(row.epsilon_255) or scale.epsilon_255 / 255,
            step_size=scale.from_paper(row.step_size_255) or scale.step_size_255 / 255,
            attack_steps=scale.attack_steps,
            selection=scale.selection,
            selection_images=scale.test_images if scale.selection == "test" else 0,
            seed=seed + row.seed,
            precision=scale.precision,
            max_steps=scale.max_steps,
            guide=self._model(row.guide) if row.guide else "",
            strategy=row.strategy_at(scale),
            awp=row.perturbation(),
            average=row.average,
            parallel=scale.parallel,
        )

    def _cells(self, rows: tuple[Row, ...], columns: tuple[AttackSpec, ...]) -> Iterator[Cell]:
        seeds = dict.fromkeys(self.parameters.seeds)
        for student in self.students:
            surrogate = self.surrogates.get(student)
            made_on = surrogate.digest if surrogate else ""
            on = tuple(replace(column, surrogate=made_on) for column in dict.fromkeys(columns))
            for row in (row for row in rows if student in (row.only_students or self.students)):
                row = self.file.in_block(row, student)
                teachers = self.teachers if method_of(row.method).needs_teacher else {"": None}
                for (name, teacher), seed in product(teachers.items(), seeds):
                    net = self._network(student, row, teacher, seed)
                    if surrogate == net:
                        raise UserError(f"the surrogate {student} is the network it attacks ({row.row})")
                    label = f"{row.row}, {student}" + (f" ← {name}" if name else "")
                    label += f", seed {seed}" if len(seeds) > 1 else ""
                    job = (label, net, self.data_of(row.dataset), on, row.checkpoint, (surrogate,) if surrogate else ())
                    yield Cell(*job, student=student, teacher=name, row=row, seed=seed)

    def _network(self, student: str, row: Row, teacher: Network | None, seed: int) -> Network:
        """The weights given for a row or a teacher by its name, in their own layout, or the run that trains it."""
        run = self.run(student, row, teacher, seed)
        if (sha256 := self.given.get(row.row)) is None:
            return run
        path = self.workspace.weights_files[sha256]
        return GivenWeights(chosen(run.model, read_state(path), path), sha256)

    def _named(self, names: list[str]) -> tuple[AttackSpec, ...]:
        presets = choose("protocol", self.file.protocol or self.file.paper, PROTOCOLS) | self.file.same_as
        return self._columns({name: presets.get(name, name) for name in names})

    def _columns(self, presets: Mapping[str, str]) -> tuple[AttackSpec, ...]:
        return tuple(replace(self.scale.column(preset), name=name) for name, preset in presets.items())

    def _model(self, name: str) -> str:
        return choose("model of this scale", name, self.scale.models)

    def _weights(self, student: str, row: Row) -> dict[str, Weight]:
        """The method's weights, with the row's for this student in their place."""
        method, classes = method_of(row.method), self.file.block(student).classes
        weights: dict[str, Weight] = dict(method.all_weights)
        per_student = any(isinstance(value, dict) for value in row.weights.values())
        for key, value in (row.weights.get(student, {}) if per_student else row.weights).items():
            where = f"row {row.row}: weight {key}"
            burn_in = key == "burn_in" and "active" in weights  # the share of the training before a term is active
            choose(f"weight of method {row.method}", key, {**weights, "burn_in": 0} if burn_in else weights)
            check_type(value, float, where)
            share = f"it must be a share of the training in [0, 1], got {value}"
            refuse(where, {share: burn_in and not 0 <= value <= 1})
            weights |= {"active": Piecewise((value,), (0.0, 1.0))} if burn_in else {key: float(value)}
        for key in method.beside_class_means if classes else ():
            own, _ = self.workspace.counts(self.data_of(row.dataset))
            weights[key] = cast(float, weights[key]) * (classes / own)
        return weights


def open_table(name: str, parameters: Parameters) -> Table:
    """The table params/tables/<name>.yaml under these parameters; nothing is trained.

    Paths are taken from the checkout. On a CPU it sets torch to one thread, as in every worker: equal bits however many
    runs go on at once. Raises a UserError for whatever in the parameters, the scale or the data does not fit.
    """
    file, scale = read_table(name), load_scale(parameters)
    if replaced := sorted(parameters.settings.keys() - {"execution"}):
        other_data = f"its settings on other data than its own, radius {scale.epsilon_255:g}/255"
        title = other_data if "datasets" in replaced else scale.title
        scale = replace(scale, title=f"{title} (replaced: {', '.join(replaced)})")
    files = {name: weights_path(path) for name, path in parameters.teacher_files.items()}
    given = {name: file_digest(path) for name, path in files.items()}
    folders, device = (from_root(parameters.outputs), from_root(parameters.data_dir)), device_of(parameters.device)
    weights_files = {given[name]: path for name, path in files.items()}
    workspace = Workspace(*folders, parameters.download, str(device), weights_files, scale.execution)
    if workspace.device == "cpu":
        torch.set_num_threads(1)
    workspace.store  # noqa: B018  an outputs folder that cannot be written is refused now, not after the training
    table = Table(name, file, parameters, scale, workspace, given)
    for cell in table.cells + table.controls:
        classes, images = workspace.counts(cell.data)
        for column in cell.columns:
            check_fits(column, images, classes)
    teachers = {(net, table.data) for net in table.teachers.values()}
    for net, data in teachers | {(cell.network, cell.data) for cell in table.cells}:
        if isinstance(net, GivenWeights):
            network(net, data, workspace)
    return table


def show_path(path: Path) -> str:
    """A path as a reader should see it: relative to the checkout where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
