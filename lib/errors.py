"""The one exception for what a user can mend: it shows as one sentence, in a notebook and under papermill."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")
MOST = 500  # characters of a sentence
LARGEST = 3.4e38  # float32's, rounded down
UNPRINTABLE = re.compile("[\0-\x1f\ud800-\udfff]")  # control characters, and halves of one
HINTS: dict[Any, str] = {
    (list, str): ' (in a terminal: -y "{name}: [{value}]")',
    (bool, str): ' (in a terminal: -p {name} True, or -y "{name}: true")',
    (float, str): " (YAML reads 1e-3 as text: write 0.001)",
}


class UserError(ValueError):
    """A request that cannot be met; its message is one sentence with the valid choices, cut where it is long."""

    def __init__(self, sentence: str) -> None:
        line = " ".join(sentence.splitlines())
        super().__init__(line if len(line) <= MOST else f"{line[: MOST // 2]} ... {line[-MOST // 3 :]}")

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def choose(what: str, name: str, choices: Mapping[str, T]) -> T:
    """The entry of `choices` called `name`; UserError with the valid names, the nearest first, where there is none."""
    if name not in choices:
        raise UserError(f"unknown {what} {shown(name)}; choose one of: {', '.join(nearest_first(name, choices))}")
    return choices[name]


def nearest_first(name: str, names: Iterable[Any]) -> list[str]:
    """The names in their order, but before them the one that is spelt most like `name`."""
    known = [str(one) for one in names]
    near = difflib.get_close_matches(str(name)[:100].casefold(), [one.casefold() for one in known], 1)
    return sorted(known, key=lambda one: one.casefold() not in near)


def shown(value: Any, most: int = 60) -> str:
    """A value in a sentence, whatever it is: its repr, cut."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits; lists in lists in lists
        text = f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= most else f"{text[:most]}..."


def abridged(names: Iterable[str], most: int = 3) -> str:
    """The first `most` names in alphabetical order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def typed(kind: type[T], given: dict[str, Any], where: str) -> T:
    """The dataclass `kind` made from `given`; an int serves as a float, a list as a tuple.

    Raises:
        UserError: an unknown name, a missing one or a wrong type; the sentence gives the valid names or the type.
    """
    own = fields(kind)  # type: ignore[arg-type]  # mypy has no name for "any dataclass"
    known, defaults = {f.name: f.type for f in own}, {f.name: f.default for f in own}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{where} has no {shown(name)}; choose from: {', '.join(nearest_first(name, known))}")
        if value is not defaults[name]:  # which may be infinite
            check_type(value, known[name], f"{where}: {name}")
    taken: dict[Any, Any] = {float: float, tuple: tuple}  # so that equal settings are one digest, however written
    converted = {n: taken.get(get_origin(known[n]) or known[n], lambda v: v)(v) for n, v in given.items()}
    try:
        return kind(**converted)
    except TypeError as error:
        raise UserError(f"{where} is incomplete: {error}") from error


def check_type(value: Any, wanted: Any, where: str) -> None:
    """Check that `value` is a `wanted`: bool, int, float (or int), str, Any, or a list, tuple or dict of these.

    Raises:
        UserError: it is not; for text the sentence gives the spelling in a terminal or in YAML. A number has to be
            finite in float32 or to fit into 64 bits, text to be a line that a file's name may have.
    """
    origin, arguments = get_origin(wanted) or wanted, get_args(wanted)
    accepted = {Any: (object,), float: (int, float), tuple: (list, tuple)}.get(origin, (origin,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and origin not in (bool, Any)):
        hint = HINTS.get((origin, type(value)), "").format(name=where.split()[-1], value=shown(value).strip("'"))
        raise UserError(f"{where} wants {origin.__name__}, got {shown(value)} ({type(value).__name__}){hint}")
    if isinstance(value, float) and not abs(value) < LARGEST:
        raise UserError(f"{where} wants a finite number, at most {LARGEST:g}, got {value}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{where} wants a whole number of 64 bits, got {shown(value)}")
    if isinstance(value, str) and (len(value) > 1000 or UNPRINTABLE.search(value)):
        raise UserError(f"{where} wants at most 1,000 printable characters, got {shown(value)}")
    if origin in (list, tuple) and arguments:
        for item in value:
            check_type(item, arguments[0], where)
    if origin is dict and arguments:
        for key, item in value.items():
            check_type(key, arguments[0], where)
            check_type(item, arguments[1], f"{where}[{key!r}]")
