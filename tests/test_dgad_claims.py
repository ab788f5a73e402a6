"""What DGAD's notebooks say of the paper's numbers, recomputed here from the numbers as they stand below."""

import ast

import nbformat
import pytest
import yaml
from notebooks_in_process import code_cells

from lib import ROOT
from lib.experiment.parameters import PARAMS

AS_PRINTED = "as printed in the paper"
PLAN = "plan = experiment.plan(table)\nplan"  # which times a step of every row


def shown(name, line, outputs):
    """The last value of the notebook's cell that begins with `line`, after those above it, none of which trains."""
    cells = code_cells(ROOT / "notebooks" / f"{name}.ipynb")
    (last,) = [index for index, one in enumerate(cells) if one.source.startswith(line)]
    assert not any("experiment.run" in one.source for one in cells[:last])
    space = {}
    assert sum(one.source.endswith(PLAN) for one in cells[:last]) == 1
    for one in cells[:last]:
        exec(one.source.removesuffix(PLAN) + f"\noutputs = {str(outputs)!r}", space)
    *body, value = ast.parse(cells[last].source).body
    exec(compile(ast.Module(body, []), name, "exec"), space)
    return eval(compile(ast.Expression(value.value), name, "eval"), space)


def entry(table):
    return yaml.safe_load((PARAMS / "reported" / "dgad.yaml").read_text())[table]


def test_the_ablations_gains_are_more_than_a_point_in_three_columns(tmp_path):
    gains = shown("table2_dgad", "printed =", tmp_path).loc["largest gain"]
    assert gains.to_dict() == pytest.approx({"Clean": 1.06, "FGSM": 1.35, "PGD": 1.16, "CW": 0.54, "AA": 0.76})


def test_els_on_both_sides_does_not_enhance_and_pcr_does_not_maintain_robustness_over_map_alone(tmp_path):
    added = shown("table2_dgad", "steps =", tmp_path)
    assert added.loc["ELS on both, to MAP", ["PGD", "AA"]].tolist() == pytest.approx([54.77 - 54.94, 50.33 - 50.82])
    assert added.loc["PCR, to MAP", "AA"] == pytest.approx(50.52 - 50.82)
    assert added.loc["PCR, to MAP and ELS", "AA"] == pytest.approx(50.63 - 50.33)


def test_self_distillations_attack_costs_a_sixth_of_one_teacher_of_table_4_and_a_24th_of_the_other(tmp_path):
    share = shown("table8_dgad", "macs =", tmp_path)["share"]
    assert share["WideResNet-34-10"] == pytest.approx(2 * 0.555 / (0.555 + 6.66), abs=0.002)  # 10^9 multiply-adds
    assert share["WideResNet-34-20"] == pytest.approx(2 * 0.555 / (0.555 + 26.6), abs=0.002)


def test_no_jsma_cell_lies_below_clean_accuracy_and_one_ties_under_one_of_the_teachers(tmp_path):
    counts = shown("table7_dgad", "fourth =", tmp_path)
    assert counts.loc["WideResNet-34-10"].tolist() == [16, 0, 0]
    assert counts.loc["WideResNet-34-20"].tolist() == [15, 1, 0]  # IAD: 84.71 and 84.71


def test_table_4_says_which_of_its_cells_were_restored(tmp_path):
    cells = shown("table4_dgad", "records =", tmp_path).data.set_index("row")["cells"]
    assert cells["RSLAD"] == "FGSM 58.36, AA 48.66"
    assert cells["AKD"] == "FGSM 58.63, AA 49.26"
    assert cells["DGAD"] == "AA 50.59"
    assert cells["PGD-AT"].split(", ")[-1] == "AA 47.69"
    assert cells["TRADES"].split(", ")[0] == "Clean 83.00"


@pytest.mark.parametrize("name", ["table4", "table5", "table6", "table8"])
def test_a_lead_is_called_printed_where_the_paper_prints_one(name):
    reported = entry(name)
    prints = "delta_printed" in str(reported)
    cells = nbformat.read(ROOT / "notebooks" / f"{name}_dgad.ipynb", as_version=4).cells
    (text,) = [one.source for one in cells if "lead" in one.source and "measured here" in one.source]
    assert ("this table prints none" in text) != prints
    assert prints or AS_PRINTED not in text
