"""From a table's names to its specs, for one set of parameters."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

from lib.errors import UserError, check_type, choose, typed
from lib.evaluate import PROTOCOLS, AttackSpec
from lib.experiment.parameters import Parameters, Scale, paper_schedules
from lib.experiment.runs import Network, Workspace, describe_data
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec
from lib.experiment.table import Cell
from lib.experiment.table_file import Block, Row, TableFile, Trained, burn_in, in_unit, picked, row_of, trained_of
from lib.methods import METHODS
from lib.methods.strategies import STRATEGIES, needs_network, scaled
from lib.methods.strategy import ATTACK_SETTINGS, PER_IMAGE_WEIGHTS, StrategySpec
from lib.train.weights import AWP


class Builder:
    """Turns names into specs, for one table and one set of parameters."""

    def __init__(
        self, file: TableFile, scale: Scale, parameters: Parameters, workspace: Workspace, digests: dict[str, str]
    ) -> None:
        self.file, self.scale, self.parameters, self.workspace, self.digests = (
            file,
            scale,
            parameters,
            workspace,
            digests,
        )
        self.specs: dict[str, DataSpec] = {}
        default = [row_of(row) for row in file.rows]
        known = {row.row: row for row in default + [row_of(row) for row in file.more_rows]}
        names = picked("row", parameters.rows or [row.row for row in default], known)
        self.rows = tuple(known[name] for name in names)
        self.students = picked("student", parameters.students, dict.fromkeys(file.students))
        self.blocks = {name: typed(Block, block, f"block {name}") for name, block in file.blocks.items()}
        for block in self.blocks.values():
            choose("schedule", block.schedule, {"": None, **paper_schedules()})
        teachers = {trained.name: trained for trained in map(trained_of, file.teachers)}
        self.teacher_names = picked("teacher", parameters.teachers, teachers) or ("",)
        for name in digests:
            choose("teacher", name, {**teachers, **known})
        if not parameters.seeds:
            raise UserError("parameter seeds is empty; give at least one, such as [0]")
        taught = any(METHODS[row.method].needs_teacher for row in self.rows)
        self.teachers = {name: self.trained(teachers[name]) for name in self.teacher_names if taught and name}
        surrogates = {trained.name: trained for trained in map(trained_of, file.surrogates)}
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

    def trained(self, trained: Trained) -> Network:
        """The weights given for a teacher, or the run that trains it."""
        if trained.name in self.digests:
            return GivenWeights(self.model(trained.model or trained.name), self.digests[trained.name])
        return self.surrogate(trained)

    def surrogate(self, trained: Trained) -> RunSpec:
        """The run that trains a network named beside the rows."""
        row = Row(trained.name, trained.method, model=trained.model or trained.name, schedule=trained.schedule)
        return self.run("", row, None, trained.seed)

    def cells(self, rows: tuple[Row, ...], columns: tuple[AttackSpec, ...]) -> Iterator[Cell]:
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
        self, student: str, name: str, row: Row, seed: int, teacher: Network | None, columns: tuple[AttackSpec, ...]
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
            known = known | {"active": burn_in(row, chosen.pop("burn_in"))}
        for key, value in chosen.items():
            choose(f"weight of method {row.method}", key, known)
            check_type(value, float, f"row {row.row}: weight {key}")
            if not math.isfinite(value):
                raise UserError(f"row {row.row}: weight {key} must be finite, got {value}")
        weights = {**known, **{key: float(value) for key, value in chosen.items()}}
        for key in METHODS[row.method].beside_class_means if classes else ():
            weights[key] *= classes / len(self.workspace.dataset(self.data(row.dataset or self.file.dataset)).classes)
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
        options = in_unit(given.pop("options"), where)
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
        if awp.method and (other.needs_teacher or other.trains_guide or other.criterion):
            raise UserError(f"row {row.row}: awp: the loss of {awp.method} wants more than the network and the images")
        return replace(awp, weights=tuple(sorted(other.weights.items()))) if awp.method else awp

    def model(self, name: str) -> str:
        """The network that stands for the paper's `name` at this scale."""
        return choose("model of this scale", name, self.scale.models)
