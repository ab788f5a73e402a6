"""How an attack is executed, `fast` or `plain`, and in which precision; the results are the same to rounding.

Fast: networks in channels-last, batch-norm folded where an attack sees the network in eval mode, finished images leave
the batch, and on CUDA an attack with equal steps for all images is recorded once as a CUDA graph and replayed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lib.attacks.folding import folded, free
from lib.attacks.pgd import Net, Objective, PerImage, Start
from lib.errors import choose

EXECUTIONS = ("fast", "plain")
PRECISIONS = ("fp32", "bf16", "bf16_crafting")
"""Of a run: all of it in fp32, all of it under bf16 autocast, or x' made in bf16 and the training in fp32."""

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
"""Records one call of its argument: (what repeats the call, the tensor that every repetition writes)."""


def in_precision(net: Net, precision: str) -> Net:
    """`net` as a training at this precision runs it: under bf16 autocast or in fp32, with fp32 logits either way."""
    if precision != "bf16":
        return net

    def forward(x: Tensor) -> Tensor:
        # a forward uses each weight once, so autocast's cache of the casts would save nothing, and holds them all
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return net(x).float()

    return forward


class Engine:
    """Runs attacks in one execution and precision; `reasons` holds what could not be had, and why.

    One engine serves one set of networks: recordings are kept by objective, shapes and settings alone. `record` is for
    tests; without it attacks are recorded on CUDA. An unknown execution or precision raises UserError.
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

    def training_view(self, net: Net) -> Net:
        """`net` as its training forwards it."""
        return in_precision(net, self.precision)

    def attack(
        self,
        attack: partial[Tensor],
        objective: Objective,
        x: Tensor,
        *,
        start: Start,
        generator: Generator | None = None,
        **chosen: Any,
    ) -> Tensor:
        """attack(objective, x, ...) -> x', recorded and replayed under `fast` on CUDA where all images step alike.

        `attack` is pgd with epsilon, step_size and steps bound, for which `chosen` may have others. Afterwards the
        views of the networks are of no use any more: their folded weights are freed, unless recorded.
        """
        attack = partial(attack, **chosen)
        record = self.record or (on_cuda if x.is_cuda else None)
        varies = any(isinstance(setting, Tensor) or callable(setting) for setting in attack.keywords.values())
        try:
            if self.execution == "plain":
                objective = partial(objective)  # no image can be taken out of the batch
            elif record is not None and isinstance(objective, PerImage) and not varies:
                x_start = start(x, attack.keywords["epsilon"], generator)
                return self._recorded(record, attack, objective.value, (x, x_start, *objective.constants))
            return attack(objective, x, start=start, generator=generator)
        finally:
            while self._viewed:
                free(self._viewed.pop(), recorded=bool(self._captured))

    def _recorded(
        self, record: Recorder, attack: partial[Tensor], value: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Tensor:
        """The attack on `inputs`, x, where it starts and the objective's constants, by a recording where that works."""

        def whole(x: Tensor, x_start: Tensor, *constants: Tensor) -> Tensor:
            return attack(PerImage(value, constants), x, start=lambda *_: x_start)

        shapes = ((tensor.shape[1:], tensor.dtype) for tensor in inputs)
        key = (getattr(value, "__code__", value), *shapes, *map(str, attack.keywords.items()))
        fits = key in self._captured and len(self._captured[key].buffers[0]) >= len(inputs[0])
        if not fits and "cuda_graph" not in self.reasons:
            try:
                self._captured[key], fits = Captured(whole, inputs, record), True
            except (RuntimeError, AssertionError) as error:
                self.reasons["cuda_graph"] = str(error).partition("\n")[0]
        return self._captured[key](*inputs) if fits else whole(*inputs)


class Captured:
    """function(*tensors) -> (N, ...), image by image, as a recording for one batch size; a smaller batch is padded.

    `function` may neither read a value on the host nor draw random numbers.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], record: Recorder) -> None:
        self.function = function  # keeps alive what the recording reads by address
        self.buffers = tuple(tensor.clone() for tensor in inputs)
        with torch.cuda.device_of(self.buffers[0]):  # streams and graphs are made on the current device
            self.replay, self.result = record(lambda: function(*self.buffers))

    def __call__(self, *inputs: Tensor) -> Tensor:
        count = len(inputs[0])
        for buffer, tensor in zip(self.buffers, inputs, strict=True):
            buffer[:count].copy_(tensor)
            buffer[count:] = tensor[-1:]
        self.replay()
        return self.result[:count].clone()


def on_cuda(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """The recorder of CUDA graphs; raises RuntimeError where the work does something that a graph cannot hold."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # twice before the recording, for libraries to choose their kernels
        work(), work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result
