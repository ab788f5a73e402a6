from dataclasses import replace

import pytest
import torch
import yaml

from lib.evaluate import Accuracy, AttackSpec, Paired, calibration_error
from lib.experiment.parameters import PARAMS
from lib.experiment.planning import Result
from lib.experiment.table_file import read_table
from lib.report.verdicts import paired_matrix, verdict, verdicts

CLAIMS = yaml.safe_load((PARAMS / "claims.yaml").read_text())["claims"]


def result(row, flags, seed=0, column="AA"):
    return Result(
        "s", "", row, seed, row, (Accuracy(AttackSpec(column, "clean"), flags.count("1"), len(flags), flags),)
    )


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["claim"])
def test_a_claim_is_about_rows_of_the_comparison_and_leads_where_the_paper_prints_it(claim):
    rows = {row["row"] for row in read_table("compare_papers").rows}
    assert {claim["better"], claim["than"]} <= rows
    frame = verdicts([])
    printed = frame[(frame["claim"] == claim["claim"])]["printed lead"].dropna()
    assert (printed > 0).all()
    assert len(printed) == (len(claim["columns"]) if "printed" in claim else 0)


def test_dgads_printed_lead_over_adaad_is_table_4s():
    frame = verdicts([]).set_index(["claim", "column"])["printed lead"]
    assert frame["DGAD beats AdaAD", "AA"] == pytest.approx(50.59 - 50.06)


@pytest.mark.parametrize(
    ("better", "than", "wanted"),
    [
        ("1" * 60 + "0" * 40, "1" * 40 + "0" * 60, "holds"),
        ("1" * 51 + "0" * 49, "1" * 50 + "0" * 50, "inside the noise"),
    ],
)
def test_a_claim_holds_only_where_a_paired_test_can_tell(better, than, wanted):
    found = verdicts([result("DGAD", better), result("AdaAD", than)]).set_index(["claim", "column"])
    other = verdicts([result("DGAD", than), result("AdaAD", better)]).set_index(["claim", "column"])
    assert found.loc[("DGAD beats AdaAD", "AA"), "verdict"] == wanted
    turned = "does not hold: the other way round" if wanted == "holds" else wanted
    assert other.loc[("DGAD beats AdaAD", "AA"), "verdict"] == turned
    assert found.loc[("DGAD beats AdaAD", "Clean"), "verdict"] == "not run"


def test_a_verdict_without_a_measurement_is_that_it_was_not_run():
    assert verdict(None) == "not run"
    assert verdict(Paired(100, 5.0, 1.0, 0.2)) == "inside the noise"


def test_the_matrix_of_pairs_is_antisymmetric_and_begins_with_the_most_accurate():
    rows = [result("a", "1" * 40 + "0" * 60), result("b", "1" * 70 + "0" * 30), result("c", "1" * 41 + "0" * 59)]
    leads, p = paired_matrix(rows, "AA")
    assert [*leads.index] == ["b", "c", "a"]
    assert leads.loc["b", "a"] == -leads.loc["a", "b"] == pytest.approx(30.0)
    assert p.loc["b", "a"] < 0.001 < p.loc["c", "a"]
    assert paired_matrix([replace(one, accuracies=()) for one in rows], "AA")[0].empty


def test_the_calibration_error_is_the_mean_gap_between_confidence_and_accuracy_in_a_bin():
    p = torch.tensor([[0.9, 0.1]] * 10 + [[0.55, 0.45]] * 10)
    y = torch.tensor([0] * 6 + [1] * 4 + [0] * 8 + [1] * 2)
    assert calibration_error(p.log(), y) == pytest.approx(
        100 * (0.5 * abs(0.6 - 0.9) + 0.5 * abs(0.8 - 0.55)), abs=1e-4
    )


def test_students_and_scales_are_never_pooled_as_if_they_were_seeds():
    good, bad = "1" * 60 + "0" * 40, "1" * 40 + "0" * 60
    own = [result("DGAD", good), result("AdaAD", bad)]
    others = [replace(one, student="t", accuracies=(replace(one.accuracies[0], flags=bad[::-1]),)) for one in own]
    elsewhere = [replace(one, role="small") for one in (result("DGAD", "1" * 30), result("AdaAD", "0" * 30))]
    for more in (others, elsewhere):
        lead = verdicts([*own, *more]).set_index(["claim", "column"]).loc[("DGAD beats AdaAD", "AA")]
        assert (lead["n"], lead["lead"]) == (100, pytest.approx(20.0))
    apart = [own[0], replace(result("AdaAD", "0" * 30), role="small")]
    assert set(verdicts(apart)["verdict"]) == {"not run"}
