from math import comb
from random import Random

import pytest

from lib.errors import UserError
from lib.evaluate import Accuracy, AttackSpec, contradictions, paired, worst_case


def accuracy(name, attack, flags, **settings):
    settings = {"steps": 5} | settings if attack in ("pgd", "pgd_frozen", "cw2") else settings
    return Accuracy(AttackSpec(name, attack, **settings), flags.count("1"), len(flags), flags)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 1), (9, 2), (6, 6)])
def test_mcnemars_p_is_that_of_as_many_fair_coins(b, c):
    first, second = "1" * b + "0" * c + "1" * 20, "0" * b + "1" * c + "1" * 20
    coins = b + c
    tail = sum(comb(coins, i) for i in range(min(b, c) + 1)) / 2**coins
    test = paired([first], [second])
    assert test.p == pytest.approx(min(1.0, 2 * tail) if b != c else 1.0)
    assert test.difference == pytest.approx(100 * (b - c) / len(first))


def test_the_error_of_a_paired_difference_is_that_of_the_pairs():
    test = paired(["1" * 8 + "0" * 4 + "1" * 28], ["0" * 8 + "1" * 4 + "1" * 28])
    assert test.error == pytest.approx(100 * (12 - 16 / 40) ** 0.5 / 40)


def test_networks_that_agree_on_most_images_differ_significantly_where_independent_sets_would_not_be():
    first, second = "1" * 106 + "0" * 94, "1" * 100 + "0" * 100
    assert paired([first], [second]).significant  # six images, all one way; two independent errors are 5 points
    assert not paired(["1" * 103 + "0" * 97], [second]).significant


def test_with_several_seeds_the_spread_of_the_trainings_counts_beside_the_images():
    first = ["1" * 110 + "0" * 90, "1" * 90 + "0" * 110]
    second = ["1" * 100 + "0" * 100, "1" * 80 + "0" * 120]
    one = paired(first, second)
    leads = [sum(int(f[i]) for f in first) / 2 - sum(int(f[i]) for f in second) / 2 for i in range(200)]
    images = sum((lead - 0.05) ** 2 for lead in leads) / 200**2
    assert one.difference == pytest.approx(5.0)
    assert one.error == pytest.approx(100 * (images + 0.005 / 2 + 0.005 / 2) ** 0.5)
    assert not one.significant


def test_equal_methods_whose_trainings_differ_are_significant_in_few_draws():
    draw, n, significant = Random(0), 400, 0
    for _ in range(60):
        shares = [0.7 + draw.gauss(0, 0.03) for _ in range(6)]
        flags = ["".join("01"[draw.random() < share] for _ in range(n)) for share in shares]
        significant += paired(flags[:3], flags[3:]).significant
    assert significant <= 8  # of 60; at 5 % three are expected


@pytest.mark.parametrize("flags", [("10", "1"), ("", "")])
def test_flags_of_different_images_are_not_paired(flags):
    with pytest.raises(UserError, match="same images"):
        paired(*([each] for each in flags))


def test_the_worst_case_is_per_image_over_the_attacks_with_a_radius_on_the_images_they_share():
    clean, pgd = accuracy("Clean", "clean", "11110"), accuracy("PGD", "pgd", "11010")
    aa, far = accuracy("AA", "autoattack", "101"), accuracy("CW2", "cw2", "00000")
    worst = worst_case([clean, pgd, aa, far])
    assert (worst.flags, worst.k, worst.n, worst.of) == ("100", 1, 3, ("Clean", "PGD", "AA"))


def test_there_is_no_worst_case_without_an_attack_that_has_a_radius():
    assert worst_case([accuracy("Clean", "clean", "11"), accuracy("CW2", "cw2", "01")]) is None


def test_an_attack_above_the_clean_accuracy_and_steps_that_mend_images_contradict_each_other():
    clean = accuracy("Clean", "clean", "1000")
    assert contradictions([clean, accuracy("JSMA", "jsma", "1100")]) == [
        "JSMA leaves 2 of 4 images right, without it 1 are"
    ]
    short, long = accuracy("PGD-5", "pgd_frozen", "1010"), accuracy("PGD-9", "pgd_frozen", "1100", steps=9)
    sentences = contradictions([accuracy("Clean", "clean", "1111"), short, long])
    assert sentences == ["PGD-9 has 1 images right that PGD-5 broke"]


def test_columns_on_other_images_with_other_seeds_or_from_another_network_contradict_nothing():
    clean = accuracy("Clean", "clean", "10")
    assert contradictions([clean, accuracy("PGD", "pgd", "1011")]) == []
    assert contradictions([clean, accuracy("PGD", "pgd", "11", surrogate="abc")]) == []
    short, long = accuracy("PGD-5", "pgd_frozen", "00"), accuracy("PGD-9", "pgd_frozen", "10", steps=9, seed=1)
    assert contradictions([clean, short, long]) == []


def test_sound_numbers_contradict_nothing():
    clean, pgd = accuracy("Clean", "clean", "1110"), accuracy("PGD-5", "pgd_frozen", "1100")
    assert contradictions([clean, pgd, accuracy("PGD-9", "pgd_frozen", "1000", steps=9)]) == []
