"""A table of a paper as a value: which network, data, method and seed every cell is, and the numbers reported."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from lib import ROOT
from lib.errors import UserError, check_type, choose
from lib.evaluate import PROTOCOLS, AttackSpec, check_fits, heading
from lib.experiment.networks import Network, Workspace, describe_data, network
from lib.experiment.parameters import PARAMS, Parameters, Scale, device_of, load_scale, read_yaml
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec, method_of
from lib.experiment.table_file import Row, TableFile, pick, read_awp, read_strategy, read_table
from lib.files import file_digest
from lib.methods import Piecewise, Weight
from lib.methods.strategies import needs_network, scaled
from lib.methods.strategy import ATTACK_SETTINGS, PER_IMAGE_WEIGHTS, StrategySpec


@dataclass(frozen=True)
class Cell:
    """One trained network: where it stands in the table, what is behind it, and the columns it is measured under."""

    student: str
    teacher: str  # "" for a method without one
    row: Row
    seed: int
    network: Network
    data: DataSpec
    columns: tuple[AttackSpec, ...]
    surrogate: RunSpec | None = None


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
        rows = {row.row: row for row in map(self.file.read_row, self.file.rows + self.file.more_rows)}
        names = pick("row", self.parameters.rows or [row["row"] for row in self.file.rows], rows)
        for name in self.given:
            choose("teacher", name, {**self.file.trained("teachers"), **rows})
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
        if not any(method_of(row.method).needs_teacher for row in self.rows):
            return {}
        teachers = self.file.trained("teachers")
        return {name: self._network("", teachers[name], None, 0) for name in self.teacher_names if name}

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
        return self.parameters.protocol or self.file.also

    @property
    def data(self) -> DataSpec:
        """The table's data."""
        return self.data_of("")

    def data_of(self, name: str) -> DataSpec:
        """The data that stands for the paper's `name`, or for the table's, at this scale."""
        scale = self.scale
        stand_in = choose("data set of this scale", name or self.file.dataset, scale.datasets)
        held_out = scale.held_out if scale.selection == "held_out" else 0
        return describe_data(self.workspace, stand_in, scale.train_images, held_out)

    @property
    def reported(self) -> dict[str, Any]:
        """The paper's entry for this item, as params/reported/<paper>.yaml has it."""
        return self.reported_for("")

    def reported_for(self, student: str) -> dict[str, Any]:
        """The entry that a block's numbers stand in: the table's, where the block names no other; {} without an item.

        Raises:
            UserError: the paper has no such item.
        """
        entry: Any = read_yaml(PARAMS / "reported" / f"{self.file.paper}.yaml")
        item = self.file.block(student).item or self.file.item
        for key in item.split(".") if item else ():
            entry = entry[int(key)] if isinstance(entry, list) else choose(f"item of {self.file.paper}", key, entry)
        return dict(entry) if item else {}

    def headings(self) -> dict[str, str]:
        """Each column's name with what this scale reduces."""
        images = len(self.workspace.dataset(self.data).test.labels)
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
            strategy=self._strategy(row) if row.strategy else None,
            awp=read_awp(row) if row.awp else None,
            average=row.average,
        )

    def _cells(self, rows: tuple[Row, ...], columns: tuple[AttackSpec, ...]) -> Iterator[Cell]:
        columns = tuple(dict.fromkeys(columns))
        for student in self.students:
            surrogate = self.surrogates.get(student)
            on = tuple(replace(column, surrogate=surrogate.digest if surrogate else "") for column in columns)
            for row in (row for row in rows if student in (row.only_students or self.students)):
                own = self._in_block(row, student)
                for name, teacher in self.teachers.items() if method_of(row.method).needs_teacher else [("", None)]:
                    for seed in dict.fromkeys(self.parameters.seeds):
                        net = self._network(student, own, teacher, seed)
                        if surrogate is not None and surrogate == net:
                            raise UserError(f"the surrogate {student} is the network it attacks ({row.row})")
                        yield Cell(student, name, own, seed, net, self.data_of(own.dataset), on, surrogate)

    def _network(self, student: str, row: Row, teacher: Network | None, seed: int) -> Network:
        """The weights given for a row or a teacher by its name, or the run that trains it."""
        run = self.run(student, row, teacher, seed)
        return GivenWeights(run.model, self.given[row.row]) if row.row in self.given else run

    def _in_block(self, row: Row, student: str) -> Row:
        block = self.file.block(student)
        given: dict[str, Any] = {"dataset": block.dataset, "model": block.model}
        if method_of(row.method).trains_guide:
            given |= {"guide": block.guide, "schedule": block.schedule}
        return replace(row, **{name: value for name, value in given.items() if value})

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
            burn_in = key == "burn_in" and "active" in weights  # the share of the training before a term is active
            choose(f"weight of method {row.method}", key, {**weights, "burn_in": 0} if burn_in else weights)
            check_type(value, float, f"row {row.row}: weight {key}")
            if not (0 <= value <= 1 if burn_in else math.isfinite(value)):
                wanted = "a share of the training in [0, 1]" if burn_in else "finite"
                raise UserError(f"row {row.row}: weight {key} must be {wanted}, got {value}")
            weights |= {"active": Piecewise((value,), (0.0, 1.0))} if burn_in else {key: float(value)}
        for key in method.beside_class_means if classes else ():
            own = len(self.workspace.dataset(self.data_of(row.dataset)).classes)
            weights[key] = cast(float, weights[key]) * (classes / own)
        return weights

    def _strategy(self, row: Row) -> StrategySpec:
        """The row's strategy, brought to the scale's radius, with the scale's network."""
        spec = read_strategy(row)
        weights = [name for name in method_of(row.method).weights if name in PER_IMAGE_WEIGHTS]
        for name in dict(spec.options):
            settable = dict.fromkeys((*ATTACK_SETTINGS, *weights))
            choose(f"setting of the method {row.method} for a strategy to pick", name, settable)
        if needs_network(spec):
            spec = replace(spec, model=self._model(spec.model or "ResNet18"))
        return scaled(spec, self.scale.epsilon_255 / 255)


def open_table(name: str, parameters: Parameters) -> Table:
    """The table params/tables/<name>.yaml under these parameters; nothing is trained.

    Paths are taken from the checkout. On a CPU it sets torch to one thread, as in every worker: equal bits however many
    runs go on at once.

    Raises:
        UserError: whatever in the parameters, the scale or the data does not fit, in one sentence.
    """
    if not parameters.seeds:
        raise UserError("parameter seeds is empty; give at least one, such as [0]")
    file, scale = read_table(name), load_scale(parameters)
    if "datasets" in parameters.settings:
        title = f"its settings on other data than its own, radius {scale.epsilon_255:g}/255"
        scale = replace(scale, title=title)
    files = {name: _from_root(path) for name, path in parameters.teacher_files.items()}
    given = {name: file_digest(path) for name, path in files.items()}
    workspace = Workspace(
        outputs=_from_root(parameters.outputs),
        data_dir=_from_root(parameters.data_dir),
        download=parameters.download,
        device=str(device_of(parameters.device)),
        weights_files={given[name]: path for name, path in files.items()},
        execution=scale.execution,
    )
    if workspace.device == "cpu":
        torch.set_num_threads(1)
    workspace.store  # noqa: B018  an outputs folder that cannot be written is refused now, not after the training
    table = Table(name, file, parameters, scale, workspace, given)
    _check_fits(table)
    return table


def _check_fits(table: Table) -> None:
    """That every column can be measured on its cell's data, and that every given file fits its network."""
    given = {(net, table.data) for net in table.teachers.values()} | {(cell.network, cell.data) for cell in table.cells}
    for cell in table.cells + table.controls:
        dataset = table.workspace.dataset(cell.data)
        for column in cell.columns:
            check_fits(column, len(dataset.test.labels), len(dataset.classes))
    for net, data in given:
        if isinstance(net, GivenWeights):
            network(net, data, table.workspace)


def show_path(path: Path) -> str:
    """A path as a reader should see it: relative to the checkout where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _from_root(path: str) -> Path:
    return ROOT / Path(path).expanduser()
