"""Whose a result is: a table's row's, a control's or a teacher's."""

from lib.experiment.planning import Result
from lib.experiment.table import Table


def of_rows(table: Table, results: list[Result]) -> list[Result]:
    """The results of the table's rows, without controls and teachers."""
    names = {row.row for row in table.rows}
    return [result for result in results if result.row in names]


def of_controls(table: Table, results: list[Result]) -> list[Result]:
    """The results of the controls, such as the undefended student."""
    names = {cell.row.row for cell in table.controls}
    return [result for result in results if result.row in names]


def of_teachers(results: list[Result]) -> list[Result]:
    """The results of the teachers, whose name stands as their student."""
    return [result for result in results if result.row == "teacher"]


def of_line(results: list[Result], student: str, teacher: str, row: str) -> list[Result]:
    """One line's results, one per seed; a network without a teacher stands under every teacher."""
    return [r for r in results if r.student == student and r.row == row and r.teacher in ("", teacher)]


def label(result: Result) -> str:
    """A network's name: row, student, and teacher and seed where it has them."""
    taught = f" ← {result.teacher}" if result.teacher else ""
    return f"{result.row}, {result.student}{taught}" + (f", seed {result.seed}" if result.seed else "")
