"""The evaluation of any classifier: a protocol's attacks, the worst case over them, and the sanity checks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lib.data import Split
from lib.errors import UserError
from lib.evaluate.accuracy import Resources, check_fits, evaluate
from lib.evaluate.attack_spec import Accuracy, AttackSpec
from lib.evaluate.findings import Finding, strip, summary
from lib.evaluate.inputs import check_images, check_labels, check_logits
from lib.evaluate.protocols import RADIUS, columns_of
from lib.evaluate.sanity import SLACK_IMAGES, sanity_checks
from lib.evaluate.significance import WorstCase, contradictions, worst_case
from lib.models.modes import frozen, mode

SANITY_IMAGES = 256  # that the sanity checks look at, at most
ENOUGH = 200  # as few as the checks' limits were measured on
NETWORK = "this network"


@dataclass(frozen=True, repr=False)
class Report:
    """A network's accuracies under a protocol, its worst case, what the sanity checks found, and remarks."""

    protocol: str
    accuracies: tuple[Accuracy, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def worst(self) -> WorstCase | None:
        """What is right under every attack with a radius: the headline."""
        return worst_case(self.accuracies)

    @property
    def frame(self) -> pd.DataFrame:
        """One line per attack: accuracy in %, its Wilson 95 % interval, k of n, and all settings of the attack."""
        records = []
        for a in self.accuracies:
            low, high = a.interval
            number = {"accuracy": round(a.percent, 2), "95 %": f"[{low:.1f}, {high:.1f}]", "right": f"{a.k}/{a.n}"}
            records.append({"column": a.column.name} | number | a.column.settings())
        return pd.DataFrame(records).set_index("column")

    def flags(self) -> dict[str, str]:
        """Which images are right, one character each, per column: what two networks are compared by (`mcnemar`)."""
        return {a.column.name: a.flags for a in self.accuracies}

    def __repr__(self) -> str:
        return "\n".join([self._headline(), self.frame.to_string(), *self.notes, *summary(*self._checks())])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return f"<p><b>{self._headline()}</b></p>{self.frame.to_html()}{notes}{strip(*self._checks())}"

    def _headline(self) -> str:
        if self.worst is None:
            return f"Protocol {self.protocol}; no attack with a radius."
        clean = next((a.flags[: self.worst.n] for a in self.accuracies if a.column.attack == "clean"), None)
        same = "" if clean is None else f" ({clean.count('1')} without an attack)"
        return f"Protocol {self.protocol}; worst case over the attacks, in %: {self.worst}{same}."

    def _checks(self) -> tuple[dict[str, tuple[Finding, ...]], dict[str, list[str]]]:
        findings = {NETWORK: self.findings} if self.findings else {}
        return findings, {NETWORK: contradictions(self.accuracies)}


def report(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    protocol: str = "common",
    *,
    epsilon: float = RADIUS,
    step_size: float | None = None,
    classes: int = 0,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    unrelated: nn.Module | None = None,
    seed: int = 0,
    resources: Resources | None = None,
) -> Report:
    """The accuracy of any classifier under a protocol's attacks, each validated, with the sanity checks' findings.

    Shapes: images (N, C, H, W) floats in [0, 1], labels (N,) whole numbers; the model's outputs are logits (N, K), its
    normalisation its own first layer. epsilon and step_size are in [0, 1]. Where a column has more images than there
    are, all are taken, and the report says so. `classes` is K where it is known. `unrelated` is a network trained
    apart, for the transfer check. With `resources` AutoAttack goes on where it was killed. The model is evaluated in
    eval mode, and left as it was.

    Raises:
        UserError: what would make the numbers meaningless, in a sentence; or an unknown protocol, column or setting.
    """
    _validate(model, images, labels, epsilon)
    images, labels, columns = images.float(), labels.long(), columns_of(protocol, epsilon, step_size, changes)
    notes = _notes(model, unrelated, columns, len(images))
    columns = tuple(replace(column, images=min(column.images, len(images)), seed=seed) for column in columns)
    nets, few = nn.ModuleList([net for net in (model, unrelated) if net is not None]), slice(SANITY_IMAGES)
    with mode(nets, train=False), frozen(nets):
        outputs = _outputs(model, images[few], labels, classes)
        for column in columns:
            check_fits(column, len(images), outputs)
        accuracies = evaluate(model, Split(images, labels), columns, resources=resources)
        findings = sanity_checks(model, images[few], labels[few], epsilon=epsilon, unrelated=unrelated, seed=seed)
    return Report(protocol, tuple(accuracies), tuple(findings), notes)


def _validate(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> None:
    check_images(images)
    check_labels(labels, len(images))
    if not 0 < epsilon <= 1:
        raise UserError(f"the radius lies in (0, 1], got {epsilon}; 8/255 is {8 / 255:.5f}")
    devices = {str(tensor.device) for tensor in (*model.parameters(), images, labels)}
    if len(devices) > 1:
        raise UserError(f"model, images and labels must be on one device, they are on {', '.join(sorted(devices))}")


def _outputs(model: nn.Module, x: Tensor, labels: Tensor, classes: int) -> int:
    """How many outputs the model has, one for every class and every label."""
    with torch.no_grad():
        logits = model(x)
    check_logits(logits, labels[: len(x)])
    outputs = logits.shape[1]
    if classes and outputs != classes:
        raise UserError(f"the network has {outputs} outputs, the data {classes} classes")
    if int(labels.max()) >= outputs:
        raise UserError(f"the network has {outputs} outputs, the labels go up to {int(labels.max())}")
    return int(outputs)


def _notes(
    model: nn.Module, unrelated: nn.Module | None, columns: tuple[AttackSpec, ...], images: int
) -> tuple[str, ...]:
    training = next((name or "the whole" for name, module in model.named_modules() if module.training), "")
    fewer = [column.name for column in columns if column.images > images]
    few = min(images, SANITY_IMAGES)
    notes = {
        f"The model was in train mode ({training}); it was evaluated in eval mode and put back.": training,
        f"The checks look at {few} images: what changes {SLACK_IMAGES} of them or fewer, "
        f"{100 * SLACK_IMAGES / few:.0f} points, passes.": few < ENOUGH,
        "Ten of the eleven checks: the transfer check needs an unrelated network.": unrelated is None,
        f"{', '.join(fewer)}: on all {images} images, which is fewer than the protocol has.": fewer,
    }
    return tuple(note for note, applies in notes.items() if applies)
