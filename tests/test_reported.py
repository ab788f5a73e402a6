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


def keys_of(entry, students):
    """The names of the rows that the paper's numbers have for a table, whichever shape they stand in."""
    rows = entry.get("rows")
    if isinstance(rows, list):
        return {one.get("id") or f"{one['dataset']}/{one['teacher']}" for one in rows}
    blocks = [rows] if rows else [entry[student] for student in students]
    return {name for block in blocks for name in block if name not in ("delta_printed", "delta_note", "note")}


@pytest.mark.parametrize("path", [path for path in TABLES if path.stem.startswith("table")], ids=lambda path: path.stem)
def test_a_table_file_has_every_row_the_paper_reports_and_no_other(path):
    table = yaml.safe_load(path.read_text())
    entry = yaml.safe_load((PARAMS / "reported" / f"{table['paper']}.yaml").read_text())[table["item"]]
    assert entry["columns"] == table["columns"]
    named = {row.get("reported", row["row"]) for row in table["rows"]} - {"not in the paper"}
    assert named == keys_of(entry, table["students"])


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_method_a_table_names_exists(path):
    table = yaml.safe_load(path.read_text())
    named = {row["method"] for key in ("rows", "more_rows", "controls") for row in table.get(key, [])}
    assert named <= set(METHODS)


def test_table_4_offers_every_released_form_of_its_methods():
    table = yaml.safe_load((PARAMS / "tables" / "table4_dgad.yaml").read_text())
    base = {row["method"] for row in table["rows"]}
    forms = {
        name for name in METHODS for own in base if name.startswith(own) and name.endswith(("released", "printed"))
    }
    assert forms == {row["method"] for row in table["more_rows"]}
