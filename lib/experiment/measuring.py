"""Measuring a network: its accuracies, each computed once and kept, and what it and they were made with."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from lib.errors import choose
from lib.evaluate import VERSION, Accuracy, AttackSpec, Resources, evaluate
from lib.experiment.networks import Network, Workspace, network, network_digest, provenance
from lib.experiment.spec import DataSpec, RunSpec, digest_of


def measure(
    spec: Network,
    data_spec: DataSpec,
    workspace: Workspace,
    columns: tuple[AttackSpec, ...],
    checkpoint: str = "best",
    surrogates: Sequence[RunSpec] = (),
) -> list[Accuracy]:
    """The accuracies of a network under `columns`; each column is computed once and kept, whatever it is called.

    `surrogates` are the finished runs that transfer columns are made on.
    """
    store, digest = workspace.store, network_digest(spec, data_spec)
    if not measured(spec, data_spec, workspace, columns, checkpoint):
        with store.claim(f"{digest}-rows"):
            net, test = network(spec, data_spec, workspace, checkpoint), workspace.dataset(data_spec).test
            keys = {_key(column, checkpoint): column for column in columns}  # two names may be one attack at this scale
            missing = [column for key, column in keys.items() if store.read_rows(digest, key) is None]
            begun = store.partial / f"{digest}-{checkpoint}-attack"

            def keep(row: Accuracy) -> None:
                made = {**row.to_json(), "provenance": provenance(workspace)}
                store.write_rows(digest, _key(row.column, checkpoint), [made])

            for made_on in dict.fromkeys(column.surrogate for column in missing):
                run = choose("surrogate", made_on, {"": None, **{run.digest: run for run in surrogates}})
                source = None if run is None else network(run, data_spec, workspace)
                on_it = tuple(column for column in missing if column.surrogate == made_on)
                evaluate(net, test, on_it, source, Resources(begun, found=keep))
            shutil.rmtree(begun, ignore_errors=True)
    kept = [store.read_rows(digest, _key(column, checkpoint)) for column in columns]
    return [replace(Accuracy.from_json(rows[0]), column=c) for c, rows in zip(columns, kept, strict=True) if rows]


def measured(
    spec: Network, data_spec: DataSpec, workspace: Workspace, columns: tuple[AttackSpec, ...], checkpoint: str = "best"
) -> bool:
    """Whether `measure` would compute nothing."""
    digest = network_digest(spec, data_spec)
    return all(workspace.store.read_rows(digest, _key(column, checkpoint)) is not None for column in columns)


def _key(column: AttackSpec, checkpoint: str) -> str:
    return digest_of([asdict(column.what), checkpoint, VERSION])


def made_with(spec: Network, data_spec: DataSpec, workspace: Workspace) -> list[dict[str, Any]]:
    """The provenance of a network's training and of its accuracies, as stored when they were made."""
    store, digest = workspace.store, network_digest(spec, data_spec)
    files = sorted((store.evaluations / digest).glob("*.json"))
    stored = [row["provenance"] for file in files for row in store.read_rows(digest, file.stem) or []]
    if isinstance(spec, RunSpec):
        stored.append(json.loads((store.folder(digest) / "provenance.json").read_text()))
    return stored
