"""Convolution and batch-norm as one convolution: faster for an eval-mode attack, and the same to float rounding.

The folded convolutions may be kept in bf16: cast once when the weights change, and not at every pass.
"""

from copy import deepcopy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_FOLDED: "WeakKeyDictionary[nn.Module, Folded | None]" = WeakKeyDictionary()
_LOWERED: "WeakKeyDictionary[nn.Module, Lowered | None]" = WeakKeyDictionary()


F = TypeVar("F", bound="Folded")


class Folded:
    """A network in eval mode with every batch-norm that follows a convolution folded into it; weights as they are now.

    f(x) = g conv(x) / s + (b - g m / s), with the batch-norm's scale g, shift b, mean m and spread s. All other modules
    are the network's own. `refresh` takes over weights that have changed since; `fits` tells a network that is another.
    """

    def __init__(self, net: nn.Module) -> None:
        self.parts, self.kinds = _parts(net), _kinds(net)
        self.graph = fx.GraphModule(net, _Tracer().trace(net))
        modules = dict(net.named_modules())
        self.pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]] = []
        for node in list(self.graph.graph.nodes):
            if (before := _folds_into(node, modules)) is None:
                continue
            conv, norm = modules[before.target], modules[node.target]
            both = deepcopy(conv).requires_grad_(False)
            both.bias = nn.Parameter(torch.zeros_like(norm.running_mean), requires_grad=False)
            _replace(self.graph, str(before.target), both)
            node.replace_all_uses_with(before)
            self.graph.graph.erase_node(node)
            self.pairs.append((conv, norm, both))
        self.graph.recompile()
        self.graph.training = False

    def fits(self, net: nn.Module) -> bool:
        """Whether `net` is still made of the same modules, of the same types and on the same device."""
        parts = _parts(net)
        same = len(parts) == len(self.parts) and all(a is b for a, b in zip(parts, self.parts, strict=True))
        return same and _kinds(net) == self.kinds

    @torch.no_grad()
    def refresh(self) -> fx.GraphModule:
        """The folded network, with the present weights."""
        for conv, norm, both in self.pairs:
            mean: Any = norm.running_mean
            var: Any = norm.running_var
            weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias)
            _take(both.weight, weight)
            _take(both.bias, bias)
        return self.graph


class Lowered(Folded):
    """The same with every convolution in bf16; linear layers, so the logits, are fp32, as are batch-norms left over."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        modules, fresh = dict(net.named_modules()), {id(both) for *_, both in self.pairs}
        self.tried = False
        self.alone: list[tuple[nn.Conv2d, nn.Conv2d]] = []
        for node in list(self.graph.graph.nodes):
            module = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, nn.Conv2d) and id(module) not in fresh:
                self.alone.append((modules[str(node.target)], deepcopy(module).requires_grad_(False)))
                _replace(self.graph, str(node.target), self.alone[-1][1])
                fresh.add(id(self.alone[-1][1]))
            _cast(self.graph.graph, node, module)
        for copy in (*(both for *_, both in self.pairs), *(copy for _, copy in self.alone)):
            copy.to(torch.bfloat16)
        self.graph.recompile()

    @torch.no_grad()
    def refresh(self) -> fx.GraphModule:
        """The network in bf16, with the present weights."""
        for conv, copy in self.alone:
            for own, new in zip(copy.parameters(), conv.parameters(), strict=True):
                _take(own, new)
        return super().refresh()

    def answers(self, x: Tensor) -> bool:
        """Whether a forward in bf16 goes through, tried once: weights of a user's own may not mix with it."""
        if not self.tried:
            self.tried = True
            try:
                with torch.no_grad():
                    self.refresh()(x)
            except (RuntimeError, TypeError):
                return False
        return True

    def free(self) -> None:
        """Hold no weights until the next `refresh`."""
        for copy in (*(both for *_, both in self.pairs), *(copy for _, copy in self.alone)):
            for parameter in copy.parameters():
                parameter.data = parameter.data.new_empty(0)


class _Tracer(fx.Tracer):
    """Convolutions of our own stay whole, as torch's do."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def folded(net: nn.Module) -> nn.Module:
    """`net`, which is in eval mode, with convolution and batch-norm folded as its weights are now.

    A network that cannot be traced, has hooks (which a trace leaves out) or has nothing to fold is returned as it is.
    The trace lives as long as the network, and is made again where its modules were replaced. What a trace cannot see,
    such as an attribute that steers the forward, `same_answers` finds.
    """
    found = _traced(Folded, net, _FOLDED)
    return found.refresh() if found is not None and found.pairs else net


def lowered(net: nn.Module, x: Tensor) -> nn.Module | None:
    """`net`, which is in eval mode, folded and in bf16, its logits in fp32; None where that fails on x (1, C, H, W)."""
    found = _traced(Lowered, net, _LOWERED)
    if found is None or found.answers(x):
        return None if found is None else found.refresh()
    _LOWERED[net] = None
    return None


def same_answers(net: nn.Module, other: nn.Module, x: Tensor) -> bool:
    """Whether both say the same of x (N, C, H, W), to float rounding: 0.1 % of the largest logit, or of 1."""
    if other is net:
        return True
    with torch.no_grad():
        logits, others = net(x), other(x)
    off = (logits - others).abs().max()
    return bool(off <= 1e-3 * logits.abs().max().clamp_min(1))


def _traced(kind: type[F], net: nn.Module, kept: "WeakKeyDictionary[nn.Module, F | None]") -> F | None:
    """What was made of `net` before, where it still fits."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return None
    if net not in kept or not ((found := kept[net]) is None or found.fits(net)):
        kept[net] = _made(kind, net)
    return kept[net]


def _parts(net: nn.Module) -> list[nn.Module]:
    """All modules but the network itself, which would never be freed if it were held here."""
    return [module for module in net.modules() if module is not net]


def _kinds(net: nn.Module) -> list[tuple[torch.dtype, torch.device]]:
    return [(parameter.dtype, parameter.device) for parameter in net.parameters()]


def free(net: nn.Module) -> None:
    """Free what `lowered` holds for `net`, until it is asked for again."""
    if (found := _LOWERED.get(net)) is not None:
        found.free()


def _take(own: Any, new: Any) -> None:
    """Write `new` where `own` lies, or anew where it was freed."""
    if own.numel():
        own.copy_(new)
    else:
        own.data = torch.empty_like(new, dtype=own.dtype).copy_(new)


def _made(kind: type[F], net: nn.Module) -> F | None:
    try:
        return kind(net)
    except Exception:  # a user's network may fail in any way when traced, and the plain path is always right
        return None


def _cast(graph: fx.Graph, node: fx.Node, module: nn.Module | None) -> None:
    """Images come in as bf16; what a linear layer is fed, and what the network answers, is fp32."""
    if node.op == "placeholder":
        with graph.inserting_after(node):
            low = graph.call_method("bfloat16", (node,))
        node.replace_all_uses_with(low, delete_user_cb=lambda user: user is not low)
    elif isinstance(module, nn.Linear) or node.op == "output":
        with graph.inserting_before(node):
            wide = graph.call_method("float", (node.args[0],))
        node.replace_input_with(node.args[0], wide)  # type: ignore[arg-type]


def _folds_into(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The convolution that this batch-norm follows, if it is called once and nothing else looks at its output."""
    if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.BatchNorm2d):
        return None
    before: Any = node.args[0]
    if before.op != "call_module" or not isinstance(modules[before.target], nn.Conv2d) or len(before.users) > 1:
        return None
    calls = [other for other in before.graph.nodes if other.op == "call_module" and other.target == before.target]
    norm = modules[str(node.target)]
    return before if len(calls) == 1 and norm.track_running_stats and norm.affine else None


def _replace(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Put `module` at `name` in the graph alone: the modules on the way there are its own, what they hold is shared."""
    parent, _, leaf = name.rpartition(".")
    setattr(graph.get_submodule(parent) if parent else graph, leaf, module)
