"""Index, errata, README and the guesses of the walk-throughs: what leads a reader, held to what it is made from."""

import re
from importlib import import_module

import nbformat
import pytest
from notebooks_in_process import displayed, execute
from PIL import Image

from lib import ROOT
from lib.errors import UserError
from lib.evaluate import AttackSpec
from lib.experiment.parameters import PARAMS, Parameters, read_yaml
from lib.experiment.table_file import read_table
from lib.report import command, computed, errata, guessed
from lib.report.guides import claim_of

NOTEBOOKS = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
GUIDES = {"index", "errata", "add_your_method"}
ITEMS = read_yaml(PARAMS / "claims.yaml")["items"]
ERRATA = errata()


def names(file):
    return {row["row"] for row in file.rows + file.more_rows}


def test_the_index_has_every_notebook_but_the_guides():
    assert set(read_yaml(PARAMS / "costs.yaml")) == NOTEBOOKS - GUIDES


@pytest.mark.parametrize("name", sorted(ITEMS))
def test_an_item_is_two_rows_of_its_table_and_columns_and_its_notebook_states_the_claim(name):
    file, pair = read_table(name), ITEMS[name]
    assert {pair["better"], pair["than"]} <= names(file)
    assert set(pair["columns"]) <= set(file.columns)
    assert claim_of(name).endswith(".")


def test_only_the_teachers_table_has_no_pair_of_rows_for_its_claim():
    assert {name for name in read_yaml(PARAMS / "costs.yaml") if re.match("table|fig", name)} - set(ITEMS) == {
        "table1_dgad"
    }


def test_the_index_says_not_run_where_nothing_was_measured_and_links_every_notebook(tmp_path):
    shown = displayed(execute("index", tmp_path))
    assert "not run" in shown
    assert all(f'href="{name}.ipynb"' in shown for name in NOTEBOOKS - GUIDES)
    assert all(f"<code>make {name}</code>" in shown for name in NOTEBOOKS - GUIDES)
    assert "<b>DGAD over AdaAD</b>\\nkept: " in shown
    assert all(text in shown for text in ("for k=40 of the target", "A larger α", "L2 is there", "β and CAG"))
    assert not re.search(r"[$\\_]", "".join(map(claim_of, ITEMS)))


@pytest.mark.parametrize("entry", ERRATA, ids=lambda entry: f"{entry['paper']}, {entry['where']}")
def test_an_erratum_names_both_sides_what_is_done_and_rows_that_are_there(entry):
    assert all(isinstance(entry[key], str) and entry[key] for key in ("paper", "where", "kind", "one", "other", "here"))
    if "rows" in entry:
        rows = entry["rows"]
        assert {rows["ours"], rows["other"]} <= names(read_table(rows["table"]))
        assert rows["other"] in command(entry)
    if "stated" in entry.get("lead", {}):
        numbers, stated = re.findall(r"[+-]\d+\.\d\d", computed(entry)), entry["lead"]["stated"]
        assert any(float(number) != claim for number, claim in zip(numbers, stated, strict=True)), "no erratum"


def test_what_is_computed_of_printed_numbers_is_the_tables_difference():
    (mobile,) = [e for e in ERRATA if e["where"] == "Table 4, MobileNetV2 with the WideResNet-34-20"]
    assert computed(mobile) == "DGAD less AdaAD: Clean +1.51 (the text: 1.18)"
    (cifar100,) = [e for e in ERRATA if e["where"] == "Table 1, over LBGAT on CIFAR-100"]
    assert computed(cifar100) == "D2R-CAG less LBGAT: PGD-50 +0.39 (the text: 2.47)"


def test_els_and_pcr_lower_autoattack_accuracy_where_they_are_added_to_map():
    els, pcr = (e for e in ERRATA if e["where"].startswith("Table 2, the prose on ") and e["lead"]["rows"][1] == "MAP")
    assert computed(els) == "MAP, ELS less MAP: PGD -0.17, AA -0.49"  # 54.77 - 54.94, 50.33 - 50.82
    assert computed(pcr) == "MAP, PCR less MAP: PGD -0.02, AA -0.30"  # 54.92 - 54.94, 50.52 - 50.82


def test_the_errata_show_a_mean_over_ten_classes_as_a_tenth_of_the_step_in_its_direction(tmp_path):
    shown = displayed(execute("errata", tmp_path))
    assert re.search(r"AdaAD, the baseline, on CIFAR-10\s+1\.000\s+0\.100", shown)


def test_add_your_methods_own_cells_run(tmp_path):
    assert "least likely" in displayed(execute("add_your_method", tmp_path))


@pytest.mark.parametrize(
    ("guess", "words"), [(50.2, "well guessed"), (52.0, "too high: close"), (10, "too low: a surprise")]
)
def test_a_guess_is_scored_by_its_distance_from_what_was_measured(guess, words):
    assert guessed(guess, 50.0, "percent").endswith(f"{words}.")


def test_a_guess_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="parameter guess wants float, got 'many'"):
        guessed("many", 50.0, "percent")


@pytest.mark.parametrize("name", sorted(name for name in NOTEBOOKS if name.startswith("walkthrough")))
def test_a_walkthrough_asks_for_a_guess_before_it_is_scored_and_shows_what_changed_after(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    at = {word: [i for i, cell in enumerate(cells) if word in cell.source] for word in ("guess = ", "Predict first")}
    scored = [i for i, cell in enumerate(cells) if "report.guessed(guess," in cell.source]
    changed = [i for i, cell in enumerate(cells) if cell.source.startswith("changed = {}")]
    assert len(scored) == len(changed) == 1
    assert at["guess = "][0] < at["Predict first"][0] < scored[0]
    assert "guess" not in vars(Parameters())


def test_the_readme_promises_no_setting_of_an_attack_that_is_not_printed():
    (promised,) = re.findall(r"every attack its ([^.]+)\.", " ".join((ROOT / "README.md").read_text().split()))
    assert set(re.split(", | and ", promised)) <= set(AttackSpec("PGD", "pgd", steps=10).settings())


def test_the_readmes_numbers_and_its_picture_are_of_the_kept_evidence(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "site")
    readme = import_module("readme")
    assert readme.text() == readme.README.read_text()
    assert readme.PICTURE.relative_to(ROOT).as_posix() in readme.text()
    with Image.open(readme.PICTURE) as picture:
        assert picture.text["Description"] == readme.rows(readme.drawn())


def test_the_readme_has_at_most_900_words_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    for place in re.findall(r"\]\(([^)#:]+)\)", text + (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / place).exists(), place
