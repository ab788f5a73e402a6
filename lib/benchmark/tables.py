"""The speed benchmark's tables: ratios, memory, and how the cost grows."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from lib.attacks.levers import Levers
from lib.benchmark.cases import TITLES, Case, ReleasedStep
from lib.benchmark.forms import our_step, pgd_forms
from lib.benchmark.measure import Timer, Work, in_turns, peak_memory, ratios
from lib.models.resnet import ResNet

RADIUS = 8 / 255
PRECISIONS = ("with bf16 crafting", "in fp32")  # the others than bf16 throughout, as columns: times as fast


def paired(pairs: Mapping[str, tuple[Work, Work]], repeats: int, timer: Timer, warm_up: int = 1) -> pd.DataFrame:
    """How many times as fast the second of each pair is, the two in turns; a line per pair, as `ratios` gives it."""
    lines = []
    for name, (before, after) in pairs.items():
        taken = in_turns({"before": before, name: after}, repeats, timer, warm_up)
        lines.append(ratios(taken, "before").loc[[name]].assign(before=taken["before"].median))
    return pd.concat(lines)


def steps(cases: Mapping[str, Case], levers: Levers, repeats: int, timer: Timer) -> pd.DataFrame:
    """How many times as fast our training step is as each method's released form, method by method, as `paired`.

    Beside that the same of our step with bf16 in the attack alone, and in fp32, where the levers have bf16.
    """
    lines = []
    for name, one in cases.items():
        works: dict[str, Work] = {"before": ReleasedStep(one), TITLES[name]: our_step(one, levers)}
        if levers.bf16:
            works |= {form: our_step(one, *how) for form, how in _other_precisions(levers).items()}
        taken = in_turns(works, repeats, timer, warm_ups(timer.device))
        line = ratios(taken, "before")
        others = {form: line.loc[form if form in taken else TITLES[name], "times as fast"] for form in PRECISIONS}
        line = line.loc[[TITLES[name]]].assign(before=taken["before"].median)
        for place, (form, share) in enumerate(others.items()):
            line.insert(3 + place, form, share)
        lines.append(line)
    return pd.concat(lines)


def _other_precisions(levers: Levers) -> dict[str, tuple[Levers, str]]:
    return dict(zip(PRECISIONS, ((levers, "bf16_crafting"), (replace(levers, bf16=False), "fp32")), strict=True))


def warm_ups(device: torch.device) -> int:
    """How often work is called before it is timed: a GPU's first call compiles, records and picks its kernels."""
    return 2 if device.type == "cuda" else 0


def memory(cases: Mapping[str, Case], levers: Levers, device: torch.device) -> pd.DataFrame:
    """Bytes that a second training step and all that it needs hold at most: networks, optimiser, copies, activations.

    Columns in MB: released, ours, ours in fp32, ours without `in_backward`; then ours as a share of released.
    """
    rows = {}
    for name, one in cases.items():
        forms: dict[str, Callable[[], Work]] = {
            "released": partial(ReleasedStep, one),
            "ours": partial(our_step, one, levers),
            "in fp32": partial(our_step, one, replace(levers, bf16=False)),
            "without in_backward": partial(our_step, one, replace(levers, in_backward=False)),
        }
        rows[TITLES[name]] = {form: peak_memory(partial(_twice, make), device) / 1e6 for form, make in forms.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame.assign(share=frame.ours / frame.released)


def _twice(make: Callable[[], Work]) -> None:
    step = make()
    step()
    step()


def curves(
    base: Mapping[str, int], along: Mapping[str, list[int]], levers: Levers, repeats: int, timer: Timer
) -> pd.DataFrame:
    """Seconds of PGD by torchattacks and by us as one of batch, steps, width and side grows from `base`.

    A line per axis, value and form, with the median of `repeats` rounds; all of an axis takes turns, so that no mood of
    the machine is taken for growth.
    """
    lines = []
    for axis, values in along.items():
        works = {
            (value, form): work
            for value in values
            for form, work in _forms_at({**base, axis: value}, levers, timer.device).items()
        }
        for (value, form), timed in in_turns(works, repeats, timer).items():
            lines.append({"axis": axis, "value": value, "form": form, "seconds": timed.median})
    return pd.DataFrame(lines)


def _forms_at(size: Mapping[str, int], levers: Levers, device: torch.device) -> dict[str, Work]:
    x, y = noise(size["batch"], size["side"], device)
    net = ResNet((1, 1, 1, 1), size["width"], classes=10).to(device)
    forms = pgd_forms(net, x, y, RADIUS, size["steps"], levers)
    return {form: forms[form] for form in ("torchattacks", "ours")}


def growth(frame: pd.DataFrame) -> pd.DataFrame:
    """The exponent p of seconds ~ value^p from a line's first to its last point: 1 is linear. A column per form."""
    ends = frame.sort_values("value").groupby(["axis", "form"], sort=False)
    first, last = ends.first(), ends.last()
    return (np.log(last.seconds / first.seconds) / np.log(last.value / first.value)).unstack()


def noise(count: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Uniform random images (count, 3, side, side) and labels of ten classes: what is timed does not depend on them."""
    generator = Generator().manual_seed(0)
    images = torch.rand(count, 3, side, side, generator=generator)
    return images.to(device), torch.randint(10, (count,), generator=generator).to(device)
