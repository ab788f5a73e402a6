"""From a table's names to its specs, for one table and one set of parameters."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lib.errors import UserError, check_type, choose, typed
from lib.evaluate import PROTOCOLS, AttackSpec
from lib.experiment.networks import Network, Workspace, describe_data
from lib.experiment.parameters import Parameters, Scale, paper_schedules
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec, method_of
from lib.experiment.table_file import Block, Row, TableFile, pick, read_strategy, read_trained
from lib.methods import Piecewise, Weight
from lib.methods.strategies import needs_network, scaled
from lib.methods.strategy import ATTACK_SETTINGS, PER_IMAGE_WEIGHTS, StrategySpec
from lib.train.weights import AWP


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


class Builder:
    """Turns names into specs, for one table and one set of parameters."""

    def __init__(
        self, file: TableFile, scale: Scale, parameters: Parameters, workspace: Workspace, digests: dict[str, str]
    ) -> None:
        self.file, self.scale, self.parameters = file, scale, parameters
        self.workspace, self.digests = workspace, digests
        self.specs: dict[str, DataSpec] = {}
        default = [file.read_row(row) for row in file.rows]
        known = {row.row: row for row in default + [file.read_row(row) for row in file.more_rows]}
        names = pick("row", parameters.rows or [row.row for row in default], known)
        self.rows = tuple(known[name] for name in names)
        self.students = pick("student", parameters.students, dict.fromkeys(file.students))
        self.blocks = {name: typed(Block, block, f"block {name}") for name, block in file.blocks.items()}
        for block in self.blocks.values():
            choose("schedule", block.schedule, {"": None, **paper_schedules()})
        teachers = {trained.name: trained for trained in map(read_trained, file.teachers)}
        self.teacher_names = pick("teacher", parameters.teachers, teachers) or ("",)
        for name in digests:
            choose("teacher", name, {**teachers, **known})
        if not parameters.seeds:
            raise UserError("parameter seeds is empty; give at least one, such as [0]")
        self.teachers: dict[str, Network] = {}
        if any(method_of(row.method).needs_teacher for row in self.rows):
            self.teachers = {name: self.given_or_run(teachers[name].as_row) for name in self.teacher_names if name}
        surrogates = {trained.name: trained for trained in map(read_trained, file.surrogates)}
        self.surrogates = {name: self.run("", surrogates[name].as_row) for name in self.students if name in surrogates}
        if not any(set(row.only_students or self.students) & set(self.students) for row in self.rows):
            raise UserError(f"no row of {', '.join(names)} is for the students {', '.join(self.students)}")
        self._name_columns()

    def _name_columns(self) -> None:
        own = choose("protocol", self.file.protocol or self.file.paper, PROTOCOLS) | self.file.same_as
        self.columns = self.named({name: own.get(name, name) for name in self.file.columns})
        self.control_columns = self.named({name: own.get(name, name) for name in self.file.control_columns})
        self.protocol = self.parameters.protocol or self.file.also
        other = choose("protocol", self.protocol, PROTOCOLS) if self.protocol else {}
        more = self.named({f"{name} ({self.protocol})": preset for name, preset in other.items()})
        self.all_columns = tuple(dict.fromkeys(self.columns + self.control_columns + more))

    def named(self, presets: Mapping[str, str]) -> tuple[AttackSpec, ...]:
        """The presets at this scale, under the names that the table gives them."""
        return tuple(replace(self.scale.column(preset), name=name) for name, preset in presets.items())

    def data(self, name: str) -> DataSpec:
        """The data that stands for the paper's `name` at this scale."""
        if name not in self.specs:
            scale, stand_in = self.scale, choose("data set of this scale", name, self.scale.datasets)
            held_out = scale.held_out if scale.selection == "held_out" else 0
            self.specs[name] = describe_data(self.workspace, stand_in, scale.train_images, held_out)
        return self.specs[name]

    def model(self, name: str) -> str:
        """The network that stands for the paper's `name` at this scale."""
        return choose("model of this scale", name, self.scale.models)

    def given_or_run(self, row: Row, student: str = "", teacher: Network | None = None, seed: int = 0) -> Network:
        """The weights given for a row or a teacher by its name, or the run that trains it."""
        if row.row in self.digests:
            self.run(student, row, teacher, seed)  # a row that makes no sense is refused all the same
            return GivenWeights(self.model(row.model or student), self.digests[row.row])
        return self.run(student, row, teacher, seed)

    def cells(self, rows: tuple[Row, ...], columns: tuple[AttackSpec, ...]) -> Iterator[Cell]:
        """Student by teacher by row by seed; a method without a teacher stands once."""
        for student in self.students:
            for row in rows:
                if row.only_students and student not in row.only_students:
                    continue
                own = self.in_block(row, student)
                for name, teacher in self.teachers.items() if method_of(row.method).needs_teacher else [("", None)]:
                    for seed in dict.fromkeys(self.parameters.seeds):
                        yield self.cell(student, name, own, seed, teacher, columns)

    def in_block(self, row: Row, student: str) -> Row:
        """The row as its block has it."""
        block = self.blocks.get(student, Block())
        given = {"dataset": block.dataset, "model": block.model}
        if method_of(row.method).trains_guide:
            given |= {"guide": block.guide, "schedule": block.schedule}
        return replace(row, **{name: value for name, value in given.items() if value})

    def cell(
        self, student: str, name: str, row: Row, seed: int, teacher: Network | None, columns: tuple[AttackSpec, ...]
    ) -> Cell:
        """One cell; in a table of transfers its attacks are made on the block's surrogate."""
        net, surrogate = self.given_or_run(row, student, teacher, seed), self.surrogates.get(student)
        if surrogate is not None:
            if surrogate == net:
                raise UserError(f"the surrogate {student} is the network it attacks ({row.row}); name another")
            columns = tuple(replace(column, surrogate=surrogate.digest) for column in columns)
        return Cell(student, name, row, seed, net, self.data(row.dataset or self.file.dataset), columns, surrogate)

    def run(self, student: str, row: Row, teacher: Network | None = None, seed: int = 0) -> RunSpec:
        """The run of one cell."""
        scale = self.scale
        return RunSpec(
            data=self.data(row.dataset or self.file.dataset),
            model=self.model(row.model or self.file.student_model or student),
            method=row.method,
            weights=tuple(sorted(self.weights(student, row).items())),
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
            guide=self.model(row.guide) if row.guide else "",
            strategy=self.strategy(row) if row.strategy else None,
            awp=self.awp(row) if row.awp else None,
            average=row.average,
        )

    def weights(self, student: str, row: Row) -> dict[str, Weight]:
        """The method's weights, with the row's for this student in their place.

        Raises:
            UserError: an unknown weight, or one that is no finite number.
        """
        weights: dict[str, Weight] = dict(method_of(row.method).all_weights)
        per_student = any(isinstance(value, dict) for value in row.weights.values())
        for key, value in (row.weights.get(student, {}) if per_student else row.weights).items():
            where = f"row {row.row}: weight {key}"
            if key == "burn_in" and "active" in weights:  # the share of the training before the term is active
                check_type(value, float, where)
                if not 0 <= value <= 1:
                    raise UserError(f"row {row.row}: burn_in is a share of the training in [0, 1], got {value}")
                weights["active"] = Piecewise((value,), (0.0, 1.0))
                continue
            choose(f"weight of method {row.method}", key, weights)
            check_type(value, float, where)
            if not math.isfinite(value):
                raise UserError(f"{where} must be finite, got {value}")
            weights[key] = float(value)
        paper_classes = self.blocks.get(student, Block()).classes
        for key in method_of(row.method).beside_class_means if paper_classes else ():
            dataset = self.workspace.dataset(self.data(row.dataset or self.file.dataset))
            weights[key] *= paper_classes / len(dataset.classes)
        return weights

    def strategy(self, row: Row) -> StrategySpec:
        """The row's strategy, brought to the scale's radius, with the scale's network."""
        spec = read_strategy(row)
        weights = [name for name in method_of(row.method).weights if name in PER_IMAGE_WEIGHTS]
        for name in dict(spec.options):
            settable = dict.fromkeys((*ATTACK_SETTINGS, *weights))
            choose(f"setting of the method {row.method} for a strategy to pick", name, settable)
        if needs_network(spec):
            spec = replace(spec, model=self.model(spec.model or "ResNet18"))
        return scaled(spec, self.scale.epsilon_255 / 255)

    def awp(self, row: Row) -> AWP:
        """The row's weight perturbation."""
        awp: AWP = typed(AWP, row.awp, f"row {row.row}: awp")
        other = method_of(awp.method or row.method)
        if awp.method and (other.needs_teacher or other.trains_guide or other.watch):
            raise UserError(f"row {row.row}: awp: the loss of {awp.method} needs more than the network and the images")
        return replace(awp, weights=tuple(sorted(other.weights.items()))) if awp.method else awp
