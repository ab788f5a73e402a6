"""A table of params/tables, opened under some parameters."""

from dataclasses import replace
from pathlib import Path

import torch

from lib import ROOT
from lib.attacks.levers import LEVERS
from lib.errors import UserError, choose, typed
from lib.evaluate import check_fits
from lib.experiment.builder import Builder
from lib.experiment.parameters import PARAMS, Parameters, device_of, load_scale, read_yaml
from lib.experiment.runs import Workspace, network
from lib.experiment.spec import GivenWeights
from lib.experiment.table import Table
from lib.experiment.table_file import TableFile, row_of
from lib.files import file_digest


def open_table(name: str, parameters: Parameters) -> Table:
    """The table params/tables/<name>.yaml under these parameters; nothing is trained.

    Paths are taken from the checkout. On a CPU it sets torch to one thread, as in every worker: equal bits however many
    runs go on at once.

    Raises:
        UserError: whatever in the parameters, the scale or the data does not fit, in one sentence.
    """
    file: TableFile = typed(TableFile, read_yaml(choose("table", name, _table_files())), f"table {name}")
    scale = load_scale(parameters)
    if "datasets" in parameters.settings:
        scale = replace(scale, title=f"its settings on other data than its own, radius {scale.epsilon:g}/255")
    weights = {name: _from_root(path) for name, path in parameters.teacher_files.items()}
    digests = {name: file_digest(path) for name, path in weights.items()}
    workspace = Workspace(
        outputs=_from_root(parameters.outputs),
        data_dir=_from_root(parameters.data_dir),
        download=parameters.download,
        device=str(device_of(parameters.device)),
        weights_files={digests[name]: path for name, path in weights.items()},
        levers=LEVERS[scale.levers],
    )
    if workspace.device == "cpu":
        torch.set_num_threads(1)
    workspace.store  # noqa: B018  an outputs folder that cannot be written is said now, not after the training
    builder = Builder(file, scale, parameters, workspace, digests)
    controls = tuple(row_of(row) for row in file.controls)
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
        controls=tuple(builder.cells(controls, builder.control_columns)),
        columns=builder.columns,
        protocol=builder.protocol,
        replaced=parameters.settings,
    )
    _check_fits(table)
    return table


def _check_fits(table: Table) -> None:
    """That every column can be measured on its cell's data, and that every given file fits its network."""
    given = {(net, table.data) for net in table.teachers.values() if isinstance(net, GivenWeights)}
    for cell in table.cells + table.controls:
        dataset = table.workspace.dataset(cell.data)
        for column in cell.columns:
            check_fits(column, len(dataset.test.labels), len(dataset.classes))
        if isinstance(cell.network, GivenWeights):
            given.add((cell.network, cell.data))
    for net, data in given:
        network(net, data, table.workspace)


def _table_files() -> dict[str, Path]:
    """The table files by name."""
    if not PARAMS.is_dir():
        raise UserError(f"there is no {PARAMS}: tables are read from a checkout, so install it there: pip install -e .")
    return {path.stem: path for path in sorted((PARAMS / "tables").glob("*.yaml"))}


def _from_root(path: str) -> Path:
    return ROOT / Path(path).expanduser()
