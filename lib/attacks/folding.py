"""Convolution and batch-norm as one convolution: faster for an eval-mode attack, and the same to float rounding."""

from collections import Counter
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

_FOLDED: "WeakKeyDictionary[nn.Module, Folded | None]" = WeakKeyDictionary()


def folded(net: nn.Module) -> nn.Module:
    """`net`, which is in eval mode, with convolution and batch-norm folded as its weights are now.

    A network that cannot be traced, has hooks (which a trace leaves out) or has nothing to fold is returned as it is. A
    replaced module is noticed; what a trace cannot see, as an attribute that steers the forward, `same_answers` finds.
    """
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return net
    trace = _FOLDED.get(net)
    if net not in _FOLDED or (trace and trace.made_of != _made_of(net)):
        try:
            trace = Folded(net)
        except Exception:  # a user's network may fail in any way when traced, and the plain path is always right
            trace = None
        _FOLDED[net] = trace
    return trace.refresh() if trace and trace.pairs else net


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
    """Whether the logits of x (N, C, H, W) are the same to float rounding: 0.1 % of the largest, or of 1.

    A trace leaves out a no_grad, so that a gradient can be had of both or of neither.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits, others = net(x), other(x)
    if logits.requires_grad != others.requires_grad:
        return False
    logits, others = logits.detach(), others.detach()
    return bool((logits - others).abs().max() <= 1e-3 * logits.abs().max().clamp_min(1))


class Folded:
    """The trace of a network in eval mode, every batch-norm that follows a convolution alone folded into it.

    f(x) = g conv(x) / s + (b - g m / s), with the batch-norm's scale g, shift b, mean m and spread s. All other modules
    are the network's own.
    """

    def __init__(self, net: nn.Module) -> None:
        self.made_of, self.recorded = _made_of(net), False
        self.graph = fx.GraphModule(net, _Tracer().trace(net))
        self.pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]] = []
        calls: list[Any] = [node for node in self.graph.graph.nodes if node.op == "call_module"]
        count = Counter(node.target for node in calls)
        for node in calls:
            norm = net.get_submodule(node.target)
            if not isinstance(norm, nn.BatchNorm2d) or not (norm.track_running_stats and norm.affine):
                continue
            before = node.args[0]
            conv = net.get_submodule(before.target) if before.op == "call_module" else None
            if isinstance(conv, nn.Conv2d) and len(before.users) == count[before.target] == 1:
                both = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
                self.graph.set_submodule(before.target, both)  # what lies on the way there is the graph's own
                node.replace_all_uses_with(before)
                self.graph.graph.erase_node(node)
                self.pairs.append((conv, norm, both))
        self.graph.recompile()

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
    """Convolutions and batch-norms of our own stay whole, as torch's do."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _made_of(net: nn.Module) -> list[object]:
    """Its modules but itself, which would never be freed if it were held here, and its weights' types and devices."""
    modules = [module for module in net.modules() if module is not net]
    return [*modules, *((parameter.dtype, parameter.device) for parameter in net.parameters())]
