"""Convolution and batch-norm as one convolution: faster for an eval-mode attack, and the same to float rounding."""

from copy import deepcopy
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_FOLDED: "WeakKeyDictionary[nn.Module, Folded | None]" = WeakKeyDictionary()


def folded(net: nn.Module) -> nn.Module:
    """`net`, which is in eval mode, with convolution and batch-norm folded as its weights are now.

    A network that cannot be traced, has hooks (which a trace leaves out) or has nothing to fold is returned as it is.
    The trace lives as long as the network, and is made again where its modules were replaced. What a trace cannot see,
    such as an attribute that steers the forward, `same_answers` finds.
    """
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return net
    if net not in _FOLDED or not ((trace := _FOLDED[net]) is None or trace.fits(net)):
        try:
            _FOLDED[net] = Folded(net)
        except Exception:  # a user's network may fail in any way when traced, and the plain path is always right
            _FOLDED[net] = None
    trace = _FOLDED[net]
    return trace.refresh() if trace is not None and trace.pairs else net


def free(net: nn.Module, recorded: bool = False) -> None:
    """Hold no folded weights of `net` until `folded` is called again; where they were ever recorded, they stay."""
    if (trace := _FOLDED.get(net)) is None:
        return
    trace.recorded |= recorded
    if not trace.recorded:
        for *_, both in trace.pairs:
            for parameter in both.parameters():
                parameter.data = parameter.data.new_empty(0)


def same_answers(net: nn.Module, other: nn.Module, x: Tensor) -> bool:
    """Whether the logits of x (N, C, H, W) are the same to float rounding: 0.1 % of the largest, or of 1."""
    if other is net:
        return True
    with torch.no_grad():
        logits, others = net(x), other(x)
    return bool((logits - others).abs().max() <= 1e-3 * logits.abs().max().clamp_min(1))


class Folded:
    """A network in eval mode with every batch-norm that follows a convolution folded into it.

    f(x) = g conv(x) / s + (b - g m / s), with the batch-norm's scale g, shift b, mean m and spread s. All other modules
    are the network's own. `refresh` takes over changed weights; `fits` is whether a network is still this one.
    """

    def __init__(self, net: nn.Module) -> None:
        self.made_of = _made_of(net)
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
        self.graph.training, self.recorded = False, False

    def fits(self, net: nn.Module) -> bool:
        """Whether `net` is still made of the same modules, of the same types and on the same device."""
        return _made_of(net) == self.made_of

    @torch.no_grad()
    def refresh(self) -> fx.GraphModule:
        """The folded network, with the present weights."""
        for conv, norm, both in self.pairs:
            mean, var, bias = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var), cast(Tensor, both.bias)
            made = fuse_conv_bn_weights(conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias)
            for own, new in zip((both.weight, bias), made, strict=True):
                if own.numel():
                    own.copy_(new)  # in place: a recorded attack reads it where it lies
                else:
                    own.data = new.detach()
        return self.graph


class _Tracer(fx.Tracer):
    """Convolutions of our own stay whole, as torch's do."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _made_of(net: nn.Module) -> list[object]:
    """Its modules but itself, which would never be freed if it were held here, and its weights' types and devices."""
    modules = [module for module in net.modules() if module is not net]
    return [*modules, *((parameter.dtype, parameter.device) for parameter in net.parameters())]


def _folds_into(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The convolution that this batch-norm follows, if it is called once and nothing else uses its output."""
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
