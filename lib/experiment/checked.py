"""The sanity checks of a run's network: made once, kept beside its accuracies."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from lib.attacks.folding import folded
from lib.data import to_float
from lib.evaluate import VERSION, Finding, sanity_checks
from lib.experiment import runs
from lib.experiment.runs import Network, Workspace
from lib.experiment.spec import DataSpec, RunSpec, digest_of
from lib.models.modes import frozen


@dataclass(frozen=True)
class Check:
    """The checks of a network on its first test images; `unrelated` is the one that the transfer check is made on."""

    label: str
    network: Network
    data: DataSpec
    images: int
    epsilon: float  # in [0, 1]
    checkpoint: str = "best"
    unrelated: RunSpec | None = None

    @property
    def digest(self) -> str:
        """What tells it from the job that makes the network."""
        return f"{runs.network_digest(self.network, self.data)}-{self.key}"

    @property
    def waits_for(self) -> set[str]:
        """The digests of the networks that have to be there."""
        nets = (self.network, self.unrelated)
        return {runs.network_digest(net, self.data) for net in nets if net is not None}

    @property
    def key(self) -> str:
        """What the findings are kept under, beside the network's accuracies."""
        unrelated = self.unrelated and self.unrelated.digest
        return digest_of(["sanity", self.images, self.epsilon, self.checkpoint, unrelated, VERSION])

    def stored(self, workspace: Workspace) -> list[dict[str, Any]] | None:
        """The findings as they are kept, or None."""
        return workspace.store.read_rows(runs.network_digest(self.network, self.data), self.key)

    def do(self, workspace: Workspace, notify: Callable[[float], None] = lambda share: None) -> str:
        """Make the findings unless they are there; returns what to say of them."""
        with workspace.store.claim(self.digest):
            if self.stored(workspace) is None:
                made = {"provenance": runs.provenance(workspace)}
                rows = [asdict(finding) | made for finding in self._findings(workspace)]
                workspace.store.write_rows(runs.network_digest(self.network, self.data), self.key, rows)
        fired = [finding.check for finding in self.findings(workspace) if finding.fired]
        return f"{self.label}: " + (", ".join(fired) + " fired" if fired else "sound")

    def findings(self, workspace: Workspace) -> tuple[Finding, ...]:
        """What the checks found, as stored; none where they were not made."""
        fields = ("check", "value", "limit", "meaning")
        return tuple(Finding(*(row[name] for name in fields)) for row in self.stored(workspace) or [])

    def _findings(self, workspace: Workspace) -> list[Finding]:
        net = runs.network(self.network, self.data, workspace, self.checkpoint)
        other = None if self.unrelated is None else folded(runs.network(self.unrelated, self.data, workspace))
        part = workspace.dataset(self.data).test.take(slice(0, self.images))
        x = to_float(part.images)
        with frozen(net):
            return sanity_checks(folded(net), x, part.labels, epsilon=self.epsilon, unrelated=other)
