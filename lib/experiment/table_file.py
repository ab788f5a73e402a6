"""What a table's file says: its rows, its blocks, the networks beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lib.errors import UserError, check_type, choose, typed
from lib.experiment.parameters import paper_schedules
from lib.methods import METHODS, Piecewise
from lib.methods.strategies import STRATEGIES
from lib.methods.strategy import UNITS


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
    `item` is the way to an entry of the paper's numbers, with a dot at each turn; "" is for a table of one's own.
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


def row_of(given: Any) -> Row:
    """A row as the file gives it.

    Raises:
        UserError: an unknown name, a wrong type, or parts that do not go together.
    """
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


def burn_in(row: Row, share: Any) -> Piecewise:
    """The weight `active`: 0 for a share of the training, then 1."""
    check_type(share, float, f"row {row.row}: burn_in")
    if not 0 <= share <= 1:
        raise UserError(f"row {row.row}: burn_in is a share of the training in [0, 1], got {share}")
    return Piecewise((share,), (0.0, 1.0))


def in_unit(options: Any, where: str) -> dict[str, tuple[float, ...]]:
    """A row's options with radii and step sizes divided by 255."""
    check_type(options, dict[str, list[float]], f"{where}: options")
    return {name: tuple(value / UNITS.get(name, 1) for value in values) for name, values in options.items()}


def trained_of(given: Any) -> Trained:
    """A network beside the rows: its name alone, or more.

    Raises:
        UserError: an unknown name or a wrong type.
    """
    trained: Trained = typed(Trained, {"name": given} if isinstance(given, str) else given, "teacher")
    choose("method", trained.method, METHODS)
    return trained


def picked(what: str, wanted: list[str], known: Mapping[str, Any]) -> tuple[str, ...]:
    """The wanted names, each once, or all that are known where none is wanted.

    Raises:
        UserError: a name that is not known.
    """
    for name in wanted:
        choose(what, name, known)
    return tuple(dict.fromkeys(wanted or known))
