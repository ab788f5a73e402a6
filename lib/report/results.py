"""Whose a result is: a table's row's, a control's or a teacher's."""

from lib.experiment.planning import Result


def of_rows(results: list[Result]) -> list[Result]:
    """The results of the table's rows, without controls and teachers."""
    return [result for result in results if result.role == "cell"]


def of_controls(results: list[Result]) -> list[Result]:
    """The results of the controls, such as the undefended student."""
    return [result for result in results if result.role == "control"]


def of_teachers(results: list[Result]) -> list[Result]:
    """The results of the teachers, whose name stands as their student."""
    return [result for result in results if result.role == "teacher"]


def of_line(results: list[Result], student: str, teacher: str, row: str) -> list[Result]:
    """One line's results, one per seed; a network without a teacher stands under every teacher."""
    return [r for r in results if r.student == student and r.row == row and r.teacher in ("", teacher)]


def label(result: Result) -> str:
    """A network's name: row, student, and teacher and seed where it has them."""
    taught = f" ← {result.teacher}" if result.teacher else ""
    return f"{result.row}, {result.student}{taught}" + (f", seed {result.seed}" if result.seed else "")
