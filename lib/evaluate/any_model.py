"""The evaluation of any classifier: a protocol's attacks, the worst case over them, and the sanity checks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lib.data import Split
from lib.errors import UserError
from lib.evaluate.accuracy import Resources, check_logits, evaluate
from lib.evaluate.attacks import AttackSpec
from lib.evaluate.protocols import RADIUS, columns_of
from lib.evaluate.sanity import SLACK_IMAGES, Finding, sanity_checks, strip, summary
from lib.evaluate.significance import Accuracy, WorstCase, contradictions, worst_case
from lib.models.modes import frozen, mode

SANITY_IMAGES = 256  # that the sanity checks look at, at most
ENOUGH = 200  # as few as the checks' limits were measured on


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

    def __repr__(self) -> str:
        return "\n".join([self._headline(), self.frame.to_string(), *self.notes, *summary(*self._checks())])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return f"<p><b>{self._headline()}</b></p>{self.frame.to_html()}{notes}{strip(*self._checks())}"

    def _headline(self) -> str:
        n = self.worst.n if self.worst else 0
        (clean,) = (a.flags[:n].count("1") for a in self.accuracies if a.column.attack == "clean")
        worst = f"worst case over the attacks, in %: {self.worst} ({clean} without an attack)"
        return f"Protocol {self.protocol}; {worst}."

    def _checks(self) -> tuple[dict[str, tuple[Finding, ...]], dict[str, list[str]]]:
        return {"this network": self.findings}, {"this network": contradictions(self.accuracies)}


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
    are, all are taken. `classes` is K where it is known, `unrelated` a network trained apart, for the transfer check.
    The model is evaluated in eval mode and left as it was. What would make the numbers meaningless is a UserError.
    """
    images, labels, few = torch.as_tensor(images), torch.as_tensor(labels), slice(SANITY_IMAGES)
    _validate(images, labels, epsilon, model)
    images, labels, columns = images.float(), labels.long(), columns_of(protocol, epsilon, step_size, changes)
    notes = _notes(model, unrelated, columns, len(images))
    columns = tuple(replace(column, images=min(column.images, len(images)), seed=seed) for column in columns)
    nets = nn.ModuleList([net for net in (model, unrelated) if net is not None])
    with mode(nets, train=False), frozen(nets):
        logits = model(images[few])
        check_logits(logits, labels[few], int(labels.max()))
        if classes not in (0, logits.shape[1]):
            raise UserError(f"the network has {logits.shape[1]} outputs, the data {classes} classes")
        accuracies = evaluate(model, Split(images, labels), columns, resources=resources)
        findings = sanity_checks(model, images[few], labels[few], epsilon=epsilon, unrelated=unrelated, seed=seed)
    return Report(protocol, tuple(accuracies), tuple(findings), notes)


def _validate(x: Tensor, y: Tensor, epsilon: float, model: nn.Module) -> None:
    if x.dim() != 4 or not len(x):
        raise UserError(f"images must have the shape (N, C, H, W) with N >= 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise UserError(f"images must be floats in [0, 1], got {x.dtype}; bytes are divided by 255 first")
    low, high = float(x.min()), float(x.max())  # NaN where any value is
    if not (low >= 0 and high <= 1):
        hint = "a normalisation belongs into the network"
        raise UserError(f"images must have values in [0, 1], got {low:.4g} to {high:.4g}; {hint}")
    if y.shape != (len(x),) or y.is_floating_point() or y.dtype == torch.bool:
        raise UserError(f"labels must be one whole number per image ({len(x)}), got {tuple(y.shape)} of {y.dtype}")
    if int(y.min()) < 0:
        raise UserError(f"labels must be numbers from 0, got {int(y.min())}")
    if not 0 < epsilon <= 1:
        raise UserError(f"the radius lies in (0, 1], got {epsilon}; 8/255 is {8 / 255:.5f}")
    devices = {str(tensor.device) for tensor in (*model.parameters(), x, y)}
    if len(devices) > 1:
        raise UserError(f"model, images and labels must be on one device, they are on {', '.join(sorted(devices))}")


def _notes(model: nn.Module, unrelated: Any, columns: tuple[AttackSpec, ...], images: int) -> tuple[str, ...]:
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
