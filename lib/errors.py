"""The one exception for what a user can mend: it shows as one sentence, in a notebook and under papermill."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")


class UserError(ValueError):
    """A request that cannot be met; its message is one sentence with the valid choices."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def choose(what: str, name: str, choices: Mapping[str, T]) -> T:
    """The entry of `choices` called `name`; UserError with the valid names where there is none."""
    if name not in choices:
        raise UserError(f"unknown {what} {name!r}; choose one of: {', '.join(map(str, choices))}")
    return choices[name]


def abridged(names: Iterable[str], most: int = 3) -> str:
    """The first `most` names in alphabetical order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def typed(kind: Any, given: dict[str, Any], where: str) -> Any:
    """The dataclass `kind` made from `given`; an int serves as a float, a list as a tuple.

    Raises:
        UserError: an unknown name, a missing one or a wrong type; the sentence gives the valid names or the type.
    """
    known = {f.name: f.type for f in fields(kind)}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{where} has no {name!r}; choose from: {', '.join(known)}")
        check_type(value, known[name], f"{where}: {name}")
    converted = {n: tuple(v) if isinstance(v, list) and get_origin(known[n]) is tuple else v for n, v in given.items()}
    try:
        return kind(**converted)
    except TypeError as error:
        raise UserError(f"{where} is incomplete: {error}") from error


def check_type(value: Any, wanted: Any, where: str) -> None:
    """Check that `value` is a `wanted`: bool, int, float (or int), str, Any, or a list, tuple or dict of these.

    Raises:
        UserError: it is not; for text that looks like a number the sentence gives YAML's spelling.
    """
    origin, arguments = get_origin(wanted) or wanted, get_args(wanted)
    accepted = {Any: (object,), float: (int, float), tuple: (list, tuple)}.get(origin, (origin,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and origin not in (bool, Any)):
        hint = " (YAML reads 1e-3 as text: write 0.001)" if origin is float and isinstance(value, str) else ""
        raise UserError(f"{where} wants {origin.__name__}, got {value!r} ({type(value).__name__}){hint}")
    if origin in (list, tuple) and arguments:
        for item in value:
            check_type(item, arguments[0], where)
    if origin is dict and arguments:
        for key, item in value.items():
            check_type(key, arguments[0], where)
            check_type(item, arguments[1], f"{where}[{key!r}]")
