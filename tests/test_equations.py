"""Every equation of a paper that is cited is listed with what it states, and cited for that."""

import ast
import inspect
import re

import nbformat
import pytest
import yaml

from lib import ROOT, losses, methods
from lib.experiment.parameters import PARAMS
from lib.methods import distillation
from lib.methods.las_at import Learned

EQUATIONS = yaml.safe_load((PARAMS / "equations.yaml").read_text())
NAMES = {"LAS-AT": "las_at", "DGAD": "dgad", "DYNAT": "dynat", "D2R": "d2r"}
CITED = re.compile(r"\b[Ee]qs?\.\s*\(?(\d+(?:(?:,\s*|\s+and\s+|\s+to\s+)\(?\d+)*)")


def numbers(text):
    """[5, 6, 7, 9] of "5 to 7 and 9"."""
    found = []
    for word, number in re.findall(r"(to)?\s*\(?(\d+)", text):
        found += range(found[-1] + 1, int(number) + 1) if word else [int(number)]
    return found


def passages():
    """(where, text) of every docstring of lib, markdown cell of a notebook, and choice."""
    for path in sorted((ROOT / "lib").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield path, text
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        yield from ((path, cell.source) for cell in nbformat.read(path, as_version=4).cells)
    for path in sorted((PARAMS / "choices").glob("*.yaml")):
        yield from ((path, " ".join(map(str, one.values()))) for one in yaml.safe_load(path.read_text())["choices"])


def citations(where, text):
    """(paper, number, the line and its neighbours); the paper is the last named shortly before, or the file's."""
    own = [key for key in NAMES.values() if where.stem.endswith(key)]
    for match in CITED.finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        named = sorted((before.rfind(name), key) for name, key in NAMES.items() if name in before)
        line = text[: match.start()].count("\n")
        near = "\n".join(text.splitlines()[max(0, line - 1) : line + 2])
        for number in numbers(match.group(1)):
            yield (named[-1][1] if named else "".join(own)), number, near


ALL = [(path, *found) for path, text in passages() for found in citations(path, text)]


def test_numbers_are_read_whichever_way_they_are_joined():
    text = "as DGAD has it (eqs. 1 to 3, 8 and 9); D2R's eq. 4"
    found = [(paper, number) for paper, number, _ in citations(PARAMS / "choices" / "dynat.yaml", text)]
    assert found == [*(("dgad", number) for number in (1, 2, 3, 8, 9)), ("d2r", 4)]


@pytest.mark.parametrize("paper", NAMES.values())
def test_each_paper_has_equations_that_are_cited(paper):
    assert {found[1] for found in ALL} <= set(EQUATIONS)
    assert any(found[1] == paper for found in ALL)


@pytest.mark.parametrize(("path", "paper", "number", "near"), ALL, ids=lambda value: getattr(value, "stem", None))
def test_a_cited_equation_is_listed_and_cited_for_what_it_states(path, paper, number, near):
    assert number in EQUATIONS[paper], f"eq. {number} of {paper} is not in params/equations.yaml"
    words = EQUATIONS[paper][number]["cited_for"]
    assert any(word in near for word in words), f"eq. {number} of {paper} states {EQUATIONS[paper][number]['states']}"


@pytest.mark.parametrize(
    ("documented", "equations"),
    [
        (methods.dynat, {6}),
        (methods.guides_answer, {3}),
        (methods.dgad, {5, 6, 7, 8, 9}),
        (methods.dgad_parts, {6, 7}),
        (losses.swap_labels, {6, 7}),
        (distillation.adaad, {4}),
        (distillation.kl_as_printed, {1, 2, 3, 4, 5, 8}),
        (methods.d2r, {1, 2}),
        (methods.kl_guide_as_printed, {4}),
        (Learned, {12}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_computes_an_equation_has_its_number_in_the_paper(documented, equations):
    assert {number for match in CITED.finditer(inspect.getdoc(documented)) for number in numbers(match[1])} == equations
