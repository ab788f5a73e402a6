from dataclasses import replace

import pytest
import torch

from lib.checkpoints import save_weights
from lib.errors import UserError
from lib.methods import METHODS, NominalBatch
from lib.models import build
from lib.parameters import PARAMS, Parameters
from lib.spec import GivenWeights, RunSpec
from lib.table import open_table

TABLES = sorted(path.stem for path in (PARAMS / "tables").glob("*.yaml"))


def table4(tmp_path, **changes):
    return open_table("table4_dgad", Parameters(outputs=str(tmp_path), device="cpu", **changes))


def test_table_4_has_two_students_two_teachers_and_eight_methods_with_teacherless_rows_once(tmp_path):
    table = table4(tmp_path)
    assert len(table.cells) == 28
    assert len({cell.network.digest for cell in table.cells}) == 28
    assert len([cell for cell in table.cells if not cell.teacher]) == 4
    assert {cell.network.teacher for cell in table.cells} - {None} == set(table.teachers.values())


def test_dgad_takes_its_students_own_weight(tmp_path):
    found = {cell.student: dict(cell.network.weights) for cell in table4(tmp_path, rows=["DGAD"]).cells}
    assert found == {"ResNet18": {"beta": 5.0}, "MobileNetV2": {"beta": 10.0}}


def test_a_runs_weights_are_all_of_its_methods(tmp_path):
    (cell,) = table4(tmp_path, rows=["DGAD (code)"], students=["ResNet18"], teachers=["WideResNet-34-10"]).cells
    assert dict(cell.network.weights) == {"beta": 5.0, "nominal": NominalBatch()}


def test_a_methods_default_weight_is_part_of_its_runs_digest(tmp_path, monkeypatch):
    (before,) = table4(tmp_path, rows=["TRADES"], students=["ResNet18"]).cells
    monkeypatch.setitem(METHODS, "trades", replace(METHODS["trades"], weights={"trade_off": 1.0}))
    (after,) = table4(tmp_path, rows=["TRADES"], students=["ResNet18"]).cells
    assert before.network.digest != after.network.digest


def test_what_is_asked_for_twice_is_run_once(tmp_path):
    table = table4(tmp_path, rows=["PGD-AT", "PGD-AT"], students=["ResNet18", "ResNet18"], seeds=[0, 0])
    assert len(table.cells) == 1


def test_teachers_that_no_row_learns_from_are_not_trained(tmp_path):
    assert table4(tmp_path, rows=["PGD-AT", "TRADES"]).teachers == {}


def test_a_row_for_one_student_only_is_not_run_for_the_other(tmp_path):
    table = table4(tmp_path, rows=["DGAD (code MobileNetV2)"])
    assert {cell.student for cell in table.cells} == {"MobileNetV2"}


def test_more_seeds_are_more_runs_of_the_same_teachers(tmp_path):
    one, two = table4(tmp_path), table4(tmp_path, seeds=[0, 1])
    assert len(two.cells) == 2 * len(one.cells)
    assert two.teachers == one.teachers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": ["DGADD"]}, "unknown row 'DGADD'; choose one of: PGD-AT, TRADES"),
        ({"students": ["ResNet50"]}, "unknown student 'ResNet50'; choose one of: ResNet18, MobileNetV2"),
        ({"teachers": ["GPT"]}, "unknown teacher 'GPT'; choose one of: WideResNet-34-10"),
        ({"seeds": []}, "seeds is empty"),
        ({"rows": ["DGAD (code MobileNetV2)"], "students": ["ResNet18"]}, "is for the students ResNet18"),
        ({"settings": {"datasets": {"CIFAR10": "mnist"}}}, "unknown data set 'mnist'; choose one of: digits, "),
        ({"students": ["ResNet18"], "settings": {"models": {"ResNet18": ""}}}, "unknown model"),
        ({"settings": {"train_images": 99999}}, "asked for 99999 train images, the data set has 1297"),
        ({"settings": {"held_out": 1297}}, "cannot hold out 1297 of 1297"),
        ({"teacher_files": {"GPT": "pyproject.toml"}}, "unknown teacher 'GPT'"),
        ({"teacher_files": {"WideResNet-34-10": "nowhere.pt"}}, "no weights file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        table4(tmp_path, **changes)
    assert not list((tmp_path / "runs").glob("*"))


def test_an_unknown_table_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="unknown table 'table9'; choose one of: .*table4_dgad"):
        open_table("table9", Parameters())


def test_an_outputs_folder_that_cannot_be_made_is_said_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        table4(tmp_path / "file" / "outputs")


def test_a_teacher_from_a_file_is_known_by_its_content(tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(0)
        save_weights(build("WideResNet-10-1", classes=10, channels=1).state_dict(), tmp_path / f"{name}.safetensors")
    one, other = (
        table4(tmp_path, teacher_files={"WideResNet-34-10": str(tmp_path / f"{name}.safetensors")}) for name in "ab"
    )
    assert isinstance(one.teachers["WideResNet-34-10"], GivenWeights)
    assert [cell.network.digest for cell in one.cells] == [cell.network.digest for cell in other.cells]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", ["quick", "gpu", "paper"])
def test_every_table_is_defined_at_every_scale_with_every_row_it_offers(tmp_path, name, scale):
    settings = {"datasets": {name: "digits" for name in ("CIFAR10", "CIFAR100", "TinyImageNet")}, "held_out": 10}
    given = Parameters(scale=scale, outputs=str(tmp_path), device="cpu", settings=settings)
    table = open_table(name, given)
    every = [row["row"] for row in table.file.rows + table.file.more_rows]
    for cell in open_table(name, replace(given, rows=every)).cells:
        assert isinstance(cell.network, RunSpec)
        assert METHODS[cell.network.method].needs_teacher == (cell.network.teacher is not None)
        assert cell.network.schedule == table.scale.schedule(cell.row.schedule or cell.network.method)
