"""What the speed was meant to be, beside what it is: the bars of the issue that asked for it."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch

from lib.attacks.levers import Levers
from lib.benchmark.cases import TITLES, Case
from lib.benchmark.forms import our_step
from lib.benchmark.measure import Timer, achieved, matmul_peak
from lib.benchmark.settings import SpeedParameters

PGD = "PGD-20 against torchattacks'"
PEAK = "share of the matrix-product peak, PGD-AT"
MEMORY = "peak memory against the released form, "
GROWTH = "exponent of the cost in the attack's steps"
BEYOND = "exponent beyond torchattacks', growing "
STEP = "training step against the released form, "
EXACT = "flags that the fp32 levers change"
FLAGS = "share of flags that bf16 changes"
SHIFT = "points of robust accuracy that bf16 changes"

BARS: dict[str, tuple[float | None, float | None]] = {  # on a CPU, on a GPU; None: reported only
    PGD: (2.4, 5.0),
    **{STEP + title: (2.0, 4.0) for title in TITLES.values()},
    PEAK: (None, 0.35),
    **{MEMORY + title: (0.6, 0.6) for title in TITLES.values()},
    **{EXACT: (0.0, 0.0), FLAGS: (0.01, 0.01), SHIFT: (0.3, 0.3)},
    GROWTH: (1.1, 1.1),  # linear, and a tenth for the clock
    **{BEYOND + axis: (0.1, 0.1) for axis in ("batch", "width", "side")},
}
AT_MOST = (MEMORY, GROWTH, BEYOND, EXACT, FLAGS, SHIFT)
ANY_SIZE = (GROWTH, BEYOND, EXACT, FLAGS, SHIFT)  # measured on networks and sizes of their own
OTHER_BARS = {"WideResNet-34-10": {PEAK: (None, 0.5)}}


def bars(measured: Mapping[str, float], device: torch.device, asked: SpeedParameters) -> pd.DataFrame:
    """Every bar with what was measured: a column for the CPU and one for the GPU, of which one is this machine's.

    Ratios are times as fast, at least; memory is a share and growth an exponent, at most. The other column says that it
    was not measured. The bars were set for ResNet18 at one size, but for the share of a GPU's peak, where
    WideResNet-34-10 has one of its own; what was measured of another network or size is not judged.
    """
    lines = []
    for name, wanted in (BARS | OTHER_BARS.get(asked.model, {})).items():
        line: dict[str, object] = {"what": name}
        for kind, bar in zip(("cpu", "cuda"), wanted, strict=True):
            here = kind == device.type
            line[f"{kind}: bar"] = _bar(name, bar)
            line[f"{kind}: measured"] = f"{measured[name]:.3g}" if here and name in measured else "not measured here"
            line[f"{kind}: met"] = _met(name, bar, measured, asked.as_asked(device), asked.model) if here else ""
        lines.append(line)
    return pd.DataFrame(lines).set_index("what").rename(columns=lambda name: name.replace("cuda", "gpu"))


def _bar(name: str, bar: float | None) -> str:
    if bar is None:
        return "reported"
    return f"at most {bar:g}" if name.startswith(AT_MOST) else f"at least {bar:g}"


def _met(name: str, bar: float | None, measured: Mapping[str, float], own_size: bool, model: str) -> str:
    if bar is None or name not in measured:
        return ""
    own_model = model == "ResNet18" or name in OTHER_BARS.get(model, {})
    if not name.startswith(ANY_SIZE) and not (own_size and own_model):
        return "not the bar's setting"
    good = measured[name] <= bar if name.startswith(AT_MOST) else measured[name] >= bar
    return "met" if good else "not met"


def share_of_peak(case: Case, levers: Levers, repeats: int, timer: Timer) -> dict[str, float]:
    """TFLOP/s of matrix products alone, of our training step (the median), and the second as a share of the first."""
    dtype = torch.bfloat16 if levers.bf16 else torch.float32
    plain = our_step(case, replace(levers, cuda_graph=False, compile=False))
    peak, reached = matmul_peak(timer, dtype), achieved(our_step(case, levers), plain, timer, repeats)
    return {"matrix products, TFLOP/s": peak / 1e12, "training step, TFLOP/s": reached / 1e12, "share": reached / peak}
