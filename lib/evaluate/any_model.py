"""The evaluation of any classifier: a protocol's attacks, the worst case over them, and the sanity checks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lib.data import Split
from lib.errors import UserError, choose, typed
from lib.evaluate.accuracy import Resources, check_fits, evaluate
from lib.evaluate.attack_spec import Accuracy, AttackSpec
from lib.evaluate.inputs import are_probabilities, check_classes, check_images, check_labels, check_logits
from lib.evaluate.protocols import PRESETS, PROTOCOLS, RADIUS, at_radius
from lib.evaluate.sanity import SLACK_IMAGES, Finding, sanity_checks
from lib.evaluate.significance import WorstCase, contradictions, worst_case
from lib.evaluate.strip import strip, summary
from lib.models.modes import frozen, mode

CHECKED = 256  # images that the sanity checks look at, at most
ENOUGH_TO_CHECK = 200  # as few as the thresholds were measured on


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
        return "\n".join([self._headline(), self.frame.to_string(), *self._said()])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        found = {"this network": self.findings} if self.findings else {}
        said = {"this network": contradictions(self.accuracies)}
        return f"<p><b>{self._headline()}</b></p>{self.frame.to_html()}{notes}{strip(found, said)}"

    def _headline(self) -> str:
        if self.worst is None:
            return f"Protocol {self.protocol}; no attack with a radius."
        clean = next((a for a in self.accuracies if a.column.attack == "clean"), None)
        n = self.worst.n
        same = f" ({clean.flags[:n].count('1')} without an attack)" if clean else ""
        return f"Protocol {self.protocol}; worst case over the attacks, in %: {self.worst}{same}."

    def _said(self) -> list[str]:
        found = {"this network": self.findings} if self.findings else {}
        return [*self.notes, *summary(found, {"this network": contradictions(self.accuracies)})]


def columns_of(
    protocol: str,
    epsilon: float = RADIUS,
    step_size: float | None = None,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[AttackSpec, ...]:
    """A protocol's columns at a radius in [0, 1], steps of a quarter of it where no step_size is given.

    `changes` are settings for columns by name, such as {"AA": {"images": 100}}.

    Raises:
        UserError: an unknown protocol or column, or a setting that makes no sense.
    """
    named = choose("protocol", protocol, PROTOCOLS)
    for name in changes or {}:
        choose("column of this protocol", name, named)
    size = epsilon / 4 if step_size is None else step_size
    columns = {name: at_radius(PRESETS[preset], epsilon, size) for name, preset in named.items()}
    return tuple(changed(replace(column, name=name), (changes or {}).get(name, {})) for name, column in columns.items())


def changed(column: AttackSpec, settings: Mapping[str, Any]) -> AttackSpec:
    """The column with some settings replaced, each of its declared type.

    Raises:
        UserError: an unknown setting, a wrong type or a number that makes no sense.
    """
    given = asdict(column) | {"stages": list(column.stages)} | dict(settings)
    return typed(AttackSpec, given | {"stages": list(given["stages"])}, f"column {column.name}")


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
    """The accuracy of any classifier under a protocol's attacks, each checked, with the sanity checks' findings.

    Shapes: images (N, C, H, W) floats in [0, 1], labels (N,) whole numbers; the model's outputs are logits (N, K), its
    normalisation its own first layer. Where a column wants more images than there are, all are taken, and the report
    says so. `classes` is K where it is known. `unrelated` is a network trained apart, for the transfer check. With
    `means` AutoAttack goes on where it was killed. The model is evaluated in eval mode, and left as it was.

    Raises:
        UserError: what would make the numbers meaningless, in a sentence; or an unknown protocol, column or setting.
    """
    check_images(images)
    check_labels(labels, len(images))
    if not (0 < epsilon <= 1):
        raise UserError(f"the radius lies in (0, 1], got {epsilon}; 8/255 is {8 / 255:.5f}")
    _check_device(model, images, labels)
    images, labels, notes = images.float(), labels.long(), _notes(model)
    with mode(model, train=False), frozen(model):
        logits = _outputs(model, images[:CHECKED])
        check_logits(logits, labels[:CHECKED])
        check_classes(logits.shape[1], classes or logits.shape[1])
        if int(labels.max()) >= logits.shape[1]:
            raise UserError(f"the network has {logits.shape[1]} outputs, the labels go up to {int(labels.max())}")
        if are_probabilities(logits):
            notes.append(
                "The outputs are probabilities, not logits: losses are then taken of something else, and every number "
                "here is suspect. Take the softmax off."
            )
        columns, fewer = _that_fit(columns_of(protocol, epsilon, step_size, changes), len(images), seed)
        for column in columns:
            check_fits(column, len(images), logits.shape[1])
        found = evaluate(model, Split(images, labels), columns, resources=resources)
        checked = images[:CHECKED], labels[:CHECKED]
        findings = _checked(model, *checked, epsilon, unrelated, seed)
    notes += _few(len(checked[1]))
    if unrelated is None:
        notes.append("Ten of the eleven checks: the transfer check wants an unrelated network.")
    return Report(protocol, tuple(found), tuple(findings), (*notes, *fewer))


def _checked(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, unrelated: nn.Module | None, seed: int
) -> list[Finding]:
    if unrelated is None:
        return sanity_checks(model, x, y, epsilon=epsilon, seed=seed)
    with mode(unrelated, train=False), frozen(unrelated):
        return sanity_checks(model, x, y, epsilon=epsilon, unrelated=unrelated, seed=seed)


def _few(images: int) -> list[str]:
    """A remark where the checks look at so few images that a fault has to be large to be seen."""
    if images >= ENOUGH_TO_CHECK:
        return []
    return [
        f"The checks look at {images} images: what changes {SLACK_IMAGES} of them or fewer, "
        f"{100 * SLACK_IMAGES / images:.0f} points, passes."
    ]


def _check_device(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    places = {str(tensor.device) for tensor in (*model.parameters(), images, labels)}
    if len(places) > 1:
        raise UserError(f"model, images and labels want one device, they are on {', '.join(sorted(places))}")


def _notes(model: nn.Module) -> list[str]:
    training = [name or "the whole" for name, module in model.named_modules() if module.training]
    if not training:
        return []
    return [f"The model was in train mode ({training[0]}); it was evaluated in eval mode and put back."]


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        outputs = model(images)
    if not isinstance(outputs, Tensor):
        raise UserError(f"the model returns {type(outputs).__name__}, not a tensor of logits")
    return outputs


def _that_fit(columns: tuple[AttackSpec, ...], images: int, seed: int) -> tuple[tuple[AttackSpec, ...], list[str]]:
    """The columns on no more images than there are, and a sentence where that changed one."""
    fewer = [column.name for column in columns if column.images > images]
    said = [f"{', '.join(fewer)}: on all {images} images, which is fewer than the protocol wants."] if fewer else []
    return tuple(replace(column, images=min(column.images, images), seed=seed) for column in columns), said
