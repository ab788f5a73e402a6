from math import comb

import pytest

from lib.errors import UserError
from lib.evaluate import Accuracy, Column, contradictions, mcnemar, paired, worst_case


def found(name, attack, flags, **settings):
    settings = {"steps": 5} | settings if attack in ("pgd", "pgd_frozen", "cw2") else settings
    return Accuracy(Column(name, attack, **settings), flags.count("1"), len(flags), flags)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 1), (9, 2), (6, 6)])
def test_mcnemars_p_is_that_of_as_many_fair_coins(b, c):
    first, second = "1" * b + "0" * c + "1" * 20, "0" * b + "1" * c + "1" * 20
    coins = b + c
    tail = sum(comb(coins, i) for i in range(min(b, c) + 1)) / 2**coins
    test = mcnemar(first, second)
    assert test.p == pytest.approx(min(1.0, 2 * tail) if b != c else 1.0)
    assert test.difference == pytest.approx(100 * (b - c) / len(first))


def test_the_error_of_a_paired_difference_is_that_of_the_pairs():
    test = mcnemar("1" * 8 + "0" * 4 + "1" * 28, "0" * 8 + "1" * 4 + "1" * 28)
    assert test.error == pytest.approx(100 * (12 - 16 / 40) ** 0.5 / 40)


def test_networks_that_agree_on_most_images_are_told_apart_where_independent_sets_would_not_be():
    first, second = "1" * 106 + "0" * 94, "1" * 100 + "0" * 100
    assert mcnemar(first, second).told_apart  # six images, all one way; two independent errors are 5 points
    assert not mcnemar("1" * 103 + "0" * 97, second).told_apart


def test_with_several_seeds_an_images_mean_is_what_is_paired():
    one = paired(["1100", "1100"], ["1000", "1000"])
    assert one.difference == pytest.approx(25.0)
    assert one.error == pytest.approx(100 * (3 * 0.25**2 + 0.75**2) ** 0.5 / 4)
    assert paired(["10", "01"], ["01", "10"]).p == 1.0


@pytest.mark.parametrize("flags", [("10", "1"), ("", "")])
def test_flags_of_different_images_are_not_paired(flags):
    with pytest.raises(UserError, match="same images"):
        mcnemar(*flags)


def test_the_worst_case_is_per_image_over_the_attacks_with_a_radius_on_the_images_they_share():
    clean, pgd = found("Clean", "clean", "11110"), found("PGD", "pgd", "11010")
    aa, far = found("AA", "autoattack", "101"), found("CW2", "cw2", "00000")
    worst = worst_case([clean, pgd, aa, far])
    assert (worst.flags, worst.k, worst.n, worst.of) == ("100", 1, 3, ("Clean", "PGD", "AA"))


def test_there_is_no_worst_case_without_an_attack_that_has_a_radius():
    assert worst_case([found("Clean", "clean", "11"), found("CW2", "cw2", "01")]) is None


def test_an_attack_above_the_clean_accuracy_and_steps_that_mend_images_are_said():
    clean = found("Clean", "clean", "1000")
    assert contradictions([clean, found("JSMA", "jsma", "1100")]) == [
        "JSMA leaves 2 of 4 images right, without it 1 are"
    ]
    short, long = found("PGD-5", "pgd_frozen", "1000"), found("PGD-9", "pgd_frozen", "1100", steps=9)
    assert "PGD-9 leaves more images right than PGD-5" in contradictions([found("Clean", "clean", "1111"), short, long])


def test_sound_numbers_contradict_nothing():
    clean, pgd = found("Clean", "clean", "1110"), found("PGD-5", "pgd_frozen", "1100")
    assert contradictions([clean, pgd, found("PGD-9", "pgd_frozen", "1000", steps=9)]) == []
