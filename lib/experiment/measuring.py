"""Measuring a network: its accuracies and the sanity checks of its evaluation, each computed once and kept."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lib.attacks.folding import folded
from lib.data import to_float
from lib.errors import UserError
from lib.evaluate import VERSION, Accuracy, AttackSpec, Finding, Resources, evaluate, sanity_checks
from lib.experiment.networks import Network, Workspace, network, network_digest, provenance
from lib.experiment.spec import DataSpec, RunSpec, digest_of
from lib.models.modes import frozen


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
                source = next((network(s, data_spec, workspace) for s in surrogates if s.digest == made_on), None)
                columns_on = tuple(column for column in missing if column.surrogate == made_on)
                if made_on and source is None:
                    raise UserError(f"column {columns_on[0].name}: its surrogate {made_on} was not given")
                evaluate(net, test, columns_on, source, Resources(begun, found=keep))
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


@dataclass(frozen=True)
class Sanity:
    """The sanity checks of a network on its first test images; `unrelated` is the source of the transfer check."""

    images: int
    epsilon: float  # in [0, 1]
    checkpoint: str = "best"
    unrelated: RunSpec | None = None

    @property
    def key(self) -> str:
        """The key that the findings are kept under, beside the network's accuracies."""
        unrelated = self.unrelated and self.unrelated.digest
        return digest_of(["sanity", self.images, self.epsilon, self.checkpoint, unrelated, VERSION])

    def make(self, spec: Network, data_spec: DataSpec, workspace: Workspace) -> None:
        """Compute and keep the findings of a network unless they are there."""
        store, digest = workspace.store, network_digest(spec, data_spec)
        with store.claim(f"{digest}-{self.key}"):
            if store.read_rows(digest, self.key) is not None:
                return
            net = network(spec, data_spec, workspace, self.checkpoint)
            other = None if self.unrelated is None else folded(network(self.unrelated, data_spec, workspace))
            part = workspace.dataset(data_spec).test.take(slice(0, self.images))
            x = to_float(part.images)
            with frozen(net):
                findings = sanity_checks(folded(net), x, part.labels, epsilon=self.epsilon, unrelated=other)
            facts = {"provenance": provenance(workspace)}
            store.write_rows(digest, self.key, [asdict(finding) | facts for finding in findings])

    def read(self, spec: Network, data_spec: DataSpec, workspace: Workspace) -> tuple[Finding, ...] | None:
        """The findings as they are kept, or None."""
        rows = workspace.store.read_rows(network_digest(spec, data_spec), self.key)
        fields = ("check", "value", "limit", "meaning")
        return None if rows is None else tuple(Finding(*(row[name] for name in fields)) for row in rows)


def made_with(spec: Network, data_spec: DataSpec, workspace: Workspace) -> list[dict[str, Any]]:
    """The provenance of a network's training and of its accuracies, as stored when they were made."""
    store, digest = workspace.store, network_digest(spec, data_spec)
    files = sorted((store.evaluations / digest).glob("*.json"))
    stored = [row["provenance"] for file in files for row in store.read_rows(digest, file.stem) or []]
    if isinstance(spec, RunSpec):
        stored.append(json.loads((store.folder(digest) / "provenance.json").read_text()))
    return stored
