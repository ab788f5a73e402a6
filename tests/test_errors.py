from dataclasses import dataclass
from typing import Any

import pytest

from lib.errors import MOST, UserError, abridged, check_type, choose, typed


@dataclass
class Settings:
    rate: float
    steps: int = 1
    sizes: tuple[int, ...] = ()
    anything: Any = None


def test_a_wrong_name_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="unknown model 'c'; choose one of: a, b"):
        choose("model", "c", {"a": 1, "b": 2})


def test_the_nearest_valid_name_is_the_first():
    with pytest.raises(UserError, match="unknown row 'dgaad'; choose one of: DGAD, PGD-AT, AKD$"):
        choose("row", "dgaad", {"PGD-AT": 1, "DGAD": 2, "AKD": 3})
    with pytest.raises(UserError, match="here has no 'step'; choose from: steps, rate,"):
        typed(Settings, {"step": 2}, "here")


def test_a_sentence_has_at_most_500_characters_on_one_line_and_keeps_both_ends():
    sentence = str(UserError("begun\n" + "x" * 10_000 + " ended"))
    assert len(sentence) <= MOST
    assert sentence.startswith("begun x")
    assert sentence.endswith("x ended")
    with pytest.raises(UserError, match="choose one of: a, b$"):
        choose("row", "x" * 100_000, {"a": 1, "b": 2})


def test_text_in_place_of_a_list_names_what_to_type():
    with pytest.raises(UserError, match=r'parameter rows wants list, got .DGAD. .*-y "rows: \[DGAD\]"'):
        check_type("DGAD", list[str], "parameter rows")
    with pytest.raises(UserError, match="-p download True"):
        check_type("yes", bool, "parameter download")


def test_a_long_list_of_names_is_sorted_and_cut():
    assert abridged(["d", "a", "c", "b"]) == "a, b, c and 1 more"
    assert abridged({"b", "a"}) == "a, b"


def test_an_int_serves_as_a_float_a_list_as_a_tuple_and_anything_as_any():
    assert typed(Settings, {"rate": 1, "sizes": [2], "anything": {True}}, "here") == Settings(1, 1, (2,), {True})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rte": 1.0}, "here has no 'rte'; choose from: rate, steps, sizes, anything"),
        ({"steps": 2}, "here is incomplete"),
        ({"rate": "1e-3"}, "here: rate wants float, got '1e-3' .*write 0.001"),
        ({"rate": 1.0, "steps": True}, "here: steps wants int, got True"),
        ({"rate": 1.0, "sizes": [2, "x"]}, "here: sizes wants int, got 'x'"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(given, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        typed(Settings, given, "here")


@pytest.mark.parametrize("value", [{"a": "b"}, {1: 2}])
def test_the_keys_and_values_of_a_mapping_have_types_too(value):
    with pytest.raises(UserError, match="wants"):
        check_type(value, dict[str, int], "here")
    check_type({"a": 2}, dict[str, int], "here")
