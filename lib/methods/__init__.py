"""A method is a row: what the attack maximises, what training minimises, and the recipe that goes with them.

Losses return named per-image terms {name: (N,)}; the loop adds them up and takes the mean, once. Forwards stand on top,
in the order the recipe wants, because each moves the student's batch-norm statistics. S is the student, T the frozen
teacher, G the guide that is trained beside the student, which is then called the target, x' the adversarial image,
KL(T || S) the divergence from the teacher's distribution.

`*_as_released` is the authors' public code where it differs from the paper's formula in what it computes.
`params/choices/` says what was chosen where neither of them decides.
"""

from functools import partial

from lib import attacks
from lib.attacks.stopping import UntilConverged, UntilGap, UntilWrong
from lib.losses import kl, softmax_distance
from lib.methods.at import CountIterates, gair, lbgat, lbgat_frozen, mail, mart, pgd_at_smoothed, trades_smoothed
from lib.methods.core import Method, Net, Nets, NominalBatch, Piecewise, Ramp, Weight, weight_at
from lib.methods.d2r import d2r, d2r_as_released, d2r_one_sided
from lib.methods.dgad import (
    adaad_els,
    as_taught,
    dgad,
    dgad_as_released,
    dgad_mixing,
    dgad_mobilenet_as_released,
    dgad_parts,
    dgad_smoothing,
)
from lib.methods.distillation import (
    adaad,
    adaad_as_released,
    akd,
    ard,
    ard_as_released,
    iad,
    iad_as_released,
    natural,
    pgd_at,
    pgd_at_as_released,
    rslad,
    rslad_as_released,
    trades,
    trades_as_released,
)
from lib.methods.dynat import dynat, dynat_smoothed, guides_answer
from lib.methods.objectives import (
    ce_label,
    kl_clean,
    kl_guide,
    kl_guide_as_printed,
    kl_teacher,
    kl_teacher_student,
)
from lib.methods.rat import rat_trades

__all__ = [
    "METHODS",
    "Method",
    "Net",
    "Nets",
    "NominalBatch",
    "Piecewise",
    "Ramp",
    "Weight",
    "ce_label",
    "d2r",
    "dgad",
    "dgad_parts",
    "dynat",
    "gair",
    "guides_answer",
    "kl_clean",
    "kl_guide",
    "kl_guide_as_printed",
    "kl_teacher",
    "kl_teacher_student",
    "mail",
    "weight_at",
]

_distil = partial(Method, needs_teacher=True)
_beside = partial(Method, trains_guide=True)
_inner = partial(_beside, guide_mode="train_at_every_step", attack_label=guides_answer)
_cag = partial(_beside, guide_mode="eval", beside_class_means=("guide_weight",))
_IAD = {"exponent": Piecewise((60 / 200,), (0.0, 0.1))}
_GAIR: dict[str, Weight] = {"lam": -1.0, "active": Piecewise((60 / 120,), (0.0, 1.0))}
_MAIL: dict[str, Weight] = {"active": Piecewise((76 / 120,), (0.0, 1.0))}
_MAIL_AT: dict[str, Weight] = {"bias": -0.5, "slope": 10.0, **_MAIL}
_DYNAT: dict[str, Weight] = {"target_weight": 1.0, "trade_off": 0.0}
_DYNAT_GAIR: dict[str, Weight] = {"true_share": 0.8, "lam": -1.0, "active": Piecewise((70 / 120,), (0.0, 1.0))}
_D2R: dict[str, Weight] = {"guide_weight": 1.0, "adv_weight": 30.0, "skl_weight": 20.0}

METHODS: dict[str, Method] = {
    "natural": Method("natural training", None, natural),
    "pgd_at": Method("PGD-AT", ce_label, pgd_at, start=attacks.gaussian_in_image),
    "pgd_at_as_released": Method(
        "PGD-AT (AdaAD's code)", ce_label, pgd_at_as_released, start=attacks.gaussian_in_image
    ),
    "pgd_at_uniform": Method("PGD-AT (uniform start)", ce_label, pgd_at, start=attacks.uniform_in_image),
    "pgd_at_uniform_as_released": Method(
        "PGD-AT (Rice's code, uniform start)", ce_label, pgd_at_as_released, start=attacks.uniform_in_image
    ),
    "trades": Method("TRADES", kl_clean, trades, {"trade_off": 6.0}),
    "trades_as_released": Method("TRADES (code)", kl_clean, trades_as_released, {"trade_off": 6.0}),
    "pgd_at_smoothed": Method(
        "PGD-AT (smoothed labels)", ce_label, pgd_at_smoothed, {"true_share": 0.7}, attacks.uniform_in_image
    ),
    "trades_smoothed": Method(
        "TRADES (smoothed labels)",
        kl_clean,
        trades_smoothed,
        {"trade_off": 6.0, "true_share": 0.9},
        attacks.uniform_in_image,
    ),
    "mart": Method("MART", ce_label, mart, {"beta": 6.0}),
    "fat": Method(
        "FAT",
        ce_label,
        pgd_at,
        start=attacks.uniform_in_image,
        criterion=UntilWrong,
        criterion_weights={"patience": Piecewise((50 / 120, 90 / 120), (0.0, 1.0, 2.0))},
    ),
    "sat": Method(
        "SAT",
        ce_label,
        pgd_at,
        start=attacks.uniform_in_image,
        criterion=UntilGap,
        criterion_weights={"gap": Ramp(30 / 100, 70 / 100, 0.0, 0.4)},
    ),
    "dart": Method(
        "DART",
        ce_label,
        pgd_at,
        start=attacks.uniform,
        criterion=UntilConverged,
        criterion_weights={"bound": Ramp(0.0, 100 / 120, 0.5, 0.0)},
    ),
    "gairat": Method("GAIRAT", ce_label, gair(pgd_at), _GAIR, start=attacks.uniform_in_image, criterion=CountIterates),
    "gairat_smoothed": Method(
        "GAIRAT (smoothed labels)",
        ce_label,
        gair(pgd_at_smoothed),
        {"true_share": 0.8, **_GAIR},
        start=attacks.uniform_in_image,
        criterion=CountIterates,
    ),
    "mail_at": Method("MAIL-AT", ce_label, mail(pgd_at), _MAIL_AT),
    "mail_at_smoothed": Method(
        "MAIL-AT (smoothed labels)", ce_label, mail(pgd_at_smoothed), {"true_share": 0.8, **_MAIL_AT}
    ),
    "mail_trades": Method(
        "MAIL-TRADES", kl_clean, mail(trades), {"trade_off": 5.0, "bias": 0.0, "slope": 2.0, **_MAIL}
    ),
    "rat_trades": Method(
        "RAT (TRADES)", kl_clean, rat_trades, {"trade_off": 6.0, "label_share": 0.2}, attack_noise=1e-4
    ),
    "lbgat": _beside("LBGAT", kl_clean, lbgat, {"trade_off": 0.0}),
    "lbgat_frozen": _distil("LBGAT (guide frozen)", kl_clean, lbgat_frozen, guided=True),
    "mail_mse": _beside("MAIL (MSE)", ce_label, mail(lbgat, "mse"), {"trade_off": 0.0, **_MAIL_AT}),
    "dynat": _beside("DYNAT", kl_clean, dynat, _DYNAT),
    "dynat_inner": _inner("DYNAT-Inner", ce_label, dynat, _DYNAT),
    "dynat_awp": _beside("DYNAT (AWP's code)", kl_clean, dynat, _DYNAT, guide_forwards=2),
    "dynat_inner_awp": _inner("DYNAT-Inner (AWP's code)", ce_label, dynat, _DYNAT, guide_forwards=2),
    "dynat_inner_gairat": _inner(
        "DYNAT-Inner-GAIRAT",
        ce_label,
        gair(dynat_smoothed),
        _DYNAT_GAIR,
        start=attacks.uniform_in_image,
        criterion=CountIterates,
    ),
    "dynat_mail_at": _beside("DYNAT-AT-MAIL", ce_label, mail(dynat), {**_DYNAT, **_MAIL_AT}),
    "dynat_mail_inner": _inner("DYNAT-MAIL-Inner", ce_label, mail(dynat, label=guides_answer), {**_DYNAT, **_MAIL_AT}),
    "d2r": _cag("D2R-CAG", kl_guide_as_printed, d2r, _D2R),
    "d2r_as_released": _cag("D2R-CAG (code)", kl_guide, d2r_as_released, _D2R),
    "d2r_summed": _cag("D2R-CAG (sums over classes)", kl_guide_as_printed, partial(d2r, divergence=kl), _D2R),
    "d2r_one_sided": _cag("D2R-CAG (one side per batch)", kl_guide_as_printed, d2r_one_sided, _D2R),
    "d2r_no_cag": _cag("D2R", kl_clean, d2r, _D2R, guide_mode="train"),
    "d2r_no_cag_as_released": _cag("D2R (code)", kl_clean, d2r_as_released, _D2R, guide_mode="train"),
    "ard": _distil("ARD", ce_label, ard, {"temperature": 30.0}, start=attacks.uniform_in_image),
    "ard_as_released": _distil(
        "ARD (code)", ce_label, ard_as_released, {"temperature": 30.0}, start=attacks.uniform, attack_mode="train"
    ),
    "iad": _distil("IAD", ce_label, iad, _IAD, start=attacks.uniform_in_image),
    "iad_as_released": _distil(
        "IAD (code)", ce_label, iad_as_released, _IAD, start=attacks.uniform, attack_mode="train"
    ),
    "rslad": _distil("RSLAD", kl_teacher, rslad, {"adv_weight": 5 / 6}),
    "rslad_as_released": _distil("RSLAD (code)", kl_teacher, rslad_as_released, {"adv_weight": 5 / 6}),
    "akd": _distil("AKD", ce_label, akd, {"mixing": 0.5}, start=attacks.uniform_in_image),
    "adaad": _distil("AdaAD", kl_teacher_student, adaad, {"adv_weight": 1.0}),
    "adaad_as_released": _distil("AdaAD (code, CIFAR-10)", kl_teacher_student, adaad_as_released, {"adv_weight": 1.0}),
    "dgad": _distil("DGAD", kl_teacher_student, dgad, {"beta": 5.0}),
    "dgad_map": _distil("MAP", kl_teacher_student, partial(dgad, st=as_taught, at=as_taught), {"beta": 0.0}),
    "dgad_map_pcr": _distil("MAP, PCR", kl_teacher_student, partial(dgad, st=as_taught, at=as_taught), {"beta": 5.0}),
    "adaad_els": _distil("ELS(x')", kl_teacher_student, adaad_els),
    "dgad_map_els_at": _distil("MAP, ELS(x'_AT)", kl_teacher_student, partial(dgad, st=as_taught), {"beta": 0.0}),
    "dgad_map_els_st": _distil("MAP, ELS(x_ST)", kl_teacher_student, partial(dgad, at=as_taught), {"beta": 0.0}),
    "dgad_map_els": _distil("MAP, ELS", kl_teacher_student, dgad, {"beta": 0.0}),
    "dgad_smoothing": _distil("DGAD, smoothing", kl_teacher_student, dgad_smoothing, {"beta": 5.0, "share": 0.1}),
    "dgad_mixing": _distil("DGAD, mixing", kl_teacher_student, dgad_mixing, {"beta": 5.0, "share": 0.5}),
    "dgad_as_printed": _distil(
        "DGAD (PCR as printed)", kl_teacher_student, partial(dgad, consistency=softmax_distance), {"beta": 5.0}
    ),
    "dgad_as_released": _distil(
        "DGAD (code)", kl_teacher_student, dgad_as_released, {"beta": 5.0, "nominal": NominalBatch()}
    ),
    "dgad_mobilenet_as_released": _distil(
        "DGAD (code, MobileNetV2)",
        kl_teacher_student,
        dgad_mobilenet_as_released,
        {"beta": 10.0, "nominal": NominalBatch()},
    ),
}
