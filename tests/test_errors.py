from dataclasses import dataclass
from typing import Any

import pytest

from lib.errors import UserError, abridged, check_type, choose, typed


@dataclass
class Settings:
    rate: float
    steps: int = 1
    sizes: tuple[int, ...] = ()
    anything: Any = None


def test_a_wrong_name_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="unknown model 'c'; choose one of: a, b"):
        choose("model", "c", {"a": 1, "b": 2})


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
