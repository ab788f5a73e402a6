"""The papers' attacks by name, each with everything that decides its number, and which of them a paper's columns are.

Radii are the papers': 8/255 with steps of 2/255, or 0.031. `at_radius` brings them to other data's in proportion.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lib.errors import check_type, choose
from lib.evaluate.attacks import STAGES, AttackSpec, changed

RADIUS, STEP = 8 / 255, 2 / 255
FAT_RADIUS, FAT_STEP = 0.031, 0.031 / 4  # as FAT evaluates

_COLUMNS = {
    "Clean": AttackSpec("", "clean"),
    "FGSM": AttackSpec("", "fgsm", RADIUS),
    "FGSM-random": AttackSpec("", "fgsm_random", RADIUS),  # LAS-AT's: weaker than from the image
    **{f"PGD-{steps}": AttackSpec("", "pgd", RADIUS, STEP, steps) for steps in (10, 20, 50, 100)},
    **{f"PGD-{steps}-frozen": AttackSpec("", "pgd_frozen", RADIUS, STEP, steps) for steps in (10, 20, 50, 100)},
    **{f"CW-{steps}": AttackSpec("", "cw", RADIUS, STEP, steps) for steps in (20, 30)},
    "CW-20-frozen": AttackSpec("", "cw_frozen", RADIUS, STEP, 20),
    "CW-30-confidence": AttackSpec("", "cw_confidence", RADIUS, STEP, 30),
    "CW2": AttackSpec("", "cw2", steps=1000),
    "APGD-CE": AttackSpec("", "autoattack", RADIUS, stages=("apgd-ce",)),
    "APGD-T": AttackSpec("", "autoattack", RADIUS, stages=("apgd-t",)),
    "AA": AttackSpec("", "autoattack", RADIUS),
    "AA-0.031": AttackSpec("", "autoattack", 0.031),
    "AA-0.031-1000": AttackSpec("", "autoattack", 0.031, images=1000),
    "APGD-CE-0.031-1000": AttackSpec("", "autoattack", 0.031, images=1000, stages=("apgd-ce",)),  # from its log
    "FGSM-random-0.031": AttackSpec("", "fgsm_random", FAT_RADIUS),
    "PGD-20-0.031": AttackSpec("", "pgd", FAT_RADIUS, FAT_STEP, 20),
    "CW-30-0.031": AttackSpec("", "cw", FAT_RADIUS, FAT_STEP, 30),
    "FGSM-torchattacks": AttackSpec("", "torchattacks_fgsm", RADIUS),
    "PGD-20-torchattacks": AttackSpec("", "torchattacks_pgd", RADIUS, STEP, 20),
    "APGD-CE-torchattacks": AttackSpec("", "torchattacks_apgd", RADIUS, steps=100, images=200),  # one batch
    "JSMA": AttackSpec("", "jsma"),
    "JSMA-as-published": AttackSpec("", "jsma_as_published"),
}
PRESETS = {name: replace(column, name=name, preset=name) for name, column in _COLUMNS.items()}

_FROZEN = {f"PGD-{steps}": f"PGD-{steps}-frozen" for steps in (10, 20, 50)} | {"C&W": "CW-20-frozen"}
PROTOCOLS = {
    "las_at": {"Clean": "Clean", "FGSM": "FGSM-random", **_FROZEN, "AA": "AA"},
    "dgad": {"Clean": "Clean", "FGSM": "FGSM", "PGD": "PGD-10", "CW2": "CW2", "AA": "AA"},
    "dynat": {"Clean": "Clean", **_FROZEN, "AA": "AA-0.031-1000"},
    "d2r": {"Clean": "Clean", **_FROZEN, "AA": "AA-0.031"},
    "torchattacks": {"Clean": "Clean", **{name: f"{name}-torchattacks" for name in ("FGSM", "PGD-20", "APGD-CE")}},
    "common": {"Clean": "Clean", "FGSM": "FGSM", "PGD-20": "PGD-20", "PGD-50": "PGD-50", "C&W": "CW-20", "AA": "AA"},
}
"""A column's name in a paper's tables -> the preset behind it; "common" is one for all: last iterates, one radius.
"torchattacks" is a second opinion on the common one's FGSM and PGD-20 and on APGD-CE."""


def at_radius(column: AttackSpec, epsilon: float, step_size: float) -> AttackSpec:
    """The column where epsilon and step_size (in [0, 1]) take the place of 8/255 and 2/255, others in proportion."""
    return replace(column, epsilon=column.epsilon / RADIUS * epsilon, step_size=column.step_size / STEP * step_size)


def columns_of(
    protocol: str,
    epsilon: float = RADIUS,
    step_size: float | None = None,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[AttackSpec, ...]:
    """A protocol's columns at a radius in [0, 1], steps of a quarter of it where no step_size is given.

    `changes` are settings for columns by name, such as {"AA": {"images": 100}}; UserError for an unknown one.
    """
    presets, changes = choose("protocol", protocol, PROTOCOLS), changes or {}
    check_type(changes, dict[str, dict[str, Any]], "changes")
    for name in changes:
        choose("column of this protocol", name, presets)
    size = epsilon / 4 if step_size is None else step_size
    columns = (replace(at_radius(PRESETS[preset], epsilon, size), name=name) for name, preset in presets.items())
    return tuple(changed(column, changes.get(column.name, {})) for column in columns)


def heading(column: AttackSpec, images: int) -> str:
    """The column's name, with what is less or other than its preset's, and than all of `images` test images."""
    usual, differs = PRESETS.get(column.preset, replace(column, stages=STAGES)), []
    if column.attack == "autoattack" and column.stages != usual.stages:
        differs.append("+".join(stage.upper() for stage in column.stages) + " only")
    if column.steps != usual.steps:
        differs.append(f"{column.steps:,} steps")
    if 0 < column.images < images:
        differs.append(f"{column.images} images")
    return column.name + (f" ({', '.join(differs)})" if differs else "")
