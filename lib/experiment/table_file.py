"""The contents of a table's file: its rows, its blocks, the networks beside them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lib.errors import UserError, check_type, choose, typed
from lib.experiment.parameters import PARAMS, Scale, paper_schedules, read_yaml, refuse
from lib.experiment.spec import method_of
from lib.methods.strategies import STRATEGIES, needs_network, scaled
from lib.methods.strategy import ATTACK_SETTINGS, PER_IMAGE_WEIGHTS, UNITS, StrategySpec
from lib.train.weights import AWP


@dataclass(frozen=True)
class Row:
    """One line of a table: a method by its key, under the name that the paper prints.

    `weights` are numbers, or per student a mapping of numbers. `model`, `dataset` and `schedule` (a schedule's name)
    are for rows that do not take the student's, the table's and the method's. `reported` is the row's key in the
    paper's numbers where that is not its name. `epsilon_255` and `step_size_255` are for a row that is not trained at
    the scale's radius and step: in 1/255 at the papers' radius of 8/255, and in proportion at a scale with another.
    `own_radius` takes those of the table that the row does not give itself.
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
    own_radius: bool = False
    epsilon_255: float = 0.0
    step_size_255: float = 0.0

    def __post_init__(self) -> None:
        method = method_of(self.method)
        choose("checkpoint", self.checkpoint, dict.fromkeys(("best", "last")))
        if self.schedule:
            choose("schedule", self.schedule, paper_schedules())
        if self.strategy:
            choose("strategy", self.strategy, STRATEGIES)
        lengths = {name: getattr(self, name) for name in ("epsilon_255", "step_size_255")}
        problems = {
            f"the method {self.method} makes no attack for a strategy to set": self.strategy and not method.objective,
            "it has strategy_settings and no strategy": self.strategy_settings and not self.strategy,
            f"the method {self.method} trains a guide; name its model as guide": method.trains_guide and not self.guide,
            f"the method {self.method} trains no guide": self.guide and not method.trains_guide,
            f"average is a decay in [0, 1), 0 for none, got {self.average}": not 0 <= self.average < 1,
        }
        problems |= {f"{n} is in 1/255 and lies in [0, 255], got {v}": not 0 <= v <= 255 for n, v in lengths.items()}
        refuse(f"row {self.row}", problems)

    def strategy_at(self, scale: Scale) -> StrategySpec | None:
        """The strategy, the row's settings laid over, with the scale's network and brought to the scale's radius."""
        if not self.strategy:
            return None
        where, base = f"row {self.row}: strategy", STRATEGIES[self.strategy]
        given = asdict(base) | {"options": {}} | self.strategy_settings
        written = given.pop("options")
        check_type(written, dict[str, list[float]], f"{where}: options")
        problems = {f"options: {name} is given as {name}_255, in 1/255": name in written for name in UNITS}
        refuse(where, problems | {f"{self.strategy} picks from no options": written and not base.options})
        options = dict(base.options)
        for key, values in written.items():
            name = key.removesuffix("_255")
            options[name] = tuple(value / UNITS.get(name, 1) for value in values)
        weights = [name for name in method_of(self.method).weights if name in PER_IMAGE_WEIGHTS]
        for name in options:
            settable = dict.fromkeys((*ATTACK_SETTINGS, *weights))
            choose(f"setting of the method {self.method} for a strategy to pick", name, settable)
        spec = replace(typed(StrategySpec, given, where), options=tuple(options.items()))
        if needs_network(spec):
            spec = replace(spec, model=choose("model of this scale", spec.model or "ResNet18", scale.models))
        return scaled(spec, scale.epsilon_255 / 255)

    def perturbation(self) -> AWP | None:
        """The weight perturbation, with the weights of the loss that it maximises where that is another method's."""
        if not self.awp:
            return None
        awp = typed(AWP, self.awp, f"row {self.row}: awp")
        other = method_of(awp.method or self.method)
        more = awp.method and (other.needs_teacher or other.trains_guide or other.criterion)
        refuse(f"row {self.row}: awp", {f"the loss of {awp.method} needs more than the network and the images": more})
        return replace(awp, weights=tuple(sorted(other.weights.items()))) if awp.method else awp


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
class TableFile:
    """What params/tables/<name>.yaml holds. `more_rows` run when they are named, `controls` always.

    Where `surrogates` are named, they take the students' place: each block's attacks are made on its surrogate, and the
    network attacked is `student_model`. A student that `blocks` names is a block of another kind, such as a data set.
    `item` is the path to an entry of the paper's numbers, with dots; "" is for a table of one's own.
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
    other_protocol: str = ""  # that the networks are measured under as well, where the parameters name none
    same_as: dict[str, str] = field(default_factory=dict)  # a column -> its preset, where not the protocol's
    more_rows: list[Any] = field(default_factory=list)
    controls: list[Any] = field(default_factory=list)
    control_columns: list[str] = field(default_factory=list)
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    own_images: dict[str, int] = field(default_factory=dict)  # column -> images behind the paper's own rows, if not all
    quoted_images: dict[str, dict[str, int]] = field(default_factory=dict)  # the same per source of quoted rows
    epsilon_255: float = 0.0  # of the rows with own_radius
    step_size_255: float = 0.0

    def read_row(self, given: Any) -> Row:
        """A row as the file gives it, with the table's radius and step where it takes them."""
        check_type(given, dict[str, Any], "row")
        row = typed(Row, given, "row")
        per_student = [isinstance(value, dict) for value in row.weights.values()]
        refuse(f"row {row.row}", {"weights are numbers, or for every student a mapping": len({*per_student}) > 1})
        for name in (*row.only_students, *row.quoted, *(row.weights if any(per_student) else ())):
            choose("student", name, dict.fromkeys(self.students))
        if row.own_radius and not self.epsilon_255:
            raise UserError(f"row {row.row} takes the table's own radius; give the table an epsilon_255")
        lengths = {name: getattr(row, name) or getattr(self, name) for name in ("epsilon_255", "step_size_255")}
        return replace(row, **lengths) if row.own_radius else row

    def block(self, student: str) -> Block:
        """What the rows of a block take; nothing where the student is a network."""
        return typed(Block, self.blocks.get(student, {}), f"block {student}")

    def reported(self, student: str = "") -> dict[str, Any]:
        """The entry of params/reported that a block's numbers stand in: the file's own where it names none, or {}."""
        item = self.block(student).item or self.item
        entry: Any = read_yaml(PARAMS / "reported" / f"{self.paper}.yaml") if item else {}
        for key in item.split(".") if item else ():
            entry = entry[int(key)] if isinstance(entry, list) else choose(f"item of {self.paper}", key, entry)
        return dict(entry)

    def in_block(self, row: Row, student: str) -> Row:
        """The row with what the student's block gives in place of its own."""
        block, trains_guide = self.block(student), method_of(row.method).trains_guide
        taken = ("dataset", "model", "guide", "schedule") if trains_guide else ("dataset", "model")
        return replace(row, **{name: getattr(block, name) for name in taken if getattr(block, name)})

    def trained(self, which: str) -> dict[str, Row]:
        """The "teachers" or the "surrogates" as the rows that train them: a model's name alone, or more."""
        written = [{"name": one} if isinstance(one, str) else one for one in getattr(self, which)]
        named = {one.get("name", ""): {key: one[key] for key in one if key != "name"} for one in written}
        return {name: self.read_row({"row": name, "method": "pgd_at", "model": name} | named[name]) for name in named}


def read_table(name: str) -> TableFile:
    """params/tables/<name>.yaml; raises UserError if there is none, or for an unknown key or a wrong type."""
    if not PARAMS.is_dir():
        raise UserError(f"there is no {PARAMS}: tables are read from a checkout, so install it there: pip install -e .")
    files = {path.stem: path for path in sorted((PARAMS / "tables").glob("*.yaml"))}
    return typed(TableFile, read_yaml(choose("table", name, files)), f"table {name}")


def pick(what: str, names: list[str], known: Mapping[str, Any]) -> tuple[str, ...]:
    """The names, each once, or all that are known where none is given; raises UserError for an unknown one."""
    for name in names:
        choose(what, name, known)
    return tuple(dict.fromkeys(names or known))
