"""The levers of a run where its place asks for a calibration: made once per kind of work on a machine, then read."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lib.attacks.calibration import Tried, calibrate
from lib.attacks.levers import Levers
from lib.experiment.spec import RunSpec, digest_of
from lib.experiment.store import Store
from lib.files import disk_errors, write_atomically

VERSION = 1  # raised when a calibration's code may find other levers
COLUMNS = ("lever", "tried on", "times as fast", "lowest", "highest", "verdict")


@dataclass(frozen=True)
class Calibration:
    """The levers that were chosen, what was found of each, the seconds that it took, and its file in the outputs.

    Of levers by name nothing was found.
    """

    levers: Levers
    tried: tuple[Tried, ...] = ()
    seconds: float = 0.0
    file: str = ""

    @property
    def frame(self) -> pd.DataFrame:
        """A line for each lever that was tried."""
        return pd.DataFrame([one.row for one in self.tried], columns=list(COLUMNS)).set_index("lever")

    def told(self, used: Levers, missing: Mapping[str, str]) -> str:
        """The levers that a run `used`: what each made of its work's speed here, or why it was `missing`; the file."""
        notes = {one.lever: f" (x {one.row['times as fast']:.2f})" for one in self.tried if one.kept and one.shares}
        notes |= {"in_backward": " (for memory)"} | {name: f" (not to be had: {why})" for name, why in missing.items()}
        names = (name for name, on in asdict(used).items() if on)
        said = " + ".join(name + notes.get(name, "") for name in names) or str(used)
        return f"{said}, by {self.file}" if self.file else said


def calibrated(spec: RunSpec, net: nn.Module, x: Tensor, y: Tensor, store: Store, device: str) -> Calibration:
    """What pays for `spec` on networks like net with batches like x (N, C, H, W), y (N,).

    Kept in <outputs>/calibrations/ by network, batch, precision, device (its name), threads and torch, until the file
    is deleted. The processes that want the same wait for the first.

    Raises:
        UserError: the folder cannot be written.
    """
    kind: dict[str, Any] = {"model": spec.model, "batch": list(x.shape), "precision": spec.precision, "device": device}
    kind |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "version": VERSION}
    key = digest_of(kind)
    path = store.outputs / "calibrations" / f"{key}.json"
    with store.claim(f"calibration-{key}"):
        if not path.exists():
            found = {"kind": kind} | _found(spec, net, x, y)
            with disk_errors(store.outputs):
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, json.dumps(found, indent=1))
        kept = json.loads(path.read_text())
    tried = tuple(Tried(**{**one, "shares": tuple(one["shares"])}) for one in kept["tried"])
    return Calibration(Levers(**kept["levers"]), tried, kept["seconds"], f"calibrations/{path.name}")


def _found(spec: RunSpec, net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    begun = time.monotonic()
    levers, tried = calibrate(net, x, y, epsilon=spec.epsilon, precision=spec.precision)
    taken = round(time.monotonic() - begun, 2)
    return {"levers": asdict(levers), "tried": [asdict(one) for one in tried], "seconds": taken}
