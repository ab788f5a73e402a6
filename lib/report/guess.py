"""A reader's prediction beside what was measured."""

from lib.errors import check_type


def guessed(guess: float, measured: float, what: str, step: float = 1.0) -> str:
    """How far the notebook's parameter `guess` was from `measured`, both in `what`; `step` is a good guess's error.

    Raises UserError where `guess` is no number.
    """
    check_type(guess, float, "parameter guess")
    off = abs(guess - measured)
    words = "well guessed" if off <= step else "close" if off <= 3 * step else "a surprise"
    side = "" if off <= step else ", too high" if guess > measured else ", too low"
    return f"Your guess: {guess:g}. Measured: {measured:.3g} {what}. Off by {off:.3g}{side}: {words}."
