"""README's recipe for a new method, from README's own text, in a copy of the checkout where nothing else is edited."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("conftest.py", "cases.py", "small.py", "test_methods_every.py")
AS_SMALL_AS_CAN_BE = """
from lib import experiment
from small import parameters

experiment.Parameters = lambda: parameters("outputs", rows=[], teachers=[])
"""


@pytest.fixture(scope="module")
def recipe():
    """README's blocks after "A new one is", by the place that their first line names."""
    text = (ROOT / "README.md").read_text().partition("A new one is")[2]
    blocks = re.findall(r"^```(?:python|yaml)\n# ([^\n]+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return dict(blocks)


@pytest.fixture(scope="module")
def checkout(recipe, tmp_path_factory):
    """A copy with the recipe's files in place."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("lib", "params"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests").mkdir()
    for name in TESTS:
        shutil.copy(ROOT / "tests" / name, copy / "tests")
    for place, content in recipe.items():
        if "/" in place:
            (copy / place).write_text(content)
    return copy


def run(checkout, *arguments):
    path = os.pathsep.join(map(str, (checkout, checkout / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_recipe_is_a_method_file_a_table_file_and_a_notebooks_cell(recipe):
    assert list(recipe) == ["lib/methods/mine.py", "params/tables/mine.yaml", "in a notebook"]


def test_the_tests_of_every_method_pick_the_new_one_up_and_pass(checkout):
    out = run(checkout, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_methods_every.py", "-k", "mine", "-rA")
    passed = set(re.findall(r"PASSED tests/test_methods_every.py::(\w+)\[mine\]", out))
    assert len(passed) == 5, out


def test_its_table_is_trained_attacked_and_compared(checkout, recipe):
    *lines, last = recipe["in a notebook"].splitlines()
    out = run(checkout, "-c", "\n".join([AS_SMALL_AS_CAN_BE, *lines, f"print({last})"]))
    for row in ("Mine", "more"):
        assert re.search(rf"{row}.*\d\d?\.\d", out.partition("PGD-10")[2]), out
    assert len(list((checkout / "outputs" / "runs").glob("*/best.safetensors"))) == 2
