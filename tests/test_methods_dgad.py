"""DGAD where the paper's text, its equations and its code are not one: what is done here, and where it is said."""

import math

import pytest
import torch
import yaml
from cases import make_case, make_training, terms_of

from lib.experiment.parameters import PARAMS, Parameters, load_scale
from lib.losses import kl
from lib.methods import METHODS, Nets
from lib.methods.distillation import kl_as_printed, kl_student_teacher

CHOICES = yaml.safe_load((PARAMS / "choices" / "dgad.yaml").read_text())["choices"]
TEACHER, STUDENT = (0.7, 0.2, 0.1), (0.4, 0.4, 0.2)


def choice(question):
    (found,) = [one for one in CHOICES if one["question"] == question]
    return " ".join((found["choice"] + " " + found["reason"]).split())


# --- the direction of KL ------------------------------------------------------------------------------------------


def test_the_two_directions_of_the_same_two_answers_are_two_numbers():
    p, q = (torch.tensor([one], dtype=torch.double).log() for one in (TEACHER, STUDENT))
    ours = 0.7 * math.log(7 / 4) + 0.2 * math.log(1 / 2) + 0.1 * math.log(1 / 2)  # 0.1838
    printed = 0.4 * math.log(4 / 7) + 0.4 * math.log(2) + 0.2 * math.log(2)  # 0.1920
    assert kl(p, q).item() == pytest.approx(ours)
    assert kl_as_printed(p, q).item() == pytest.approx(printed)
    assert abs(printed - ours) > 0.008


@pytest.mark.parametrize("name", ["adaad", "dgad"])
def test_the_printed_form_turns_the_attacks_kl_too_and_its_gradient_still_runs_through_both_networks(name):
    a, b = torch.randn(2, 48, 5, dtype=torch.double)
    nets = Nets(lambda z: z.flatten(1) @ a, lambda z: z.flatten(1) @ b)
    x, y = torch.rand(4, 3, 4, 4, dtype=torch.double, requires_grad=True), torch.arange(4)
    q, p = nets.student(x).softmax(1), nets.teacher(x).softmax(1)
    expected = (q * (q / p).log()).sum(1)
    objective = METHODS[f"{name}_kl_as_printed"].objective
    assert objective is kl_student_teacher
    ours = objective(nets, x, y)(x)
    torch.testing.assert_close(ours, expected)
    slopes = [torch.autograd.grad(value.sum(), x)[0] for value in (ours, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("name", ["adaad", "dgad"])
def test_the_printed_form_differs_from_the_methods_own_in_the_direction_of_kl_alone(name):
    own, printed = METHODS[name], METHODS[f"{name}_kl_as_printed"]
    assert printed.loss.keywords == {"divergence": kl_as_printed}
    assert (printed.loss.func, printed.weights, printed.start) == (own.loss, own.weights, own.start)
    assert printed.title == f"{own.title} (KL as printed)"


def test_the_direction_is_a_choice_that_names_both_rows():
    table = yaml.safe_load((PARAMS / "tables" / "table4_dgad.yaml").read_text())
    for row in ("AdaAD (KL as printed)", "DGAD (KL as printed)"):
        assert row in choice("The direction of KL")
        assert row in [one["row"] for one in table["more_rows"]]


# --- settings that the paper leaves to others ---------------------------------------------------------------------


def test_alpha_is_one_so_that_ard_has_no_label_term_and_adaad_no_clean_one():
    assert METHODS["adaad"].weights == {"adv_weight": 1.0}
    case = make_case()
    assert set(terms_of("ard", case)) == {"adv"}
    assert not terms_of("adaad", case)["clean"].any()
    assert choice("The weight alpha of ARD and of AdaAD").startswith("1, which leaves out two terms")


def test_rslad_weighs_the_adversarial_image_five_times_as_much_as_the_clean_one():
    assert METHODS["rslad"].weights["adv_weight"] == pytest.approx(1 / (1 + 1 / 5))
    assert choice("RSLAD's weights").startswith("5/6 on x' and 1/6 on x")


def test_pgd_at_drops_its_rate_at_100_and_105_of_110_epochs_and_the_others_at_100_and_150_of_200():
    schedules = load_scale(Parameters(scale="paper")).schedules
    found = {name: (schedules[name]["epochs"], tuple(schedules[name]["milestones"])) for name in ("pgd_at", "default")}
    assert found == {"pgd_at": (110, (100, 105)), "default": (200, (100, 150))}
    assert choice("When PGD-AT's learning rate drops").startswith("at 100 and 105 of 110 epochs")


@pytest.mark.parametrize("name", ["pgd_at", "trades", "rslad", "adaad", "dgad"])
def test_its_attack_starts_a_thousandth_beside_the_image_and_pgd_ats_inside_the_range(name):
    x = torch.zeros(4, 3, 64, 64)
    start = METHODS[name].start(x, torch.tensor(8 / 255), None)
    assert start[start > 0].square().mean().sqrt().item() == pytest.approx(0.001, rel=0.02)
    assert (start < 0).any() == (name != "pgd_at")
    assert "0.001 N(0, 1) beside x" in choice("Where training attacks start")


def test_an_image_that_the_teacher_gets_wrong_is_attacked_too_and_feels_it_in_the_consistency_term_alone(
    make_net, batch
):
    (x, _), teacher = batch, make_net().eval()
    y = (teacher(x).argmax(1) + 1) % 10  # every image is in ST
    training = make_training("dgad", make_net(), teacher, x, y)
    x_adv, _ = training.craft(x, y)
    assert (x_adv - x).abs().amax((1, 2, 3)).min() > 0.01
    terms = METHODS["dgad"].loss(training.nets, x, x_adv, y, beta=5.0)
    assert not terms["adv"].any()
    assert terms["clean"].all()
    assert terms["pcr"].all()
    assert choice("Which images DGAD attacks").startswith("the whole batch")
