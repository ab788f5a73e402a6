"""The levers of a run where its place asks for a calibration: made once per kind of work on a machine, then read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lib.engine import Levers, Tried, calibrate
from lib.spec import RunSpec, digest_of
from lib.store import Store, said_plainly, write_atomically

VERSION = 1  # raised when a calibration's code may find other levers


def calibrated(
    spec: RunSpec, net: nn.Module, x: Tensor, y: Tensor, store: Store, device: str
) -> tuple[Levers, list[Tried]]:
    """The levers that pay for `spec` on networks like net with batches like x, y, and what was found of each.

    Kept in <outputs>/calibrations/ by network, batch, precision, device (its name), threads and torch; in fp32 what
    changes more than rounding is left out. The processes that want the same wait for the first.
    """
    kind: dict[str, Any] = {"model": spec.model, "batch": list(x.shape), "precision": spec.precision, "device": device}
    kind |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "version": VERSION}
    key = digest_of(kind)
    path = store.outputs / "calibrations" / f"{key}.json"
    with store.claim(f"calibration-{key}"):
        if not path.exists():
            exact = spec.precision == "fp32"
            levers, tried = calibrate(net, x, y, epsilon=spec.epsilon, exact=exact, precision=spec.precision)
            found = {"kind": kind, "levers": asdict(levers), "tried": [asdict(one) for one in tried]}
            with said_plainly(store.outputs):
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, json.dumps(found, indent=1))
        kept = json.loads(path.read_text())
    return Levers(**kept["levers"]), [Tried(**one) for one in kept["tried"]]


def told(levers: Levers, tried: Sequence[Tried], missing: Mapping[str, str]) -> str:
    """The levers: how many times as fast each made its work in the calibration, or why it was `missing` in the run."""
    notes = {one.lever: f" ({one.row['times faster']:.2f} times faster)" for one in tried if one.kept}
    notes |= {name: f" (not to be had: {why})" for name, why in missing.items()}
    names = (name for name, on in asdict(levers).items() if on)
    return " + ".join(name + notes.get(name, "") for name in names) or str(levers)
