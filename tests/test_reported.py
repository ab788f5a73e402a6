import pytest
import yaml

from lib import ROOT
from lib.methods import METHODS
from lib.parameters import PARAMS, Parameters, load_scale
from lib.report import row_key
from lib.strategies import STRATEGIES
from lib.table import open_table

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


def is_turned(entry, table):
    """Whether the paper prints as columns what the table file has as rows."""
    return isinstance(entry.get("rows"), dict) and set(table["columns"]) <= set(entry["rows"])


def keys_of(entry, students):
    """The names of the rows that the paper's numbers have for a table, whichever shape they stand in."""
    rows = entry.get("rows")
    if isinstance(rows, list):
        return {row_key(one) for one in rows}
    blocks = [rows] if rows else [entry[student] for student in students]
    return {name for block in blocks for name in block if name not in ("delta_printed", "delta_note", "note")}


@pytest.mark.parametrize("path", [path for path in TABLES if path.stem.startswith("table")], ids=lambda path: path.stem)
def test_a_table_file_has_every_row_the_paper_reports_and_no_other(path):
    table = yaml.safe_load(path.read_text())
    entry = yaml.safe_load((PARAMS / "reported" / f"{table['paper']}.yaml").read_text())[table["item"]]
    named = {row.get("reported", row["row"]) for row in table["rows"]} - {"not in the paper"}
    if is_turned(entry, table):
        assert named == set(entry["columns"])
        assert set(entry["rows"]) - {"Time(min)"} == set(table["columns"])
        return
    assert entry["columns"] == table["columns"]
    assert named == keys_of(entry, table["students"])


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_method_a_table_names_exists(path):
    table = yaml.safe_load(path.read_text())
    named = {row["method"] for key in ("rows", "more_rows", "controls") for row in table.get(key, [])}
    assert named <= set(METHODS)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_schedule_strategy_and_model_a_table_names_is_there_at_the_papers_scale(path):
    table, scale = yaml.safe_load(path.read_text()), load_scale(Parameters(scale="paper"))
    rows = [row for key in ("rows", "more_rows", "controls") for row in table.get(key, [])]
    assert {row["schedule"] for row in rows if "schedule" in row} <= set(scale.schedules)
    assert {row["strategy"] for row in rows if "strategy" in row} <= set(STRATEGIES)
    assert {row[key] for row in rows for key in ("model", "guide") if key in row} <= set(scale.models)


@pytest.mark.parametrize("name", [2, 3, 4])
def test_las_ats_tables_offer_the_released_form_of_each_of_its_three_methods(name):
    table = yaml.safe_load((PARAMS / "tables" / f"table{name}_las_at.yaml").read_text())
    offered = {row["row"]: row.get("strategy", "") for row in table["more_rows"]}
    released = {f"LAS-{kind} (code)" for kind in ("AT", "TRADES", "AWP")}
    assert released <= set(offered)
    assert all(offered[row].endswith("as_released") for row in released)


@pytest.mark.parametrize("name", [2, 3, 4])
@pytest.mark.parametrize("kind", ["PGD_AT", "TRADES", "AWP"])
def test_a_released_forms_options_and_coefficients_are_those_of_its_script(tmp_path, name, kind):
    data = {"CIFAR10": "digits", "CIFAR100": "digits", "TinyImageNet": "digits"}
    row = f"LAS-{kind.removeprefix('PGD_')} (code)"
    given = Parameters(scale="paper", rows=[row], outputs=str(tmp_path), device="cpu", settings={"datasets": data})
    (cell,) = open_table(f"table{name}_las_at", given).cells
    strategy, weights = cell.network.strategy, dict(cell.network.weights)
    script = yaml.safe_load((PARAMS / "reported" / "las_at.yaml").read_text())["released_code"][f"LAS_{kind}"]
    script = script[{2: "cifar10", 3: "cifar100", 4: "tiny_imagenet"}[name]]
    options = {"epsilon": ("epsilon", 255), "attack_iters": ("steps", 1), "step_size": ("step_size", 255)}
    for theirs, (ours, unit) in {**options, "beta": ("trade_off", 1)}.items():
        if f"{theirs}_types" in script:
            first, last = script[f"{theirs}_types"]["readme"]
            found = [round(unit * value) for value in dict(strategy.options)[ours]]
            assert found == list(range(first, last + 1)), ours
    optimizer = script["policy_optimizer"]
    assert (strategy.every, strategy.adv, strategy.clean, strategy.hardest) == (
        script["interval_num_k"],
        script["R2_param"],
        script["R3_param"],
        script["R1_clamp"][1],
    )
    assert (strategy.lr, strategy.momentum, strategy.weight_decay) == (
        optimizer["lr"],
        optimizer["momentum"],
        optimizer["weight_decay"],
    )
    if kind == "PGD_AT":
        assert weights["true_share"] == script["label_true_prob"]


@pytest.mark.parametrize("scale", ["quick", "gpu", "paper"])
def test_las_ats_tables_and_figures_share_the_runs_that_are_the_same(tmp_path, scale):
    data = {"CIFAR10": "digits", "CIFAR100": "digits", "TinyImageNet": "digits"}
    given = Parameters(scale=scale, outputs=str(tmp_path), device="cpu", settings={"datasets": data, "held_out": 10})
    digests = {
        (name, cell.row.row): cell.network.digest
        for name in ("table1", "table2", "table6", "fig3", "fig4")
        for cell in open_table(f"{name}_las_at", given).cells
    }
    for same in (
        [("table1", "k=40"), ("table6", "L1+L2+L3"), ("fig4", "LAS-AT")],
        [("table1", "k=1"), ("fig4", "LAS-AT (k=1)")],
        [("table6", "no reward (frozen)"), ("fig4", "Frozen")],
        [("table2", "LAS-AT"), ("fig3", "LAS-AT")],
        [("table2", "Random strategies"), ("fig3", "Random search (approximation)")],
    ):
        assert len({digests[place] for place in same}) == 1, same


def test_table_4_offers_every_released_form_of_its_methods():
    table = yaml.safe_load((PARAMS / "tables" / "table4_dgad.yaml").read_text())
    base = {row["method"] for row in table["rows"]}
    forms = {
        name for name in METHODS for own in base if name.startswith(own) and name.endswith(("released", "printed"))
    } - {"pgd_at_uniform_as_released"}  # a form of LAS-AT's PGD-AT
    assert forms == {row["method"] for row in table["more_rows"]}
