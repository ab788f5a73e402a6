"""The recipes of add_your_method.ipynb, from its own text, in a copy of the checkout where nothing else is edited."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("conftest.py", "cases.py", "small.py", "test_methods_every.py")
AS_SMALL_AS_CAN_BE = """
import small
from lib import experiment
from lib.experiment.parameters import merged

experiment.Parameters = lambda settings={}, **given: small.parameters(
    "outputs", rows=[], teachers=[], settings=merged(small.SETTINGS, settings), **given
)
"""


@pytest.fixture(scope="module")
def recipe():
    """The notebook's blocks by the place that their first line names."""
    cells = nbformat.read(ROOT / "notebooks" / "add_your_method.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    blocks = re.findall(r"^```(?:python|yaml)\n# ([^\n]+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return dict(blocks)


@pytest.fixture(scope="module")
def checkout(recipe, tmp_path_factory):
    """A copy with the recipe's files in place, and its lines where they belong."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("lib", "params"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests").mkdir()
    for name in TESTS:
        shutil.copy(ROOT / "tests" / name, copy / "tests")
    for place, content in recipe.items():
        where = re.fullmatch(r"into (\w+|the imports) of (\S+)", place)
        if where:
            file = copy / where[2]
            mark = r"(?m)^import|^from" if where[1] == "the imports" else rf"(?m)^{where[1]}\b.*\n"
            text = file.read_text()
            at = re.search(mark, text)
            end = at.start() if where[1] == "the imports" else at.end()
            file.write_text(text[:end] + content + text[end:])
        elif "/" in place:
            (copy / place).write_text(content)
    return copy


def run(checkout, *arguments):
    path = os.pathsep.join(map(str, (checkout, checkout / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shown(checkout, block):
    *lines, last = block.splitlines()
    return run(checkout, "-c", "\n".join([AS_SMALL_AS_CAN_BE, *lines, f"print({last})"]))


def test_the_recipes_are_files_lines_and_notebooks_cells(recipe):
    assert [place for place in recipe if "/" in place] == [
        "lib/methods/mine.py",
        "params/tables/mine.yaml",
        "lib/models/plain.py",
        "into PATTERNS of lib/models/__init__.py",
        "into the imports of lib/models/__init__.py",
        "into ATTACKS of lib/evaluate/attacks.py",
        "params/tables/all_mine.yaml",
    ]
    assert [p for p in recipe if "/" not in p] == [
        "in a notebook",
        "in a notebook, a data folder",
        "in a notebook, all four",
    ]


def test_the_tests_of_every_method_pick_the_new_one_up_and_pass(checkout):
    out = run(checkout, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_methods_every.py", "-k", "mine", "-rA")
    passed = set(re.findall(r"PASSED tests/test_methods_every.py::(\w+)\[mine\]", out))
    assert len(passed) == 5, out


def test_its_table_is_trained_attacked_and_compared(checkout, recipe):
    out = shown(checkout, recipe["in a notebook"])
    for row in ("Mine", "more"):
        assert re.search(rf"{row}.*\d\d?\.\d", out.partition("PGD-10")[2]), out
    assert len(list((checkout / "outputs" / "runs").glob("*/best.safetensors"))) == 2


def test_a_model_a_data_folder_and_an_attack_of_ones_own_are_one_table_with_the_method(checkout, recipe):
    run(checkout, "-c", recipe["in a notebook, a data folder"])
    out = shown(checkout, recipe["in a notebook, all four"])
    assert "Least" in out
    assert re.search(r"Mine.*\d\d?\.\d", out.partition("Least")[2]), out
