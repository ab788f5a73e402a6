import pytest
import yaml

from lib import ROOT
from lib.methods import METHODS
from lib.parameters import PARAMS

REPORTED = sorted((PARAMS / "reported").glob("*.yaml"))
TABLES = sorted((PARAMS / "tables").glob("*.yaml"))
REFERENCE = ROOT.parent / "shared" / "reference"


def numbers(value):
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


@pytest.mark.parametrize("path", REPORTED, ids=lambda path: path.stem)
def test_reported_numbers_are_the_checked_transcription_to_the_digit(path):
    original = REFERENCE / f"{path.stem}_tables.yaml"
    if not original.exists():
        pytest.skip("the transcription lies beside the project where it is developed")
    assert numbers(yaml.safe_load(path.read_text())) == numbers(yaml.safe_load(original.read_text()))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_row_of_a_table_file_is_one_the_paper_reports_and_every_reported_row_is_there(path):
    table = yaml.safe_load(path.read_text())
    reported = yaml.safe_load((PARAMS / "reported" / f"{table['paper']}.yaml").read_text())[table["item"]]
    assert reported["columns"] == table["columns"]
    for student in table["students"]:
        printed = {name for name in reported[student] if name not in ("delta_printed", "note")}
        assert printed == {row["row"] for row in table["rows"]}
        for name in printed:
            assert set(table["teachers"]) <= set(reported[student][name])


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_method_a_table_names_exists_and_every_released_form_is_offered(path):
    table = yaml.safe_load(path.read_text())
    named = {row["method"] for key in ("rows", "more_rows", "controls") for row in table[key]}
    assert named <= set(METHODS)
    base = {row["method"] for row in table["rows"]}
    forms = {name for name in METHODS if any(name.startswith(f"{own}_") for own in base)}
    assert forms <= named
