"""How an attack is executed, `fast` or `plain`, and in which precision; the results are the same to rounding.

Fast: networks in channels-last, batch-norm folded where an attack sees the network in eval mode, finished images leave
the batch, and on CUDA an attack with equal steps for all images is recorded once as a CUDA graph and replayed.
"""

from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lib.attacks.folding import folded, free
from lib.attacks.pgd import Net, Objective, PerImage, Start, ascend, per_image, project
from lib.attacks.recorded import Captured, Recorder, on_cuda
from lib.errors import choose

Attack = partial[Tensor]  # pgd with epsilon, step_size and steps bound

EXECUTIONS = ("fast", "plain")
PRECISIONS = ("fp32", "bf16", "bf16_crafting")
"""Of a run: all of it in fp32, all of it under bf16 autocast, or x' made in bf16 and the training in fp32."""


def in_precision(net: Net, precision: str) -> Net:
    """`net` as a training at this precision runs it: under bf16 autocast or in fp32, with fp32 logits either way."""
    if precision == "bf16":

        def forward(x: Tensor) -> Tensor:
            # a forward uses each weight once, so autocast's cache of the casts would save nothing, and holds them all
            with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
                return net(x).float()

        return forward
    return net


class Engine:
    """Runs attacks in one execution and precision; `reasons` holds what could not be had, and why.

    One engine serves one set of networks: recordings are kept by objective, shapes and settings alone. `record` is for
    tests; without it attacks are recorded on CUDA.

    Raises:
        UserError: an unknown execution or precision.
    """

    def __init__(self, execution: str = "fast", precision: str = "fp32", record: Recorder | None = None) -> None:
        choose("execution", execution, dict.fromkeys(EXECUTIONS))
        choose("precision", precision, dict.fromkeys(PRECISIONS))
        self.execution, self.precision, self.record = execution, precision, record
        self.reasons: dict[str, str] = {}
        self._captured: dict[tuple[Any, ...], Captured] = {}
        self._viewed: list[nn.Module] = []

    def describe(self) -> str:
        """The execution, with the reason for each part of it that could not be had."""
        return ", ".join([self.execution, *(f"no {name} ({reason})" for name, reason in self.reasons.items())])

    def lay_out(self, net: nn.Module) -> nn.Module:
        """`net` itself, its weights in channels-last under `fast`, else contiguous."""
        fast = self.execution == "fast"
        return net.to(memory_format=torch.channels_last if fast else torch.contiguous_format)

    def attack_view(self, net: nn.Module) -> Net:
        """`net` in its present mode, with its present weights, as the next attack sees it: x (N, C, H, W) -> logits."""
        view = net
        if self.execution == "fast" and not net.training:
            view = folded(net)
            self._viewed.append(net)
        return in_precision(view, "fp32" if self.precision == "fp32" else "bf16")

    def attack(
        self,
        attack: Attack,
        objective: Objective,
        x: Tensor,
        *,
        start: Start,
        generator: Generator | None = None,
        **chosen: Any,
    ) -> Tensor:
        """attack(objective, x, ...) -> x', recorded and replayed under `fast` on CUDA where all images step alike.

        Afterwards the views of the networks are of no use any more: their folded weights are freed, unless recorded.
        """
        try:
            if self.execution == "plain":
                objective = partial(objective)  # no image can be taken out of the batch
            elif isinstance(objective, PerImage) and (record := self.record or (on_cuda if x.is_cuda else None)):
                settings = {**attack.keywords, **chosen}
                if _static(settings):
                    x_start = start(x, per_image(settings["epsilon"], x), generator)
                    if replay := self._recording(record, objective, x, x_start, settings):
                        return replay(x, x_start, *objective.constants)
                    start = lambda *_: x_start  # noqa: E731
            return attack(objective, x, start=start, generator=generator, **chosen)
        finally:
            while self._viewed:
                free(self._viewed.pop(), recorded=bool(self._captured))

    def _recording(
        self, record: Recorder, objective: PerImage, x: Tensor, x_start: Tensor, settings: dict[str, Any]
    ) -> Captured | None:
        """The recording that fits, made where there is none yet; None, with a reason, where that fails."""
        inputs = (x, x_start, *objective.constants)
        source = getattr(objective.value, "__code__", objective.value)
        key = (source, *((tensor.shape[1:], tensor.dtype) for tensor in inputs), *map(str, settings.items()))
        if key in self._captured and len(self._captured[key].buffers[0]) >= len(x):
            return self._captured[key]
        if "cuda_graph" in self.reasons:
            return None
        radius, size = per_image(settings["epsilon"], x), per_image(settings["step_size"], x)

        def whole(x: Tensor, x_adv: Tensor, *constants: Tensor) -> Tensor:
            recorded = PerImage(objective.value, constants)
            return project(ascend(recorded, x, x_adv, radius, size, int(settings["steps"])), x, radius)

        try:
            self._captured[key] = Captured(whole, inputs, record)
        except (RuntimeError, AssertionError) as error:
            self.reasons["cuda_graph"] = str(error).partition("\n")[0]
            return None
        return self._captured[key]


def _static(settings: dict[str, Any]) -> bool:
    """The same work for every image and batch: radius, step size and steps are numbers, and there is no criterion."""
    per_image = any(isinstance(settings[name], Tensor) for name in ("epsilon", "step_size", "steps"))
    return not per_image and settings.get("criterion") is None
