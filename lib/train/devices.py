"""One training on several devices, each with a process of its own (a rank), as torchrun starts them.

Every rank has the whole batch and draws for all of it. A network is forwarded on the rank's own part and its logits are
gathered, so attack, loss, criterion and strategy are on every rank what they are in one process: a mean is the whole
batch's, and all ranks go on alike. Backwards, gradients of images are gathered and gradients of weights are summed, by
hooks: torch's DistributedDataParallel does not support autograd.grad, which AWP and LAS-AT's copy take gradients with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from lib.attacks.fast import Engine
from lib.attacks.pgd import Net
from lib.errors import UserError, choose


@dataclass(frozen=True)
class Parallel:
    """Whose batch statistics a network has in train mode: the whole batch's, or those of each device's own part.

    The whole batch's are the same on any number of devices, to rounding; a part's depend on their number: `devices`.
    """

    batch_norm: str
    devices: int = 0

    def __post_init__(self) -> None:
        choose("batch_norm", self.batch_norm, NORMS)
        if (self.batch_norm == "per_device") != (self.devices > 1):
            raise UserError(f"batch_norm per_device goes with devices, 2 or more, and synchronised without: {self}")


def size() -> int:
    """The number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is."""
    return dist.get_rank() if size() > 1 else 0


def summed(tensor: Tensor) -> Tensor:
    """The sum over ranks, the same bits on each."""
    total = tensor.clone()
    if size() > 1:
        dist.all_reduce(total)
    return total


def gathered(part: Tensor, count: int) -> Tensor:
    """(count, ...) of the ranks' own parts (n, ...)."""
    whole = part.new_zeros(count, *part.shape[1:])
    whole[own(count)] = part
    return summed(whole)  # the others' are 0, and x + 0 is x


def own(count: int) -> slice:
    """This rank's part of `count` images; none, where there are fewer than ranks."""
    each, more = divmod(count, size())
    first = rank() * each + min(rank(), more)
    return slice(first, first + each + (rank() < more))


def shared(net: Net) -> Net:
    """x (N, C, H, W) -> the logits (N, K) of `net`, of which this rank computes its own part."""

    def forward(x: Tensor) -> Tensor:
        mine, images = own(len(x)), x.view_as(x)
        if images.requires_grad:
            images.register_hook(summed)  # each rank has its own part of the gradient, and 0 elsewhere
        part = net(images[mine])
        logits = gathered(part.detach(), len(x))
        logits[mine] = part  # all ranks compute one loss of all logits: its gradient here is that of the own part
        return logits

    return forward


class _Normalise(Function):
    """w (x - m) / sqrt(v + eps) + b, the mean m and the variance v those of the `count` values of all ranks' x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *statistics: Any) -> Tensor:
        mean, var, ctx.count, eps = statistics
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *statistics = ctx.saved_tensors
        mean, inverse = (value[:, None, None] for value in statistics)
        normal, slope = (x - mean) * inverse, slope.to(mean.dtype)
        sums = torch.stack([slope.sum((0, 2, 3)), (slope * normal).sum((0, 2, 3))])
        first, second = (summed(sums) / ctx.count)[:, :, None, None]
        to_x = weight[:, None, None] * inverse * (slope - first - normal * second)
        return to_x.to(x.dtype), sums[1], sums[0], None, None, None, None


ONE_VALUE = "Expected more than 1 value per channel when training"  # as torch's batch-norm says


class PerDevice(nn.BatchNorm2d):
    """Batch-norm with each rank's own batch statistics; the running ones, the same on all, take in their mean."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        means, variances, counts = _statistics(x)
        if len(x) <= 1 and not counts.all():
            raise ValueError(ONE_VALUE)
        shares = counts / counts.sum()
        self.move((shares * means).sum(0), (shares * variances * counts / (counts - 1).clamp_min(1)).sum(0))
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)

    @torch.no_grad()
    def move(self, mean: Tensor, var: Tensor) -> None:
        """The running statistics after a forward with these."""
        tracked: Any = self
        tracked.num_batches_tracked.add_(1)
        share = 1 / float(tracked.num_batches_tracked) if self.momentum is None else self.momentum
        tracked.running_mean.lerp_(mean, share)
        tracked.running_var.lerp_(var, share)


class Synchronised(PerDevice):
    """Batch-norm with the whole batch's statistics, as in one process."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        means, variances, counts = _statistics(x)
        count = counts.sum()
        if x.numel() <= x.shape[1] and count <= 1:
            raise ValueError(ONE_VALUE)
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean).square())).sum(0) / count
        self.move(mean, var * count / (count - 1))
        return _Normalise.apply(x, self.weight, self.bias, mean, var, count, self.eps)


NORMS: dict[str, type[PerDevice]] = {"synchronised": Synchronised, "per_device": PerDevice}


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means (R, C) and variances (R, C) of the ranks' parts of x (n, C, H, W), and how many values (R, 1) each has."""
    x, count = x.to(torch.promote_types(x.dtype, torch.float32)), x.numel() // x.shape[1]
    mean = x.sum((0, 2, 3)) / max(count, 1)
    var = (x - mean[:, None, None]).square().sum((0, 2, 3)) / max(count, 1)
    means, variances, counts = gathered(torch.stack([mean, var, torch.full_like(mean, count)])[None], size()).unbind(1)
    return means, variances, counts[:, :1]


class SeveralDevices(Engine):
    """The engine whose networks are shared by the ranks; no attack is recorded, as each step of it waits for them."""

    def __init__(self, execution: str, precision: str, norm: type[PerDevice]) -> None:
        super().__init__(execution, precision)
        self.norm, self.reasons = norm, {"cuda_graph": f"{size()} devices"}

    def lay_out(self, net: nn.Module) -> nn.Module:
        """`net` itself, its gradients those of all ranks, and its batch-norm of the kind that was chosen."""
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None or module.weight is None:
                    raise UserError(f"on several devices batch-norm is of images, with weights and tracked: {module}")
                module.__class__ = self.norm
        on_gradients(net, summed)
        return super().lay_out(net)

    def attack_view(self, net: nn.Module) -> Net:
        """As on one device, forwarded in parts."""
        return shared(super().attack_view(net))

    def training_view(self, net: Net) -> Net:
        """As on one device, forwarded in parts."""
        return shared(super().training_view(net))


def engine(parallel: Parallel | None, execution: str, precision: str) -> Engine:
    """How a training is executed; UserError where per-device statistics are of another number of devices."""
    if parallel is not None and parallel.devices not in (0, size()):
        wanted = f"batch statistics of {parallel.devices} devices' parts want as many processes"
        raise UserError(f"{wanted}, and there are {size()}: torchrun --nproc-per-node {parallel.devices}")
    if parallel is None or size() == 1:
        return Engine(execution, precision)
    return SeveralDevices(execution, precision, NORMS[parallel.batch_norm])


def on_gradients(net: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """From now on each gradient of a weight of `net` is `change` of it, whoever asks for it and however."""
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.register_hook(change)


def mean(tensor: Tensor) -> Tensor:
    """The mean over ranks, the same bits on each."""
    return summed(tensor) / size()


def agree(numbers: Tensor, what: str) -> None:
    """UserError unless they are the same on every rank."""
    rows = gathered(numbers[None], size())
    if not rows.eq(rows[0]).all():
        raise UserError(f"the {what} are not the same on all devices, which one training on several of them wants")


def weights_agree(net: nn.Module) -> None:
    """UserError unless every rank has the same weights."""
    agree(torch.stack([weight.detach().double().sum() for weight in net.state_dict().values()]), "weights")


def from_first(value: Callable[[], float]) -> float:
    """What the first rank computes, on every rank; the others wait for it."""
    number = torch.tensor([value() if rank() == 0 else 0.0], dtype=torch.float64)
    if size() > 1:
        dist.broadcast(number, 0)
    return float(number)


def announce(digest: str = "") -> str:
    """What the first rank announces, on every rank: the run that is trained next; "" is the end."""
    letters = torch.tensor(list(digest.ljust(12).encode()), dtype=torch.uint8)
    if size() > 1:
        dist.broadcast(letters, 0)
    return bytes(letters.tolist()).decode().strip()
