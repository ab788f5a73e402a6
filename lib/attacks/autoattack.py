"""AutoAttack (Croce & Hein 2020) over a whole set: the authors' stages, as pyautoattack has them.

Ours are: the images still right are packed into full batches before every stage, the flags after every stage, a folder
that a killed run goes on from, and the share that is done.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lib.attacks.pgd import Net
from lib.errors import UserError, choose
from lib.files import disk_errors, write_atomically
from lib.models.modes import frozen

PASSES = {"apgd-ce": 200, "apgd-t": 1800, "fab-t": 2700, "square": 5000}  # of a robust image, forwards and backwards
STAGES = tuple(PASSES)
STEPS, QUERIES, TARGETS = 100, 5000, 9
VERSION = 2  # raised when the code changes what a saved batch holds
LOGGER = logging.getLogger("auto-attack")  # the authors' own; silent unless a user gives it a handler
LOGGER.addHandler(logging.NullHandler())

Answer = tuple[Tensor, Tensor]  # which images of a batch are broken (n,) bool, and their x' (k, C, H, W)


@dataclass(frozen=True)
class Result:
    """x' (N, C, H, W), which is x where nothing was found; `robust`: "clean" and each stage -> (N,) bool after it."""

    x_adv: Tensor
    robust: dict[str, Tensor]


def standard(
    net: Net,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    seed: int = 0,
    batch_size: int = 200,
    stages: tuple[str, ...] = STAGES,
    judge: Net | None = None,
    clean: Tensor | None = None,
    folder: Path | None = None,
    notify: Callable[[float], None] = lambda share: None,
) -> Result:
    """AutoAttack standard, L-inf: APGD-CE, APGD-T and FAB-T with 9 targets, Square with 5,000 queries, no restarts.

    x (N, C, H, W) and `epsilon` in [0, 1], y (N,); `net`, in eval mode, treats images one by one. Where there are fewer
    than 9 wrong classes, all are targets. Attacks are made on `net`, say a folded network, and `judge` (by default net)
    decides what is right; `clean` (N,) bool are its answers on x, where they are known. The result is that of the
    authors' `run_standard_evaluation` with the same seed. With a `folder` every finished batch is saved in it, and an
    equal call goes on from there. `notify` is called with the finished share after every batch.

    Raises:
        UserError: an unknown stage; a folder that holds something else or cannot be written.
    """
    for stage in stages:
        choose("AutoAttack stage", stage, PASSES)
    judge, done = judge or net, 0
    settings = {"epsilon": epsilon, "seed": seed, "width": batch_size, "steps": STEPS, "queries": QUERIES}
    saved = Saved(folder, {"version": VERSION, **_identity(judge, x, y), **settings}) if folder else None
    robust = right(judge, x, y, batch_size) if clean is None else clean.clone()
    x_adv, after = x.clone(), {"clean": robust.clone()}
    for n, stage in enumerate(stages):
        waiting, later = robust.nonzero().flatten(), sum(PASSES[name] for name in stages[n + 1 :])
        for number, index in enumerate(waiting.split(batch_size) if len(waiting) else ()):
            answer = saved.read(stage, number, index) if saved else None
            if answer is None:
                answer = broken(stage, net, judge, x[index], y[index], epsilon, seed)
                if saved:
                    saved.write(stage, number, index, answer)
            wrong, images = answer
            robust[index[wrong]], x_adv[index[wrong]] = False, images
            done += PASSES[stage] * len(index)
            notify(done / (done + PASSES[stage] * int((waiting > index[-1]).sum()) + later * int(robust.sum())))
        after[stage] = robust.clone()
    return Result(x_adv, after)


def broken(stage: str, net: Net, judge: Net, x: Tensor, y: Tensor, epsilon: float, seed: int) -> Answer:
    """Which images of a batch a stage breaks, (n,) bool, and their x' (k, C, H, W); what counts is the judge's answer.

    An x' that fools the folded network and not the network itself is a result of rounding; that is so rare that the
    batch is simply attacked again, on the network itself.
    """
    x_adv = perturb(stage, net, x, y, epsilon, seed)
    moved = (x_adv != x).flatten(1).any(1)
    wrong = moved & ~right(judge, x_adv, y, len(x))
    if net is not judge and bool((moved & ~wrong).any()):
        return broken(stage, judge, judge, x, y, epsilon, seed)
    return wrong, x_adv[wrong]


@torch.no_grad()
def perturb(stage: str, net: Net, x: Tensor, y: Tensor, epsilon: float, seed: int) -> Tensor:
    """x' (n, C, H, W) of one of the authors' stages on a batch, x itself where it found nothing."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    shared = {"eps": epsilon, "seed": seed, "device": x.device}
    targets = {"n_target_classes": min(TARGETS, net(x[:1]).shape[1] - 1)}
    makers: dict[str, Callable[[], Any]] = {
        "apgd-ce": lambda: APGDAttack(net, n_iter=STEPS, logger=LOGGER, **shared),
        "apgd-t": lambda: APGDAttack_targeted(net, n_iter=STEPS, logger=LOGGER, **targets, **shared),
        "fab-t": lambda: FABAttack_PT(net, n_iter=STEPS, targeted=True, **targets, **shared),
        "square": lambda: SquareAttack(net, n_queries=QUERIES, resc_schedule=False, **shared),
    }
    devices = [x.device] if x.device.type == "cuda" else []
    no_weights = frozen(net) if isinstance(net, nn.Module) else nullcontext()  # whose gradients FAB would compute
    with torch.random.fork_rng(devices=devices), no_weights:  # the authors' code seeds the global generators
        return makers[stage]().perturb(x.clone(), y.clone()).detach()


@torch.no_grad()
def right(net: Net, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """argmax net(x) = y, (N,) bool."""
    return torch.cat([net(images).argmax(1) for images in x.split(batch_size)]) == y


class Saved:
    """The answers for an attack's finished batches, one file each, in a folder of its own."""

    def __init__(self, folder: Path, about: dict[str, object]) -> None:
        self.folder, note, content = folder, folder / "about.json", json.dumps(about, indent=1)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not note.exists():
                write_atomically(note, content)
        if note.read_text() != content:
            raise UserError(f"{folder} holds the state of another AutoAttack: give this one a folder of its own")

    def read(self, stage: str, number: int, index: Tensor) -> Answer | None:
        """The answer for the batch of the images at `index` (n,), or None where it is to be attacked (again)."""
        try:
            batch = load(self._path(stage, number).read_bytes())
        except (SafetensorError, OSError):  # not there, or damaged
            return None
        if not batch["index"].equal(index.cpu()):
            return None
        return batch["broken"].to(index.device), batch["x_adv"].to(index.device)

    def write(self, stage: str, number: int, index: Tensor, answer: Answer) -> None:
        """Keep the answer for a batch, whole or not at all."""
        with disk_errors(self.folder):
            write_atomically(self._path(stage, number), _bytes(index=index, broken=answer[0], x_adv=answer[1]))

    def _path(self, stage: str, number: int) -> Path:
        return self.folder / f"{stage}-{number:05}.safetensors"


def _bytes(**tensors: Tensor) -> bytes:
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def _identity(judge: Net, x: Tensor, y: Tensor) -> dict[str, object]:
    """The network and the images as plain values: a saved batch is theirs alone."""
    weights = judge.state_dict() if isinstance(judge, nn.Module) else {}
    with torch.no_grad():
        size = float(judge(x[:8]).abs().mean())  # equal weights may belong to another forward
    digests = {"images": _bytes(x=x, y=y), "weights": _bytes(**weights)}
    network = {"network": repr(judge), "mean logit": f"{size:.2e}"}
    return {**{name: hashlib.sha256(content).hexdigest() for name, content in digests.items()}, **network}
