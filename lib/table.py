"""A table of a paper as a value: which network, data, method and seed every cell is, and the numbers reported."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from lib import ROOT
from lib.checkpoints import file_digest
from lib.errors import UserError, choose
from lib.evaluate import PROTOCOLS, Column, check_fits, heading
from lib.methods import METHODS, Piecewise
from lib.parameters import PARAMS, Parameters, Scale, device_of, load_scale, paper_schedules, read_yaml
from lib.runs import Network, Place, describe_data, network
from lib.spec import DataSpec, GivenWeights, RunSpec, check_type, typed
from lib.strategies import ATTACK_SETTINGS, PER_IMAGE_WEIGHTS, STRATEGIES, UNITS, StrategySpec, needs_network, scaled
from lib.weights import AWP


@dataclass(frozen=True)
class Row:
    """One line of a table: a method by its key, under the name the paper prints.

    `weights` are numbers, or per student a mapping of numbers. `model`, `dataset` and `schedule` (a schedule's name)
    are for rows that do not take the student's, the table's and the method's. `reported` is the row's key in the
    paper's numbers where that is not its name. `epsilon` and `step_size` are for a row that is not trained at the
    scale's: in 1/255 where the scale's radius is 8/255, and in proportion elsewhere.
    """

    row: str
    method: str
    weights: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = "best"
    only_students: tuple[str, ...] = ()
    quoted: dict[str, str] = field(default_factory=dict)  # student -> the paper its reported numbers were copied from
    model: str = ""
    dataset: str = ""
    schedule: str = ""
    seed: int = 0  # added to the parameters' seeds
    reported: str = ""
    guide: str = ""  # the model trained beside the student, where the method has one
    strategy: str = ""
    strategy_settings: dict[str, Any] = field(default_factory=dict)  # options in 1/255 at a radius of 8/255
    awp: dict[str, Any] = field(default_factory=dict)
    average: float = 0.0
    epsilon: float = 0.0
    step_size: float = 0.0


@dataclass(frozen=True)
class Block:
    """What the rows of one block take in place of what they say themselves, where the blocks are no networks.

    `item` is where the paper prints the block's numbers.
    """

    dataset: str = ""
    model: str = ""
    guide: str = ""  # for the rows that train one
    schedule: str = ""  # for the same rows
    classes: int = 0  # of the paper's data: a stand-in with fewer keeps such weights in proportion (beside_class_means)
    item: str = ""


@dataclass(frozen=True)
class Trained:
    """A teacher or a surrogate: under which name, which network, how it is trained where no file is given."""

    name: str
    model: str = ""
    method: str = "pgd_at"
    seed: int = 0
    schedule: str = ""


@dataclass(frozen=True)
class TableFile:
    """What params/tables/<name>.yaml holds. `more_rows` run when asked for, `controls` always.

    Where `surrogates` are named, they take the students' place: each block's attacks are made on its surrogate, and the
    network attacked is `student_model`. A student that `blocks` names is a block of another kind, such as a data set.
    `item` is the way to an entry of the paper's numbers, with a dot at each turn.
    """

    paper: str
    item: str
    title: str
    columns: list[str]
    students: list[str]
    rows: list[Any]
    teachers: list[Any] = field(default_factory=list)
    surrogates: list[Any] = field(default_factory=list)
    student_model: str = ""
    dataset: str = "CIFAR10"
    protocol: str = ""  # whose names the columns have; empty: the paper's
    also: str = ""  # under whose protocol the networks are measured as well, where the parameters say no other
    same_as: dict[str, str] = field(
        default_factory=dict
    )  # a column's name here -> its preset, where not the protocol's
    more_rows: list[Any] = field(default_factory=list)
    controls: list[Any] = field(default_factory=list)
    control_columns: list[str] = field(default_factory=list)
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    own_images: dict[str, int] = field(default_factory=dict)  # column -> images behind the paper's own rows, if not all
    quoted_images: dict[str, dict[str, int]] = field(default_factory=dict)  # the same per source of quoted rows


@dataclass(frozen=True)
class Cell:
    """One trained network: where it stands in the table, what is behind it, and the columns it is measured under."""

    student: str
    teacher: str  # "" for a method without one
    row: Row
    seed: int
    network: Network
    data: DataSpec
    columns: tuple[Column, ...]
    surrogate: RunSpec | None = None


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
    teacher_names: tuple[str, ...]  # ("",) for a table without teachers
    teachers: dict[str, Network]  # those that some row learns from
    surrogates: dict[str, RunSpec]
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    controls: tuple[Cell, ...]
    columns: tuple[Column, ...]
    protocol: str  # which the cells are measured under as well, its columns' names followed by it in brackets; or ""
    replaced: dict[str, Any]  # the settings that the parameters put in place of the scale's

    @property
    def reported(self) -> dict[str, Any]:
        """The paper's entry for this item, as params/reported/<paper>.yaml has it."""
        return self.reported_for("")

    def reported_for(self, student: str) -> dict[str, Any]:
        """The entry that a block's numbers stand in: the table's, where the block names no other."""
        entry: Any = read_yaml(PARAMS / "reported" / f"{self.file.paper}.yaml")
        for key in (self.file.blocks.get(student, {}).get("item") or self.file.item).split("."):
            entry = entry[int(key)] if isinstance(entry, list) else entry[key]
        return dict(entry)

    def headings(self) -> dict[str, str]:
        """Each column's name with what this scale reduces."""
        images = len(self.place.dataset(self.data).test.labels)
        return {column.name: heading(column, images) for column in self.columns}


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
    if "datasets" in parameters.settings:
        scale = replace(scale, title=f"its settings on other data than its own, radius {scale.epsilon:g}/255")
    weights = {name: _from_root(path) for name, path in parameters.teacher_files.items()}
    digests = {name: file_digest(path) for name, path in weights.items()}
    place = Place(
        outputs=_from_root(parameters.outputs),
        data_dir=_from_root(parameters.data_dir),
        download=parameters.download,
        device=str(device_of(parameters.device)),
        weights_files={digests[name]: path for name, path in weights.items()},
    )
    if place.device == "cpu":
        torch.set_num_threads(1)
    place.store  # noqa: B018  an outputs folder that cannot be written is said now, not after the training
    builder = _Builder(file, scale, parameters, place, digests)
    controls = tuple(_row(row) for row in file.controls)
    table = Table(
        name=name,
        file=file,
        scale_name=parameters.scale,
        scale=scale,
        place=place,
        workers=parameters.workers,
        data=builder.data(file.dataset),
        students=builder.students,
        teacher_names=builder.teacher_names,
        teachers=builder.teachers,
        surrogates=builder.surrogates,
        rows=builder.rows,
        cells=tuple(builder.cells(builder.rows, builder.all_columns)),
        controls=tuple(builder.cells(controls, builder.control_columns)),
        columns=builder.columns,
        protocol=builder.protocol,
        replaced=parameters.settings,
    )
    _check_fits(table)
    return table


def _check_fits(table: Table) -> None:
    """That every column can be measured on its cell's data, and that every given file fits its network."""
    given = {(net, table.data) for net in table.teachers.values() if isinstance(net, GivenWeights)}
    for cell in table.cells + table.controls:
        dataset = table.place.dataset(cell.data)
        for column in cell.columns:
            check_fits(column, len(dataset.test.labels), len(dataset.classes))
        if isinstance(cell.network, GivenWeights):
            given.add((cell.network, cell.data))
    for net, data in given:
        network(net, data, table.place)


def _from_root(path: str) -> Path:
    return ROOT / Path(path).expanduser()


def _row(given: Any) -> Row:
    row: Row = typed(Row, given, "row")
    choose("method", row.method, METHODS)
    choose("checkpoint", row.checkpoint, dict.fromkeys(("best", "last")))
    if row.schedule:
        choose("schedule", row.schedule, paper_schedules())
    if row.strategy:
        choose("strategy", row.strategy, STRATEGIES)
        if METHODS[row.method].objective is None:
            raise UserError(f"row {row.row}: the method {row.method} makes no attack for a strategy to set")
    elif row.strategy_settings:
        raise UserError(f"row {row.row} has strategy_settings and no strategy")
    if METHODS[row.method].trains_guide and not row.guide:
        raise UserError(f"row {row.row}: the method {row.method} trains a guide; name its model as guide")
    if row.guide and not METHODS[row.method].trains_guide:
        raise UserError(f"row {row.row}: the method {row.method} trains no guide")
    if not (0 <= row.epsilon <= 255 and 0 <= row.step_size <= 255):
        raise UserError(f"row {row.row}: epsilon and step_size are in 1/255, got {row.epsilon} and {row.step_size}")
    if not 0 <= row.average < 1:
        raise UserError(f"row {row.row}: average is a decay in [0, 1), 0 for none, got {row.average}")
    return row


def _burn_in(row: Row, share: Any) -> Piecewise:
    """The weight `active`: 0 for a share of the training, then 1."""
    check_type(share, float, f"row {row.row}: burn_in")
    if not 0 <= share <= 1:
        raise UserError(f"row {row.row}: burn_in is a share of the training in [0, 1], got {share}")
    return Piecewise((share,), (0.0, 1.0))


def _in_unit(options: Any, where: str) -> dict[str, tuple[float, ...]]:
    """A row's options with radii and step sizes divided by 255."""
    check_type(options, dict[str, list[float]], f"{where}: options")
    return {name: tuple(value / UNITS.get(name, 1) for value in values) for name, values in options.items()}


def _trained(given: Any) -> Trained:
    trained: Trained = typed(Trained, {"name": given} if isinstance(given, str) else given, "teacher")
    choose("method", trained.method, METHODS)
    return trained


def _picked(what: str, wanted: list[str], known: Mapping[str, Any]) -> tuple[str, ...]:
    for name in wanted:
        choose(what, name, known)
    return tuple(dict.fromkeys(wanted or known))


class _Builder:
    """Turns names into specs, for one table and one set of parameters."""

    def __init__(
        self, file: TableFile, scale: Scale, parameters: Parameters, place: Place, digests: dict[str, str]
    ) -> None:
        self.file, self.scale, self.parameters, self.place, self.digests = file, scale, parameters, place, digests
        self.specs: dict[str, DataSpec] = {}
        default = [_row(row) for row in file.rows]
        known = {row.row: row for row in default + [_row(row) for row in file.more_rows]}
        names = _picked("row", parameters.rows or [row.row for row in default], known)
        self.rows = tuple(known[name] for name in names)
        self.students = _picked("student", parameters.students, dict.fromkeys(file.students))
        self.blocks = {name: typed(Block, block, f"block {name}") for name, block in file.blocks.items()}
        for block in self.blocks.values():
            choose("schedule", block.schedule, {"": None, **paper_schedules()})
        teachers = {trained.name: trained for trained in map(_trained, file.teachers)}
        self.teacher_names = _picked("teacher", parameters.teachers, teachers) or ("",)
        for name in digests:
            choose("teacher", name, {**teachers, **known})
        if not parameters.seeds:
            raise UserError("parameter seeds is empty; give at least one, such as [0]")
        taught = any(METHODS[row.method].needs_teacher for row in self.rows)
        self.teachers = {name: self.trained(teachers[name]) for name in self.teacher_names if taught and name}
        surrogates = {trained.name: trained for trained in map(_trained, file.surrogates)}
        self.surrogates = {name: self.surrogate(surrogates[name]) for name in self.students if name in surrogates}
        if not any(set(row.only_students or self.students) & set(self.students) for row in self.rows):
            raise UserError(f"no row of {', '.join(names)} is for the students {', '.join(self.students)}")
        own = choose("protocol", file.protocol or file.paper, PROTOCOLS) | file.same_as
        self.columns = self.named({name: own.get(name, name) for name in file.columns})
        self.control_columns = self.named({name: own.get(name, name) for name in file.control_columns})
        self.protocol = parameters.protocol or file.also
        other = choose("protocol", self.protocol, PROTOCOLS) if self.protocol else {}
        also = self.named({f"{name} ({self.protocol})": preset for name, preset in other.items()})
        self.all_columns = tuple(dict.fromkeys(self.columns + self.control_columns + also))

    def named(self, presets: Mapping[str, str]) -> tuple[Column, ...]:
        """The presets at this scale, under the names that the table gives them."""
        return tuple(replace(self.scale.column(preset), name=name) for name, preset in presets.items())

    def data(self, name: str) -> DataSpec:
        """The data that stands for the paper's `name` at this scale."""
        if name not in self.specs:
            scale, stand_in = self.scale, choose("data set of this scale", name, self.scale.datasets)
            held_out = scale.held_out if scale.selection == "held_out" else 0
            self.specs[name] = describe_data(self.place, stand_in, scale.train_images, held_out)
        return self.specs[name]

    def trained(self, trained: Trained) -> Network:
        """The weights given for a teacher, or the run that trains it."""
        if trained.name in self.digests:
            return GivenWeights(self.model(trained.model or trained.name), self.digests[trained.name])
        return self.surrogate(trained)

    def surrogate(self, trained: Trained) -> RunSpec:
        """The run that trains a network named beside the rows."""
        row = Row(trained.name, trained.method, model=trained.model or trained.name, schedule=trained.schedule)
        return self.run("", row, None, trained.seed)

    def cells(self, rows: tuple[Row, ...], columns: tuple[Column, ...]) -> Iterator[Cell]:
        """Student by teacher by row by seed; a method without a teacher stands once."""
        for student in self.students:
            for row in rows:
                if row.only_students and student not in row.only_students:
                    continue
                taught = METHODS[row.method].needs_teacher
                own = self.in_block(row, student)
                for name, teacher in self.teachers.items() if taught else [("", None)]:
                    for seed in dict.fromkeys(self.parameters.seeds):
                        yield self.cell(student, name, own, seed, teacher, columns)

    def in_block(self, row: Row, student: str) -> Row:
        """The row as its block has it."""
        block = self.blocks.get(student, Block())
        given = {"dataset": block.dataset, "model": block.model}
        if METHODS[row.method].trains_guide:
            given |= {"guide": block.guide, "schedule": block.schedule}
        return replace(row, **{name: value for name, value in given.items() if value})

    def cell(
        self, student: str, name: str, row: Row, seed: int, teacher: Network | None, columns: tuple[Column, ...]
    ) -> Cell:
        """One cell; in a table of transfers its attacks are made on the block's surrogate."""
        spec: Network = self.run(student, row, teacher, seed)
        if row.row in self.digests:
            spec = GivenWeights(self.model(row.model or student), self.digests[row.row])
        surrogate = self.surrogates.get(student)
        if surrogate is not None:
            if surrogate == spec:
                raise UserError(
                    f"the surrogate {student} is the network it attacks ({row.row}); a transfer wants another"
                )
            columns = tuple(replace(column, surrogate=surrogate.digest) for column in columns)
        return Cell(student, name, row, seed, spec, self.data(row.dataset or self.file.dataset), columns, surrogate)

    def run(self, student: str, row: Row, teacher: Network | None, seed: int) -> RunSpec:
        """The run of one cell."""
        known, classes = METHODS[row.method].all_weights, self.blocks.get(student, Block()).classes
        per_student = any(isinstance(value, dict) for value in row.weights.values())
        chosen = dict(row.weights.get(student, {}) if per_student else row.weights)
        if "active" in known and "burn_in" in chosen:
            known = known | {"active": _burn_in(row, chosen.pop("burn_in"))}
        for key, value in chosen.items():
            choose(f"weight of method {row.method}", key, known)
            check_type(value, float, f"row {row.row}: weight {key}")
            if not math.isfinite(value):
                raise UserError(f"row {row.row}: weight {key} must be finite, got {value}")
        weights = {**known, **{key: float(value) for key, value in chosen.items()}}
        for key in METHODS[row.method].beside_class_means if classes else ():
            weights[key] *= classes / len(self.place.dataset(self.data(row.dataset or self.file.dataset)).classes)
        return RunSpec(
            data=self.data(row.dataset or self.file.dataset),
            model=self.model(row.model or self.file.student_model or student),
            method=row.method,
            weights=tuple(sorted(weights.items())),
            teacher=teacher,
            schedule=self.scale.schedule(row.schedule or row.method),
            epsilon=self.radius(row.epsilon) or self.scale.epsilon / 255,
            step_size=self.radius(row.step_size) or self.scale.step_size / 255,
            attack_steps=self.scale.attack_steps,
            selection=self.scale.selection,
            selection_images=self.scale.test_images if self.scale.selection == "test" else 0,
            seed=seed + row.seed,
            precision=self.scale.precision,
            max_steps=self.scale.max_steps,
            guide=self.model(row.guide) if row.guide else "",
            strategy=self.strategy(row) if row.strategy else None,
            awp=self.awp(row) if row.awp else None,
            average=row.average,
        )

    def radius(self, given: float) -> float:
        """A length in 1/255 at a radius of 8/255, brought to the scale's radius."""
        return given / 8 * self.scale.epsilon / 255

    def strategy(self, row: Row) -> StrategySpec:
        """The row's strategy, its settings laid over, brought to the scale's radius."""
        where, base = f"row {row.row}: strategy", STRATEGIES[row.strategy]
        given = {f.name: getattr(base, f.name) for f in fields(base)} | {"options": {}} | row.strategy_settings
        options = _in_unit(given.pop("options"), where)
        spec = replace(typed(StrategySpec, given, where), options=tuple((dict(base.options) | options).items()))
        if options and not base.options:
            raise UserError(f"{where}: {row.strategy} picks from no options")
        weights = [name for name in METHODS[row.method].weights if name in PER_IMAGE_WEIGHTS]
        settable = dict.fromkeys((*ATTACK_SETTINGS, *weights))
        for name in dict(spec.options):
            choose(f"setting of the method {row.method} for a strategy to pick", name, settable)
        if needs_network(spec):
            spec = replace(spec, model=self.model(spec.model or "ResNet18"))
        return scaled(spec, self.scale.epsilon / 255)

    def awp(self, row: Row) -> AWP:
        """The row's weight perturbation."""
        awp: AWP = typed(AWP, row.awp, f"row {row.row}: awp")
        other = choose("method", awp.method or row.method, METHODS)
        if awp.method and (other.needs_teacher or other.trains_guide or other.watch):
            raise UserError(f"row {row.row}: awp: the loss of {awp.method} wants more than the network and the images")
        return replace(awp, weights=tuple(sorted(other.weights.items()))) if awp.method else awp

    def model(self, name: str) -> str:
        """The network that stands for the paper's `name` at this scale."""
        return choose("model of this scale", name, self.scale.models)


def show_path(path: Path) -> str:
    """A path as a reader should see it: relative to the checkout where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
