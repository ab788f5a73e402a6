"""A table of a paper as a value: which network, data, method and seed every cell is, and the numbers reported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import ROOT
from lib.errors import choose
from lib.evaluate import AttackSpec, heading
from lib.experiment.parameters import PARAMS, Scale, read_yaml
from lib.experiment.runs import Network, Workspace
from lib.experiment.spec import DataSpec, RunSpec
from lib.experiment.table_file import Row, TableFile


@dataclass(frozen=True)
class Cell:
    """One trained network: where it stands in the table, what is behind it, and the columns it is measured under."""

    student: str
    teacher: str  # "" for a method without one
    row: Row
    seed: int
    network: Network
    data: DataSpec
    columns: tuple[AttackSpec, ...]
    surrogate: RunSpec | None = None


@dataclass(frozen=True)
class Table:
    """A table at a scale, ready to be planned and run."""

    name: str
    file: TableFile
    scale_name: str
    scale: Scale
    workspace: Workspace
    workers: int
    data: DataSpec
    students: tuple[str, ...]
    teacher_names: tuple[str, ...]  # ("",) for a table without teachers
    teachers: dict[str, Network]  # those that some row learns from
    surrogates: dict[str, RunSpec]
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    controls: tuple[Cell, ...]
    columns: tuple[AttackSpec, ...]
    protocol: str  # which the cells are measured under as well, its columns' names followed by it in brackets; or ""
    replaced: dict[str, Any]  # the settings that the parameters put in place of the scale's

    @property
    def reported(self) -> dict[str, Any]:
        """The paper's entry for this item, as params/reported/<paper>.yaml has it."""
        return self.reported_for("")

    def reported_for(self, student: str) -> dict[str, Any]:
        """The entry that a block's numbers stand in: the table's, where the block names no other; {} without an item.

        Raises:
            UserError: the paper has no such item.
        """
        entry: Any = read_yaml(PARAMS / "reported" / f"{self.file.paper}.yaml")
        item = self.file.blocks.get(student, {}).get("item") or self.file.item
        for key in item.split(".") if item else ():
            entry = entry[int(key)] if isinstance(entry, list) else choose(f"item of {self.file.paper}", key, entry)
        return dict(entry) if item else {}

    def headings(self) -> dict[str, str]:
        """Each column's name with what this scale reduces."""
        images = len(self.workspace.dataset(self.data).test.labels)
        return {column.name: heading(column, images) for column in self.columns}


def show_path(path: Path) -> str:
    """A path as a reader should see it: relative to the checkout where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
