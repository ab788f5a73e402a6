"""The one exception for what a user can mend: it shows as one sentence, in a notebook and under papermill."""

from collections.abc import Mapping
from typing import TypeVar

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
