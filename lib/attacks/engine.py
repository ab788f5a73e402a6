"""The engine of one training or evaluation: what an attack sees of a network, and how the attack is run."""

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from lib.attacks.folding import folded, free, lowered
from lib.attacks.levers import STANDARD, Levers
from lib.attacks.pgd import Objective, PerImage, Start, ascend, per_image, project
from lib.attacks.recast import recast
from lib.attacks.recorded import Captured, Recorder, on_cuda
from lib.errors import choose

Net = Callable[[Tensor], Tensor]
Attack = partial[Tensor]  # pgd with epsilon, step_size and steps bound

PRECISIONS = ("fp32", "bf16", "bf16_crafting")
"""Of a run: all of it in fp32, all of it under bf16 autocast, or x' made in bf16 and the training in fp32."""


def in_precision(net: Net, precision: str) -> Net:
    """`net` run under bf16 autocast or in fp32; either way its logits are fp32, and so is every loss on them.

    Raises:
        UserError: the precision is neither.
    """
    if choose("precision", precision, {"fp32": False, "bf16": True}):

        def forward(x: Tensor) -> Tensor:
            # a forward uses each weight once, so autocast's cache of the casts would save nothing, and holds them all
            with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False), recast():
                return net(x).float()

        return forward
    return net


class Engine:
    """Runs attacks under `levers`; where one of them cannot be had, what it replaces is used and `said` tells why.

    One engine serves one set of networks: recordings are kept by objective, shapes and settings alone.
    """

    def __init__(
        self,
        levers: Levers = STANDARD,
        precision: str = "fp32",
        record: Recorder | None = None,
        said: dict[str, str] | None = None,
    ) -> None:
        self.levers, self.precision = levers, precision
        self.record = record or on_cuda
        self.said: dict[str, str] = {} if said is None else said
        self._compiled: WeakKeyDictionary[nn.Module, Net] = WeakKeyDictionary()
        self._captured: dict[tuple[Any, ...], Captured] = {}

    def laid_out(self, net: nn.Module) -> nn.Module:
        """`net` itself, in the memory format that the levers want."""
        return net.to(memory_format=torch.channels_last if self.levers.channels_last else torch.contiguous_format)

    def seen(self, net: nn.Module, x: Tensor) -> Net:
        """`net` in its present mode as an attack sees it, with the weights it has now; x (N, C, H, W) is what comes."""
        if net.training:
            return in_precision(net, "bf16" if self.levers.bf16 else self.precision)
        if self.levers.bf16 and (low := lowered(net, x[:1])) is not None:
            return self._compiled_if_wanted(low)
        seen = self._compiled_if_wanted(folded(net) if self.levers.folding else net)
        return in_precision(seen, "bf16" if self.levers.bf16 else self.precision)

    def rest(self, *nets: nn.Module | None) -> None:
        """Free the bf16 weights of these until the next attack; what is recorded or compiled keeps its own in place."""
        if not self.levers.cuda_graph and not self.levers.compile:
            for net in filter(None, nets):
                free(net)

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
        """attack(objective, x, ...) -> x', recorded and replayed where that is wanted and the attack is static."""
        settings = {**attack.keywords, **chosen}
        if not self.levers.cuda_graph or not isinstance(objective, PerImage) or not _static(settings):
            leaves = self.levers.leave and not self.levers.compile  # each size of a batch would be compiled anew
            offered = objective if leaves else _whole(objective)
            return attack(offered, x, start=start, generator=generator, **chosen)
        begun = start(x, per_image(settings["epsilon"], x), generator)
        run = self._recording(objective, x, begun, settings)
        if run is None:
            return attack(objective, x, start=lambda *_: begun, **chosen)
        return run(x, begun, *objective.constants)

    def _recording(self, objective: PerImage, x: Tensor, begun: Tensor, settings: dict[str, Any]) -> Captured | None:
        inputs = (x, begun, *objective.constants)
        source = getattr(objective.value, "__code__", objective.value)
        key = (source, *((given.shape[1:], given.dtype) for given in inputs), *map(str, settings.items()))
        if key in self._captured and self._captured[key].size >= len(x):
            return self._captured[key]
        if "cuda_graph" in self.said:
            return None
        radius, size = per_image(settings["epsilon"], x), per_image(settings["step_size"], x)

        def whole(x: Tensor, x_adv: Tensor, *constants: Tensor) -> Tensor:
            at = PerImage(objective.value, constants)
            return project(ascend(at, x, x_adv, radius, size, int(settings["steps"])), x, radius)

        try:
            self._captured[key] = Captured(whole, inputs, self.record)
        except (RuntimeError, AssertionError) as error:
            self.said["cuda_graph"] = str(error).partition("\n")[0]
            return None
        return self._captured[key]

    def _compiled_if_wanted(self, net: nn.Module) -> Net:
        if not self.levers.compile:
            return net
        if net not in self._compiled:
            self._compiled[net] = self._or_plain(torch.compile(_of_images_alone(net), dynamic=False), net)
        return self._compiled[net]

    def _or_plain(self, fast: Net, net: nn.Module) -> Net:
        """`fast`, until it fails for the first time."""

        def forward(x: Tensor) -> Tensor:
            if "compile" not in self.said:
                try:
                    return fast(x)
                except Exception as error:  # compilers fail in many ways, and the plain path is always right
                    self.said["compile"] = str(error).partition("\n")[0] or type(error).__name__
            answer: Tensor = net(x)
            return answer

        return forward


def _of_images_alone(net: nn.Module) -> Net:
    """`net` as a function of its images: a compiled backward pass would compute every weight's gradient too."""

    def forward(x: Tensor) -> Tensor:
        weights = {name: parameter.detach() for name, parameter in net.named_parameters()}
        answer: Tensor = functional_call(net, weights, (x,))
        return answer

    return forward


def _static(settings: dict[str, Any]) -> bool:
    """The same work for every batch: nobody leaves, and radius, step size and steps are numbers."""
    per_image = any(isinstance(settings[name], Tensor) for name in ("epsilon", "step_size", "steps"))
    return not per_image and settings.get("criterion") is None


def _whole(objective: Objective) -> Objective:
    """The same function, of which nobody can be taken out."""
    return partial(objective)
