"""A table of a paper as a value: which network, data, method and seed every cell is, and the numbers reported."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lib import ROOT
from lib.errors import choose
from lib.evaluate import AttackSpec, check_fits, heading
from lib.experiment.builder import Builder, Cell
from lib.experiment.networks import Network, Workspace, network
from lib.experiment.parameters import PARAMS, Parameters, Scale, device_of, load_scale, read_yaml
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec
from lib.experiment.table_file import Row, TableFile, read_table
from lib.files import file_digest


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

    def check_fits(self) -> None:
        """That every column can be measured on its cell's data, and that every given file fits its network.

        Raises:
            UserError: one cannot, or does not.
        """
        given = {(net, self.data) for net in self.teachers.values() if isinstance(net, GivenWeights)}
        for cell in self.cells + self.controls:
            dataset = self.workspace.dataset(cell.data)
            for column in cell.columns:
                check_fits(column, len(dataset.test.labels), len(dataset.classes))
            if isinstance(cell.network, GivenWeights):
                given.add((cell.network, cell.data))
        for net, data in given:
            network(net, data, self.workspace)


def open_table(name: str, parameters: Parameters) -> Table:
    """The table params/tables/<name>.yaml under these parameters; nothing is trained.

    Paths are taken from the checkout. On a CPU it sets torch to one thread, as in every worker: equal bits however many
    runs go on at once.

    Raises:
        UserError: whatever in the parameters, the scale or the data does not fit, in one sentence.
    """
    file, scale = read_table(name), load_scale(parameters)
    if "datasets" in parameters.settings:
        title = f"its settings on other data than its own, radius {scale.epsilon_255:g}/255"
        scale = replace(scale, title=title)
    weights = {name: _from_root(path) for name, path in parameters.teacher_files.items()}
    digests = {name: file_digest(path) for name, path in weights.items()}
    workspace = Workspace(
        outputs=_from_root(parameters.outputs),
        data_dir=_from_root(parameters.data_dir),
        download=parameters.download,
        device=str(device_of(parameters.device)),
        weights_files={digests[name]: path for name, path in weights.items()},
        execution=scale.execution,
    )
    if workspace.device == "cpu":
        torch.set_num_threads(1)
    workspace.store  # noqa: B018  an outputs folder that cannot be written is refused now, not after the training
    builder = Builder(file, scale, parameters, workspace, digests)
    table = Table(
        name=name,
        file=file,
        scale_name=parameters.scale,
        scale=scale,
        workspace=workspace,
        workers=parameters.workers,
        data=builder.data(file.dataset),
        students=builder.students,
        teacher_names=builder.teacher_names,
        teachers=builder.teachers,
        surrogates=builder.surrogates,
        rows=builder.rows,
        cells=tuple(builder.cells(builder.rows, builder.all_columns)),
        controls=tuple(builder.cells(tuple(map(file.read_row, file.controls)), builder.control_columns)),
        columns=builder.columns,
        protocol=builder.protocol,
        replaced=parameters.settings,
    )
    table.check_fits()
    return table


def show_path(path: Path) -> str:
    """A path as a reader should see it: relative to the checkout where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _from_root(path: str) -> Path:
    return ROOT / Path(path).expanduser()
