"""AutoAttack's stages over a whole set: what is still right is packed into full batches before every stage."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.attacks.apgd import apgd_ce, apgd_t
from lib.attacks.batches import Batch, Job, Judged, Net, Setting, Stage, attacking, right
from lib.attacks.fab import fab_t
from lib.attacks.saved import Saved, digest
from lib.attacks.square import square
from lib.errors import UserError, choose

OWN: dict[str, Stage] = {"apgd-ce": apgd_ce, "apgd-t": apgd_t, "fab-t": fab_t, "square": square}
STAGES = tuple(OWN)
PASSES = {"apgd-ce": 200, "apgd-t": 1800, "fab-t": 2700, "square": 5000}  # of a robust image, forwards and backwards
VERSION = 1  # raised when the code changes what a saved batch holds


@dataclass(frozen=True)
class Found:
    """x' (N, C, H, W), which is x where nothing was found; `robust`: "clean" and each stage -> (N,) bool after it."""

    x_adv: Tensor
    robust: dict[str, Tensor]

    @property
    def broken_by(self) -> list[str]:
        """For every image the stage that broke it: "clean" where it was wrong from the start, "" where it is robust."""
        names = [""] * len(self.x_adv)
        for stage, robust in reversed(self.robust.items()):
            for i in (~robust).nonzero().flatten().tolist():
                names[i] = stage
        return names


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
    attacks: Mapping[str, Stage] = OWN,
    folder: Path | None = None,
    workers: int = 1,
    notify: Callable[[float], None] = lambda share: None,
) -> Found:
    """AutoAttack standard, L-inf: APGD-CE, APGD-T and FAB-T with 9 targets, Square with 5,000 queries, no restarts.

    x (N, C, H, W) and `epsilon` in [0, 1], y (N,); `net`, in eval mode, treats images one by one. Where there are fewer
    than 9 wrong classes, all are targets. Attacks are made on `net`, say a folded network, and `judge` (net itself)
    says what is right; `clean` (N,) bool is what it says of x, where that is known. An equal seed gives the flags of
    the authors' `run_standard_evaluation`, to float rounding; `attacks=REFERENCE` runs the authors' own stages. With a
    `folder` every finished batch is saved in it, and an equal call goes on from there, to equal flags. `workers`
    processes of one thread each do a stage's batches, on a CPU. `notify` hears the finished share after every batch.

    Raises:
        UserError: an unknown stage; a folder that holds something else or cannot be written; workers on a GPU, or a
            network that cannot be sent to them.
    """
    for stage in stages:
        choose("AutoAttack stage", stage, attacks)
    with torch.no_grad():
        classes = net(x[:1]).shape[1]
    if workers > 1 and x.device.type != "cpu":
        raise UserError("AutoAttack in several processes is for the CPU; on a GPU give workers=1")
    setting = Setting(epsilon, seed, min(9, classes - 1), batch_size)
    judged = Judged(net, net if judge is None else judge)
    saved = Saved(folder, _about(judged.judge, x, y, setting) if folder else {})
    robust = right(judged.judge, x, y, batch_size) if clean is None else clean.clone()
    x_adv, tally = x.clone(), _Tally(stages, notify)
    after = {"clean": robust.clone()}
    with attacking(judged, workers) as attack:
        for stage in stages:
            tally.begin(stage, int(robust.sum()))
            batches = _batches(robust, batch_size)
            found = {n: answer for n, index in batches.items() if (answer := saved.read(stage, n, index)) is not None}
            jobs = {n: Job(attacks[stage], Batch(x[i], y[i]), setting) for n, i in batches.items() if n not in found}
            for n, (wrong, images) in chain(found.items(), attack(jobs)):
                if n in jobs:
                    saved.write(stage, n, batches[n], (wrong, images))
                broken = batches[n][wrong]
                robust[broken], x_adv[broken] = False, images
                tally.finish(len(wrong), len(images))
            after[stage] = robust.clone()
    return Found(x_adv, after)


def _batches(robust: Tensor, batch_size: int) -> dict[int, Tensor]:
    """Number -> which images: those that are still right, in order, in full batches but for the last."""
    left = robust.nonzero().flatten()
    return {n: left[i : i + batch_size] for n, i in enumerate(range(0, len(left), batch_size))}


def _about(judge: Net, x: Tensor, y: Tensor, setting: Setting) -> dict[str, object]:
    """Whatever decides what a batch finds, as plain values."""
    weights = digest(*judge.state_dict().values()) if isinstance(judge, nn.Module) else ""
    with torch.no_grad():
        size = float(judge(x[:8]).abs().mean())  # equal weights may stand in another forward
    network = {"weights": weights, "network": repr(judge), "mean logit": f"{size:.2e}"}
    return {"version": VERSION, "images": digest(x, y), "dtype": str(x.dtype), **network, **asdict(setting)}


class _Tally:
    """The share of the passes that are done, were every image that is right now to stay so."""

    def __init__(self, stages: tuple[str, ...], notify: Callable[[float], None]) -> None:
        self.later, self.notify = list(stages), notify
        self.stage, self.robust, self.waiting, self.done = "", 0, 0, 0

    def begin(self, stage: str, robust: int) -> None:
        """A stage begins on so many images."""
        self.stage, self.robust, self.waiting = stage, robust, robust
        self.later.remove(stage)
        if not robust:
            self.notify(1.0)

    def finish(self, images: int, broken: int) -> None:
        """A batch is done."""
        self.robust, self.waiting, self.done = (
            self.robust - broken,
            self.waiting - images,
            self.done + images * PASSES[self.stage],
        )
        to_do = self.waiting * PASSES[self.stage] + self.robust * sum(PASSES[stage] for stage in self.later)
        self.notify(self.done / (self.done + to_do))
