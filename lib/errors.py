"""The one exception for what a user can mend: it shows as one sentence, in a notebook and under papermill."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")


class UserError(ValueError):
    """A request that cannot be met, said in one sentence with the valid choices."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def choose(what: str, name: str, choices: Mapping[str, T]) -> T:
    """The entry of `choices` called `name`.

    Raises:
        UserError: `name` is none of them; the sentence lists them all.
    """
    if name not in choices:
        raise UserError(f"unknown {what} {name!r}; choose one of: {', '.join(map(str, choices))}")
    return choices[name]


def typed(kind: Any, given: dict[str, Any], where: str) -> Any:
    """The dataclass `kind` made from `given`, every name known and every value of its field's type.

    A whole number serves where a float is wanted, a list where a tuple is.

    Raises:
        UserError: an unknown name or a wrong type; the sentence gives the valid names or the type.
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
    """That `value` is a `wanted`: bool, int, float (an int will do), str, or a list, tuple or dict of these.

    Raises:
        UserError: it is not; text that looks like a number says how YAML wants it written.
    """
    if wanted is Any:
        return
    origin, arguments = get_origin(wanted) or wanted, get_args(wanted)
    accepted = {float: (int, float), tuple: (list, tuple)}.get(origin, (origin,))
    wrong = not isinstance(value, accepted) or (isinstance(value, bool) and origin is not bool)
    if wrong:
        hint = " (YAML reads 1e-3 as text: write 0.001)" if origin is float and isinstance(value, str) else ""
        raise UserError(f"{where} wants {origin.__name__}, got {value!r} ({type(value).__name__}){hint}")
    if origin in (list, tuple) and arguments:
        for item in value:
            check_type(item, arguments[0], where)
    if origin is dict and arguments:
        for key, item in value.items():
            check_type(key, arguments[0], where)
            check_type(item, arguments[1], f"{where}[{key!r}]")
