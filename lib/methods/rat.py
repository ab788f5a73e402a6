"""RAT on TRADES (Jin et al. 2023), by its code: labels from both views' pull at the last layer; noise in the attack."""

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lib.errors import UserError
from lib.losses import cross_entropy, kl
from lib.methods.at import kl_clean
from lib.methods.core import Method, Net, Nets, Terms, Weight


def rat_trades(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, trade_off: float, label_share: float) -> Terms:
    """(1-a) CE(x) + a/2 [KL(q' || x') + KL(q || x)] + a/4 [KL(s || x') + KL(s || x)] + lambda KL(S(x) || S(x')).

    a is `label_share`, KL(q || x) short for KL(q || S(x)). With r and r' the slopes of x and x' (`row_slopes`), the
    classes' labels (`class_labels`) q' come from |r| - |r'|, q from |r'| - |r|, and s, on both sides, from r'^2 - r^2.
    The code forwards x and x' four times each, with equal answers; once each, x last, gives batch-norm the same mix.
    """
    student_adv, features_adv = with_features(nets.student, x_adv)
    student, features = with_features(nets.student, x)
    r_adv, r = row_slopes(student_adv, features_adv, y), row_slopes(student, features, y)
    first_adv, first = class_labels(r.abs() - r_adv.abs(), y), class_labels(r_adv.abs() - r.abs(), y)
    second = class_labels(r_adv.square() - r.square(), y)
    return {
        "clean": (1 - label_share) * cross_entropy(student, y),
        "first": label_share / 2 * (_label_kl(first_adv, student_adv) + _label_kl(first, student)),
        "second": label_share / 4 * (_label_kl(second, student_adv) + _label_kl(second, student)),
        "adv": trade_off * kl(student, student_adv),
    }


def with_features(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """net(x) (N, C), and what its last linear layer was fed (N, D), detached; UserError where it has none."""
    fed: list[Tensor] = []

    def listen(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Linear):
            fed.append(arguments[0].detach())

    with register_module_forward_pre_hook(listen):  # whatever `net` is wrapped in
        logits = net(x)
    if not fed:
        raise UserError("RAT's labels come from a network's last linear layer, and this network has none")
    if len(fed[-1]) != len(logits):
        raise UserError("RAT's labels need every image's features, and each of several devices has only its own part's")
    return logits, fed[-1].to(logits.dtype)


def row_slopes(logits: Tensor, features: Tensor, y: Tensor) -> Tensor:
    """mean_i (p_i - onehot(y_i)) sum_d h_id, h the features: row sums (C,) of the CE's gradient for the last layer."""
    error = logits.detach().softmax(1)
    error = error.scatter_add(1, y[:, None], -torch.ones_like(error[:, :1]))
    return (error * features.sum(1, keepdim=True)).mean(0)


def class_labels(slope: Tensor, y: Tensor) -> Tensor:
    """(N, C): the authors' 2/C for the true class, the rest for the others in proportion to slope - min(slope)."""
    own, true_share = y[:, None], 2 / len(slope)
    others = (slope - slope.min()).expand(len(y), -1).scatter(1, own, 0.0)
    others = others / others.sum(1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    return ((1 - true_share) * others).scatter(1, own, true_share)


def _label_kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(q || p) (N,), q = target (N, C) as probabilities, p = softmax(logits)."""
    return cross_entropy(logits, target) - torch.special.entr(target).sum(1)


_WEIGHTS: dict[str, Weight] = {"trade_off": 6.0, "label_share": 0.2}

METHODS = {"rat_trades": Method("RAT (TRADES)", kl_clean, rat_trades, _WEIGHTS, attack_noise=1e-4)}
