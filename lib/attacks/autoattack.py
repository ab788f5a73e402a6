"""AutoAttack (Croce & Hein 2020) over a whole set: the authors' stages, as pyautoattack has them.

Ours are full batches of images still right, the flags after every stage, a folder to go on from, the share done.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from lib.attacks.pgd import Net
from lib.attacks.watched import Watched
from lib.errors import UserError
from lib.files import disk_errors, write_atomically
from lib.models.checkpoints import as_safetensors
from lib.models.modes import frozen

PASSES = {"apgd-ce": 200, "apgd-t": 1800, "fab-t": 2700, "square": 5000}  # of a robust image, forwards and backwards
STAGES = tuple(PASSES)
STEPS, QUERIES, TARGETS = 100, 5000, 9
VERSION = 2  # raised when the code changes what a saved batch holds
LOGGER = logging.getLogger("auto-attack")  # the authors' own; silent unless a user gives it a handler
LOGGER.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Result:
    """x' (N, C, H, W), which is x where nothing was found; `robust`: "clean" and each stage -> (N,) bool after it.

    `blind` (N,) bool are images that a stage could not follow for want of a finite gradient.
    """

    x_adv: Tensor
    robust: dict[str, Tensor]
    blind: Tensor


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

    The result is that of the authors' `run_standard_evaluation` with the same seed. x (N, C, H, W) and `epsilon` in
    [0, 1], y (N,). Attacks are made on `net`, say a folded network in eval mode, and `judge` (by default net) decides
    what is right; `clean` (N,) bool are its answers on x, where they are known. With a `folder` every finished batch is
    saved in it, and an equal call goes on from there. `notify` gets the finished share after every batch.
    """
    judge, done = net if judge is None else judge, 0
    if folder is not None:
        _claim(folder, judge, x, y, epsilon=epsilon, seed=seed, width=batch_size)
    robust = right(judge, x, y, batch_size) if clean is None else clean.clone()
    x_adv, after, blind = x.clone(), {"clean": robust.clone()}, torch.zeros_like(robust)
    for n, stage in enumerate(stages):
        waiting, later = robust.nonzero().flatten(), sum(PASSES[name] for name in stages[n + 1 :])
        for number, index in enumerate(waiting.split(batch_size) if len(waiting) else ()):
            attack = partial(broken, stage, net, judge, x[index], y[index], epsilon, seed)
            file = folder and folder / f"{stage}-{number:05}.safetensors"
            wrong, images, lost = attack() if file is None else _kept(file, index, attack)
            robust[index[wrong]], x_adv[index[wrong]], blind[index[lost]] = False, images, True
            done += PASSES[stage] * len(index)
            notify(done / (done + PASSES[stage] * int((waiting > index[-1]).sum()) + later * int(robust.sum())))
        after[stage] = robust.clone()
    return Result(x_adv, after, blind)


def broken(stage: str, net: Net, judge: Net, x: Tensor, y: Tensor, epsilon: float, seed: int) -> tuple[Tensor, ...]:
    """Which images of a batch a stage breaks, (n,) bool, their x' (k, C, H, W), and which it could not follow (n,).

    What counts is the judge's answer.

    An x' that fools the folded network and not the network itself is a result of rounding, and so rare that the batch
    is simply attacked again, on the network itself.
    """
    x_adv, blind = perturb(stage, net, x, y, epsilon, seed)
    moved = (x_adv != x).flatten(1).any(1)
    wrong = moved & ~right(judge, x_adv, y, len(x))
    if net is not judge and bool((moved & ~wrong).any()):
        return broken(stage, judge, judge, x, y, epsilon, seed)
    return wrong, x_adv[wrong], blind


@torch.no_grad()
def perturb(stage: str, net: Net, x: Tensor, y: Tensor, epsilon: float, seed: int) -> tuple[Tensor, Tensor]:
    """x' (n, C, H, W) of one of the authors' stages on a batch, x itself where it found nothing; and the blind ones."""
    from pyautoattack import autopgd_base, fab_pt, square

    shared, watched = {"eps": epsilon, "seed": seed, "device": x.device}, Watched(net, x)
    targets = {"n_target_classes": min(TARGETS, net(x[:1]).shape[1] - 1)}
    makers: dict[str, Callable[[], Any]] = {
        "apgd-ce": lambda: autopgd_base.APGDAttack(watched, n_iter=STEPS, logger=LOGGER, **shared),
        "apgd-t": lambda: autopgd_base.APGDAttack_targeted(watched, n_iter=STEPS, logger=LOGGER, **targets, **shared),
        "fab-t": lambda: fab_pt.FABAttack_PT(watched, n_iter=STEPS, targeted=True, **targets, **shared),
        "square": lambda: square.SquareAttack(watched, n_queries=QUERIES, resc_schedule=False, **shared),
    }
    no_weights = frozen(net) if isinstance(net, nn.Module) else nullcontext()  # whose gradients FAB would compute
    with no_weights, torch.random.fork_rng([x.device] if x.is_cuda else []):  # the authors seed the global generators
        return makers[stage]().perturb(x.clone(), y.clone()).detach(), watched.blind


@torch.no_grad()
def right(net: Net, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """argmax net(x) = y, (N,) bool."""
    return torch.cat([net(images).argmax(1) for images in x.split(batch_size)]) == y


def _claim(folder: Path, judge: Net, x: Tensor, y: Tensor, **settings: float) -> None:
    """Note in the folder whose state it holds; raises UserError if it is another attack's, or cannot be written."""
    weights = judge.state_dict() if isinstance(judge, nn.Module) else {}
    with torch.no_grad():
        size = float(judge(x[:8]).abs().mean())  # equal weights may belong to another forward
    digest = hashlib.sha256(as_safetensors({"x": x, "y": y}) + as_safetensors(weights)).hexdigest()
    network = {"images and weights": digest, "network": repr(judge), "mean logit": f"{size:.2e}"}
    about = {"version": VERSION, "steps": STEPS, "queries": QUERIES, **settings, **network}
    file, content = folder / "about.json", json.dumps(about, indent=1)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_atomically(file, content)
        same = file.read_text() == content
    if not same:
        raise UserError(f"{folder} holds the state of another AutoAttack: give this one a folder of its own")


def _kept(file: Path, index: Tensor, attack: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """attack() on the images at `index` (n,), from its file where that is there and whole."""
    try:
        batch = load(file.read_bytes())
    except (SafetensorError, OSError):
        batch = {}
    if not batch or not batch["index"].equal(index.cpu()):
        wrong, x_adv, blind = attack()
        batch = {"index": index, "broken": wrong, "x_adv": x_adv} | ({"blind": blind} if bool(blind.any()) else {})
        with disk_errors(file.parent):
            write_atomically(file, as_safetensors(batch))
    blind = batch.get("blind", torch.zeros_like(batch["broken"]))
    return tuple(tensor.to(index.device) for tensor in (batch["broken"], batch["x_adv"], blind))
