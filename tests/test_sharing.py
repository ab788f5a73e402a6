"""Tables of one paper share their runs: equal cells are one training, whichever table asks first."""

import pytest

from lib.experiment.parameters import Parameters
from lib.experiment.table import open_table


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")

    def of(name):
        table = open_table(name, Parameters(outputs=str(outputs), device="cpu"))
        return {(cell.student, cell.teacher, cell.row.row): cell.network.digest for cell in table.cells}

    return of


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("table2_dgad", "AdaAD"), ("table4_dgad", "AdaAD")),
        (("table2_dgad", "DGAD"), ("table4_dgad", "DGAD")),
        (("fig2_dgad", "1.0"), ("table4_dgad", "AdaAD")),
        (("fig2_dgad", "MAP"), ("table2_dgad", "MAP")),
    ],
    ids=lambda pair: "-".join(pair),
)
def test_equal_rows_of_two_tables_are_one_run(cells, ours, theirs):
    where = ("ResNet18", "WideResNet-34-10")
    assert cells(ours[0])[(*where, ours[1])] == cells(theirs[0])[(*where, theirs[1])]


def test_the_targets_of_table_7_are_table_4s_students(cells):
    targets = {row: digest for (_, _, row), digest in cells("table7_dgad").items()}
    students = {
        row: d for (s, t, row), d in cells("table4_dgad").items() if s == "ResNet18" and t != "WideResNet-34-20"
    }
    assert targets == students


def test_rows_that_differ_in_their_loss_are_different_runs(cells):
    digests = list(cells("table2_dgad").values())
    assert len(set(digests)) == len(digests) == 9
