"""Whatever a parameter is: a table is opened, or one sentence says what is wrong."""

import copy
import random
from dataclasses import fields

import pytest
import yaml
from small import SETTINGS

from lib.errors import MOST, UserError
from lib.experiment.parameters import PARAMS, Parameters, read_yaml, validate
from lib.experiment.table import open_table

NAMES = ["DGAD", "dgad", "ResNet18", "cpu", "quick", "cifar10", "folder", "digits", "fp32", "bf16", "best", "", "/"]
HOSTILE = [
    *(0, 1, -1, 2, 255, 256, 10**9, 2**63, -(2**63), 10**18, 10**5000, True, False, None),
    *(0.0, -0.0, 0.5, 1e-320, 1e39, -1e39, 1e308, float("nan"), float("inf"), -float("inf"), 8.0, 255.1),
    *("\0", "a\0b", "x" * 300, "x" * 100_000, "/" * 5000, "~", "~nobody/x", "..", "ü" * 200, "\ud800", "a\nb", "1e-3"),
    *([], [[]], [None], ["DGAD"] * 1000, [0] * 1000, [1e39], ["x" * 100_000], {}, {"": ""}, {1: 2}, {None: None}),
    *({"x" * 100_000: 1}, {"epochs": 10**30}, {"lr": 1e39}, {"attack": "pgd"}, (1, 2), {1, 2}, b"\xff", 1j, print),
]
ENDLESS: list = []
ENDLESS.append(ENDLESS)
DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]
SETTABLE = yaml.safe_load((PARAMS / "quick.yaml").read_text())["settings"]


def any_value(draw, old=None):
    """Anything; often of the old value's type, so that it comes as far as what computes with it."""
    alike = [value for value in [*HOSTILE, *NAMES] if type(value) is type(old)]
    if alike and draw.random() < 0.6:
        return draw.choice(alike)
    value = draw.choice([*HOSTILE, *NAMES, ENDLESS, DEEP])
    wrap = draw.random()
    return [value] if wrap < 0.1 else {draw.choice(NAMES): value} if wrap < 0.2 else value


def any_parameters(draw, outputs):
    """The parameters of a small table, one to three of them, or of its settings, replaced by anything."""
    given = {"outputs": str(outputs), "device": "cpu", "settings": copy.deepcopy(SETTINGS)}
    for _ in range(draw.choice([1, 1, 1, 2])):
        if draw.random() < 0.4:
            name = draw.choice([f.name for f in fields(Parameters) if f.name not in ("download", "outputs")])
            given[name] = any_value(draw, getattr(Parameters(), name))
        else:
            place, key = given["settings"], draw.choice([*SETTABLE, "columns", "schedules", "x"])
            while isinstance(place, dict) and isinstance(place.get(key), dict) and place[key] and draw.random() < 0.8:
                place, key = place[key], draw.choice([*place[key]])
            if isinstance(place, dict):
                place[key] = any_value(draw, place.get(key, SETTABLE.get(key)))
    return given


def opened(given):
    """The sentence that opening a table under the parameters ends with; None where it is opened."""
    try:
        table = open_table("table4_dgad", validate(given))
    except UserError as error:
        return str(error)
    return [cell.digest for cell in table.cells] and None


@pytest.mark.parametrize("tries", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_any_value_of_any_parameter_is_taken_or_refused_in_a_sentence(tries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw, said = random.Random(tries), 0
    for _ in range(tries):
        given = any_parameters(draw, tmp_path)
        sentence = opened(given)
        if sentence is not None:
            said += 1
            assert 0 < len(sentence) <= MOST, given
            assert "\n" not in sentence
    assert tries / 2 < said < 0.95 * tries


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "an alias, .a: write out"),
        ("[" * 20_000, "cannot be read as YAML"),
        ("{a: " * 20_000, "cannot be read as YAML"),
        (b"\x80\x81\x82", "cannot be read as YAML"),
        (b"\0", "cannot be read as YAML"),
        ("a: " + "9" * 5000, "cannot be read as YAML"),
        ("a: 2026-13-45", "cannot be read as YAML"),
        ("- a", "wants dict"),
        ("", "wants dict"),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_yaml_of_any_kind_is_read_or_refused_in_a_sentence(tmp_path, content, sentence):
    (tmp_path / "x.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence) as error:
        read_yaml(tmp_path / "x.yaml")
    assert len(str(error.value)) <= MOST


def test_a_folder_in_a_files_place_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read as YAML"):
        read_yaml(tmp_path)
