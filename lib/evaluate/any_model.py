"""The evaluation of any classifier: a protocol's attacks, the worst case over them, and the sanity checks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lib.data import Split
from lib.errors import UserError
from lib.evaluate import given
from lib.evaluate.accuracy import Resources, evaluate, stages_for
from lib.evaluate.attacks import AttackSpec
from lib.evaluate.protocols import RADIUS, columns_of
from lib.evaluate.sanity import FIRED, SLACK_IMAGES, Finding, sanity_checks, strip, summary
from lib.evaluate.significance import Accuracy, WorstCase, contradictions, not_attacked, worst_cases
from lib.models.modes import frozen, mode

SANITY_IMAGES = 256  # that the sanity checks look at, at most
ENOUGH = 200  # as few as the checks' limits were measured on


@dataclass(frozen=True, repr=False)
class Report:
    """A network's accuracies under a protocol, its worst case, what the sanity checks found, and remarks.

    `warnings` are what has to be read first: it is said on top. The `picture` is a PNG.
    """

    protocol: str
    accuracies: tuple[Accuracy, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    picture: bytes = field(default=b"", compare=False)

    @property
    def worst(self) -> WorstCase | None:
        """The headline: what is right under every attack with a radius, on the images where that is least."""
        return next(iter(worst_cases(self.accuracies)), None)

    @property
    def frame(self) -> pd.DataFrame:
        """One line per attack: accuracy in %, its Wilson 95 % interval, k of n, and what `AttackSpec.settings` says."""
        records = []
        for a in self.accuracies:
            low, high = a.interval
            number = {"accuracy": round(a.percent, 2), "95 %": f"[{low:.1f}, {high:.1f}]", "right": f"{a.k}/{a.n}"}
            records.append({"column": a.column.name} | number | a.column.settings())
        return pd.DataFrame(records).set_index("column")

    def __repr__(self) -> str:
        top = [*self.warnings, *self._headlines()]
        return "\n".join([*top, self.frame.to_string(), *self.notes, *summary(*self._checks())])

    def _repr_html_(self) -> str:
        from lib.evaluate.picture import as_html

        top = as_html(self.picture) if self.picture else ""
        top += "".join(f'<p style="background: {FIRED}">{escape(warning)}</p>' for warning in self.warnings)
        top += "".join(f"<p><b>{escape(line)}</b></p>" for line in self._headlines())
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"{top}{self.frame.to_html()}{notes}{strip(*self._checks())}"

    def _headlines(self) -> list[str]:
        """The worst case, and those on other numbers of images, which are higher."""
        lines, start = [], f"Protocol {self.protocol}; worst case over the attacks, in %"
        for case in worst_cases(self.accuracies):
            clean = next(a.flags[: case.n].count("1") for a in self.accuracies if a.column.attack == "clean")
            lines.append(f"{start}: {case} ({clean} without an attack).")
            start = "On another number of images, the first ones, under all attacks that saw as many"
        return lines or [f"Protocol {self.protocol}; no attack with a radius."]

    def _checks(self) -> tuple[dict[str, tuple[Finding, ...]], dict[str, list[str]]]:
        more = [sentence for sentence in contradictions(self.accuracies) if f"{sentence}." not in self.warnings]
        return {"this network": self.findings}, {"this network": more}


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
    The model is evaluated in eval mode and float32, and left as it was. What would make the numbers meaningless is a
    UserError.
    """
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    given.validate(images, labels, epsilon, seed)
    epsilon, seed = float(epsilon), int(seed)
    with given.plain_float32(images.device):
        images, labels, columns = images.float(), labels.long(), columns_of(protocol, epsilon, step_size, changes)
        if images.is_inference() or labels.is_inference():
            images, labels = images.clone(), labels.clone()
        net, changed = given.usable(model)
        other = None if unrelated is None else given.usable(unrelated)[0]
        given.check_devices(net, images, labels)
        notes = (*changed, *_notes(net, other, columns, len(images)))
        columns = tuple(replace(column, images=min(column.images, len(images)), seed=seed) for column in columns)
        nets = nn.ModuleList([each for each in (net, other) if each is not None])
        with mode(nets, train=False), frozen(nets):
            net, changed = given.in_float32(net, images[:SANITY_IMAGES], labels[:SANITY_IMAGES], int(labels.max()))
            parts = _measured(net, other, Split(images, labels), columns, classes, epsilon, seed, resources)
    return Report(protocol, **parts | {"notes": (*changed, *notes, *parts["notes"])})


def _measured(
    net: nn.Module,
    unrelated: nn.Module | None,
    test: Split,
    columns: tuple[AttackSpec, ...],
    classes: int,
    epsilon: float,
    seed: int,
    resources: Resources | None,
) -> dict[str, Any]:
    """Everything of a report that is measured, by the report's names."""
    from lib.evaluate.picture import picture  # here, as matplotlib takes a second to import

    few = test.take(slice(SANITY_IMAGES))
    outputs = given.answers(net, few.images).shape[1]
    if classes not in (0, outputs):
        raise UserError(f"the network has {outputs} outputs, the data {classes} classes")
    warnings = [*given.depends_on_batch(net, few.images), *given.other_normalisation(net, *few)]
    columns, notes = _that_can_be_had(columns, outputs)
    accuracies = evaluate(net, test, columns, resources=resources)
    findings = sanity_checks(net, *few, epsilon=epsilon, unrelated=unrelated, seed=seed)
    return {
        "accuracies": tuple(accuracies),
        "findings": tuple(findings),
        "notes": notes,
        "warnings": (*(f"{sentence}." for sentence in not_attacked(accuracies)), *warnings),
        "picture": picture(net, *few, epsilon, accuracies, seed),
    }


def _that_can_be_had(columns: tuple[AttackSpec, ...], classes: int) -> tuple[tuple[AttackSpec, ...], tuple[str, ...]]:
    """The columns without the stages of AutoAttack that want more classes, and a sentence on what was left out."""
    made, notes = [], []
    for column in columns:
        left = stages_for(column, classes)
        if column.attack == "autoattack" and left and left != column.stages:
            why = f"whose loss wants four classes; there are {classes}"
            notes.append(f"{column.name} is {', '.join(left)}: without apgd-t, {why}.")
            column = replace(column, stages=left)
        made.append(column)
    return tuple(made), tuple(notes)


def _notes(model: nn.Module, unrelated: Any, columns: tuple[AttackSpec, ...], images: int) -> tuple[str, ...]:
    training = next((name or "the whole" for name, module in model.named_modules() if module.training), "")
    fewer = [column.name for column in columns if column.images > images]
    few = min(images, SANITY_IMAGES)
    notes = {
        f"The model was in train mode ({training}); it was evaluated in eval mode and put back.": training,
        f"The checks look at {few} images: what changes {SLACK_IMAGES} of them or fewer, "
        f"{100 * SLACK_IMAGES / few:.0f} points, passes.": few < ENOUGH,
        "Eleven of the twelve checks: the transfer check needs an unrelated network.": unrelated is None,
        f"{', '.join(fewer)}: on all {images} images, which is fewer than the protocol has.": fewer,
    }
    return tuple(note for note, applies in notes.items() if applies)
