import json
from dataclasses import replace

import pytest
import torch
from small import parameters

from lib import report
from lib.errors import UserError
from lib.experiment import networks, runs
from lib.experiment.parameters import PARAMS, Parameters, load_scale
from lib.experiment.spec import GivenWeights, RunSpec
from lib.experiment.table import open_table
from lib.experiment.table_file import read_table
from lib.methods import METHODS, NominalBatch
from lib.methods.strategies import STRATEGIES
from lib.models import build
from lib.models.checkpoints import as_safetensors, load_weights
from lib.train.weights import AWP

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
        ({"rows": ["DGADD"]}, "unknown row 'DGADD'; choose one of: DGAD, PGD-AT"),
        ({"students": ["ResNet50"]}, "unknown student 'ResNet50'; choose one of: ResNet18, MobileNetV2"),
        ({"teachers": ["GPT"]}, "unknown teacher 'GPT'; choose one of: WideResNet-34-10"),
        ({"seeds": []}, "seeds is empty"),
        ({"rows": ["DGAD (code MobileNetV2)"], "students": ["ResNet18"]}, "is for the students ResNet18"),
        ({"settings": {"datasets": {"CIFAR10": "mnist"}}}, "unknown data set 'mnist'; choose one of: digits, "),
        ({"students": ["ResNet18"], "settings": {"models": {"ResNet18": ""}}}, "unknown model"),
        ({"settings": {"train_images": 99999}}, "asked for 99999 train images, the data set has 1297"),
        ({"settings": {"held_out": 1297}}, "cannot hold out 1297 of 1297"),
        ({"teacher_files": {"GPT": "pyproject.toml"}}, "unknown teacher 'GPT'"),
        ({"teacher_files": {"WideResNet-34-10": "nowhere.pt"}}, "nowhere.pt cannot be read \\(No such file"),
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
        net = build("WideResNet-10-1", classes=10, channels=1)
        (tmp_path / f"{name}.safetensors").write_bytes(as_safetensors(net.state_dict()))
    one, other = (
        table4(tmp_path, teacher_files={"WideResNet-34-10": str(tmp_path / f"{name}.safetensors")}) for name in "ab"
    )
    assert isinstance(one.teachers["WideResNet-34-10"], GivenWeights)
    assert [cell.network.digest for cell in one.cells] == [cell.network.digest for cell in other.cells]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", ["quick", "gpu", "paper"])
def test_every_table_is_defined_at_every_scale_with_every_row_it_offers(tmp_path, name, scale):
    settings = {"datasets": {name: "digits" for name in ("CIFAR10", "CIFAR100", "TinyImageNet")}}
    settings |= {"held_out": 10, "test_images": 100}
    given = Parameters(scale=scale, outputs=str(tmp_path), device="cpu", settings=settings)
    table = open_table(name, given)
    every = [row["row"] for row in table.file.rows + table.file.more_rows]
    for cell in open_table(name, replace(given, rows=every)).cells:
        assert isinstance(cell.network, RunSpec)
        assert METHODS[cell.network.method].needs_teacher == (cell.network.teacher is not None)
        assert cell.network.schedule == table.scale.schedule(cell.row.schedule or cell.network.method)


# --- rows with more than a method ---------------------------------------------------------------------------------

DIGITS = {"datasets": {"CIFAR10": "digits"}, "held_out": 10}
DIGITS_FOR_ALL = {"datasets": dict.fromkeys(("CIFAR10", "CIFAR100", "TinyImageNet"), "digits"), "held_out": 10}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a table of the rows given as lines of YAML; one student, no teacher."""

    def opener(*rows, top=(), **parameters):
        lines = [
            "paper: las_at",
            "item: mine",
            "title: Mine",
            "columns: [Clean]",
            "students: [ResNet18]",
            *top,
            "rows:",
        ]
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / "mine.yaml").write_text("\n".join([*lines, *(f"  - {{row: {row}}}" for row in rows)]))
        monkeypatch.setattr("lib.experiment.table_file.PARAMS", tmp_path)
        settings = DIGITS | parameters.pop("settings", {})
        given = {"scale": "paper", "outputs": str(tmp_path / "outputs"), "device": "cpu", "settings": settings}
        return open_table("mine", Parameters(**given | parameters))

    return opener


def strategy_of(table):
    return table.cells[0].network.strategy


def test_a_rows_strategy_settings_are_laid_over_the_strategys_own(opened):
    row = (
        "a, method: pgd_at, strategy: las_pgd_at_as_released, "
        "strategy_settings: {every: 10, momentum: 0.9, adv: 8, lr_falls: true, "
        "options: {epsilon_255: [3, 4], steps: [2]}}"
    )
    base, spec = STRATEGIES["las_pgd_at_as_released"], strategy_of(opened(row))
    options = dict(base.options) | {"epsilon": (3 / 255, 4 / 255), "steps": (2.0,)}
    changed = {"every": 10, "momentum": 0.9, "adv": 8.0, "lr_falls": True, "model": "ResNet18"}
    assert spec == replace(base, options=tuple(options.items()), **changed)
    assert [name for name, _ in spec.options] == [name for name, _ in base.options]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_row_can_name_every_strategy(opened, name):
    spec = strategy_of(opened(f"a, method: trades, strategy: {name}"))
    has_network = name.startswith("las_") or name == "frozen"
    assert spec == replace(STRATEGIES[name], model="ResNet18" if has_network else "")


def test_a_strategys_radii_follow_the_scales_and_its_network_is_the_scales_stand_in(opened):
    row = "a, method: pgd_at, strategy: las_at, strategy_settings: {options: {epsilon_255: [4, 8]}}"
    spec = strategy_of(opened(row, scale="quick"))
    options = dict(spec.options)
    assert options["epsilon"] == pytest.approx((19 / 255, 38 / 255))
    assert options["step_size"] == pytest.approx([size * 38 / 8 / 255 for size in range(1, 7)])
    assert options["steps"] == tuple(range(3, 16))
    assert spec.model == "ResNet8-w8"


def test_a_strategy_may_pick_a_weight_of_the_method(opened):
    row = "a, method: trades, strategy: las_at, strategy_settings: {options: {trade_off: [1, 6.5]}}"
    assert dict(strategy_of(opened(row)).options)["trade_off"] == (1.0, 6.5)


def test_a_coefficient_written_with_and_without_a_point_is_one_run(opened):
    rows = [f"a, method: pgd_at, strategy: las_at, strategy_settings: {{adv: {i}}}" for i in ("0", "0.0")]
    one, other = (opened(row).cells[0].network.digest for row in rows)
    assert one == other


def test_awp_average_and_guide_are_part_of_the_run(opened):
    plain = "a, method: pgd_at"
    extras = ["awp: {gamma: 0.005, warmup: 0.05}", "average: 0.995", "strategy: random", "awp: {method: trades}"]
    specs = [opened(f"{plain}, {extra}").cells[0].network for extra in extras]
    assert [s.awp for s in specs] == [AWP(0.005, 0.05), None, None, AWP(0.01, 0.0, "trades", (("trade_off", 6.0),))]
    assert [s.average for s in specs] == [0.0, 0.995, 0.0, 0.0]
    assert len({s.digest for s in [*specs, opened(plain).cells[0].network]}) == 5
    guided = opened("a, method: lbgat, guide: VGG16").cells[0].network
    assert guided.guide == "VGG16"
    assert opened("a, method: lbgat, guide: ResNet18").cells[0].network.digest != guided.digest


def test_a_row_may_be_trained_at_a_radius_and_a_step_of_its_own_in_proportion_at_other_scales(opened):
    plain, own = "a, method: pgd_at", "a, method: pgd_at, epsilon_255: 7.905, step_size_255: 1.785"
    at_paper = opened(own).cells[0].network
    assert (at_paper.epsilon, at_paper.step_size) == pytest.approx((0.031, 0.007))
    at_quick = opened(own, scale="quick").cells[0].network
    assert (at_quick.epsilon, at_quick.step_size) == pytest.approx((0.031 * 38 / 8, 0.007 * 38 / 8))
    assert opened(plain).cells[0].network.epsilon == 8 / 255
    as_table = "a, method: pgd_at, own_radius: true"
    top = ["epsilon_255: 7.905", "step_size_255: 1.785"]
    assert opened(as_table, top=top).cells[0].network.digest == at_paper.digest
    twice = opened(f"{as_table}, step_size_255: 2", top=top).cells[0].network
    assert (twice.epsilon, twice.step_size) == (at_paper.epsilon, 2 / 255)
    same = "a, method: pgd_at, epsilon_255: 8, step_size_255: 2"
    assert opened(plain).cells[0].network.digest == opened(same).cells[0].network.digest != at_paper.digest


def test_a_blocks_rows_take_its_data_network_guide_and_numbers(tmp_path):
    given = Parameters(scale="paper", outputs=str(tmp_path), device="cpu", settings=DIGITS_FOR_ALL)
    table = open_table("table1_d2r", given)
    own = {cell.student: cell.network for cell in table.cells if cell.row.row == "D2R-CAG"}
    assert {name: (net.model, net.guide) for name, net in own.items()} == {
        "CIFAR-10": ("WideResNet-34-10", "ResNet18-guide"),
        "CIFAR-100": ("WideResNet-34-10", "ResNet18-guide"),
        "TinyImgNet1": ("PreActResNet18", "ResNet18"),
        "TinyImgNet2": ("WideResNet-34-10", "ResNet18"),
    }
    assert [dict(net.weights)["guide_weight"] for net in own.values()] == pytest.approx(
        [1.0, 1.0, 2.0, 2.0]
    )  # classes over ten
    plain = next(cell.network for cell in table.cells if cell.row.row == "PGD-AT")
    assert (plain.model, plain.guide) == ("WideResNet-34-10", "")
    assert [table.file.reported(name)["dataset"][:9] for name in own] == ["CIFAR-10", "CIFAR-100", *["Tiny Imag"] * 2]


def test_the_other_guide_that_d2r_names_for_tiny_imagenet_is_one_setting_away(tmp_path):
    for scale in ("paper", "gpu", "quick"):
        settings = {
            **DIGITS_FOR_ALL,
            "models": {"ResNet18": load_scale(Parameters(scale=scale)).models["PreActResNet18"]},
        }
        chosen = {"rows": ["D2R-CAG"], "students": ["TinyImgNet1"], "settings": settings}
        (cell,) = open_table("table1_d2r", Parameters(scale=scale, outputs=str(tmp_path), device="cpu", **chosen)).cells
        assert cell.network.guide == cell.network.model
        assert "PreActResNet" in cell.network.guide


def test_a_blocks_data_is_its_own(tmp_path):
    table = open_table("table1_d2r", Parameters(outputs=str(tmp_path), device="cpu"))
    found = {cell.student: (cell.data.name, cell.network.data.name) for cell in table.cells}
    assert found == {
        "CIFAR-10": ("digits", "digits"),
        "CIFAR-100": ("digits_b", "digits_b"),
        "TinyImgNet1": ("digits_five", "digits_five"),
        "TinyImgNet2": ("digits_five", "digits_five"),
    }


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("method: pgd_at, epsilon_255: -1", "row a: epsilon_255 is in 1/255 and lies in .*, got -1"),
        ("method: pgd_at, epsilon: 8", "row has no 'epsilon'; choose from: .*epsilon_255"),
        ("method: pgd_at, own_radius: true", "row a takes the table's own radius; give the table an epsilon_255"),
        ("method: pgd_at, step_size_255: 256", "row a: step_size_255 is in 1/255"),
        ("method: pgd_at, strategy: las", "unknown strategy 'las'; choose one of: las_at, las_trades"),
        ("method: pgd_at, strategy_settings: {every: 3}", "has strategy_settings and no strategy"),
        ("method: natural, strategy: las_at", "row a: the method natural makes no attack"),
        (
            "method: pgd_at, strategy: las_trades",
            "for a strategy to pick 'trade_off'; choose one of: epsilon, step_size, steps$",
        ),
        ("method: trades, strategy: cat, strategy_settings: {options: {steps: [3]}}", "cat picks from no options"),
        ("method: lbgat", "trains a guide; name its model as guide"),
        ("method: pgd_at, guide: ResNet18", "the method pgd_at trains no guide"),
        ("method: lbgat, guide: ResNet999", "unknown model of this scale 'ResNet999'"),
        ("method: pgd_at, average: 1.0", r"row a: average is a decay in \[0, 1\)"),
        ("method: pgd_at, average: much", "row: average wants float, got 'much'"),
        ("method: pgd_at, awp: {gama: 0.01}", "row a: awp has no 'gama'; choose from: gamma, warmup, method"),
        ("method: pgd_at, awp: {gamma: 0}", "AWP wants gamma > 0"),
        ("method: pgd_at, awp: {method: tradess}", "unknown method 'tradess'"),
        ("method: pgd_at, awp: {method: dgad}", "the loss of dgad needs more than the network"),
        ("method: pgd_at, awp: 0.01", "row: awp wants dict"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_in_a_sentence(opened, row, said):
    with pytest.raises(UserError, match=said):
        opened(f"a, {row}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("every: 0", "a strategy's every must be at least 1, got 0"),
        ("every: 2.5", "row a: strategy: every wants int, got 2.5"),
        ("k: 3", "row a: strategy has no 'k'; choose from: kind, options"),
        ("lr: 1e-3", r"write 0.001"),
        ("kind: greedy", "unknown kind of strategy 'greedy'"),
        ("model: ResNet999", "unknown model of this scale 'ResNet999'"),
        ("options: [3, 4]", "row a: strategy: options wants dict"),
        ("options: {epsilon_255: 3}", r"row a: strategy: options\['epsilon_255'\] wants list"),
        ("options: {epsilon_255: []}", "the options for epsilon are empty"),
        ("options: {epsilon_255: [0, 3]}", r"the options for epsilon must lie in \(0, 1\]"),
        ("options: {epsilon: [8]}", "options: epsilon is given as epsilon_255"),
        ("options: {epsilon_255: [256]}", r"the options for epsilon must lie in \(0, 1\]"),
        ("options: {steps: [3, 3.5]}", "the options for steps must be whole numbers"),
        ("options: {steps: ['3']}", "row a: strategy: options.* wants float, got '3'"),
        ("options: {beta: [3]}", "for a strategy to pick 'beta'; choose one of: epsilon, step_size, steps, trade_off"),
    ],
)
def test_strategy_settings_that_make_no_sense_are_refused_in_a_sentence(opened, settings, said):
    with pytest.raises(UserError, match=said):
        opened(f"a, method: trades, strategy: las_at, strategy_settings: {{{settings}}}")


def test_a_row_with_strategy_awp_average_and_guide_trains_and_leaves_what_it_made(opened):
    settings = {"schedules": {"default": {"epochs": 2, "batch_size": 16}}, "train_images": 44, "held_out": 12}
    few = "strategy_settings: {every: 2, options: {epsilon_255: [4, 8], steps: [1, 2], step_size_255: [2]}}"
    row = f"a, method: lbgat, guide: VGG16, strategy: las_at, {few}, awp: {{gamma: 0.01}}, average: 0.9"
    table = opened(row, scale="quick", settings=settings)
    (cell,) = table.cells
    runs.make(cell.network, table.workspace)
    folder = table.workspace.store.folder(cell.network.digest)
    history = json.loads((folder / "history.json").read_text())
    assert [sum(e["strategy"]["chosen"]["epsilon"].values()) for e in history] == [32, 32]
    assert all(e["strategy"]["reward"] < 0 for e in history)
    guide = networks.fresh_network(cell.network.guide, cell.data, table.workspace)
    load_weights(guide, folder / "guide.safetensors")


def test_the_weights_of_the_perturbations_loss_are_part_of_the_run(opened, monkeypatch):
    before = opened("a, method: pgd_at, awp: {method: trades}").cells[0].network.digest
    monkeypatch.setitem(METHODS, "trades", replace(METHODS["trades"], weights={"trade_off": 1.0}))
    assert opened("a, method: pgd_at, awp: {method: trades}").cells[0].network.digest != before


def test_a_file_given_for_a_row_is_tried_before_anything_runs(tmp_path):
    net = build("ResNet8-w8", classes=7, channels=1)
    (tmp_path / "seven.safetensors").write_bytes(as_safetensors(net.state_dict()))
    files = {"PGD-AT": str(tmp_path / "seven.safetensors")}
    with pytest.raises(UserError, match="does not fit ResNet"):
        open_table("table1_las_at", Parameters(outputs=str(tmp_path), device="cpu", teacher_files=files))


def test_every_data_set_of_a_table_has_to_have_the_columns_images(tmp_path):
    settings = {"columns": {"AA": {"images": 300}}}
    with pytest.raises(UserError, match="column AA wants 300 images, the test split has 250"):
        open_table("table1_dgad", Parameters(outputs=str(tmp_path), device="cpu", settings=settings))


def test_with_selection_on_the_test_split_nothing_is_held_out(opened):
    assert opened("a, method: pgd_at").cells[0].network.data.held_out == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("method: trades, weights: {trade_off: [1, 2]}", "weight trade_off wants float"),
        ("method: trades, weights: {trade_off: much}", "weight trade_off wants float"),
        ("method: trades, weights: {trade_off: true}", "weight trade_off wants float"),
        ("method: trades, weights: {trade_off: .nan}", "wants a finite number"),
        ("method: pgd_at, schedule: las_att", "unknown schedule 'las_att'"),
        (
            "method: pgd_at_smoothed, strategy: random, strategy_settings: {options: {true_share: [0.5, 0.7]}}",
            "for a strategy to pick 'true_share'",
        ),
    ],
)
def test_a_rows_numbers_and_names_are_checked(opened, row, said):
    with pytest.raises(UserError, match=said):
        opened(f"a, {row}")


def test_a_table_of_ones_own_has_no_reported_numbers_and_an_unknown_item_is_refused(tmp_path):
    table = open_table("table1_las_at", Parameters(outputs=str(tmp_path), device="cpu"))
    own = replace(table, file=replace(table.file, item="", title="Mine"))
    assert own.reported == {}
    assert report.compare(own, []).caption.startswith("Mine, accuracy in %")
    assert report.reported_table(own).isna().all(axis=None)
    with pytest.raises(UserError, match="unknown item of las_at 'mine'; choose one of: meta, table1"):
        report.compare(replace(table, file=replace(table.file, item="mine")), [])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"weights": {"Resnet18": {"beta": 1.0}}}, "unknown student 'Resnet18'"),
        ({"weights": {"ResNet18": {"beta": 1.0}, "beta": 2.0}}, "for every student a mapping"),
        ({"only_students": ["VGG"]}, "unknown student 'VGG'"),
        ({"quoted": {"VGG": "AdaAD"}}, "unknown student 'VGG'"),
    ],
)
def test_a_row_that_names_no_student_of_its_table_is_refused(more, sentence):
    with pytest.raises(UserError, match=sentence):
        read_table("table4_dgad").read_row({"row": "DGAD", "method": "dgad", **more})


def test_two_rows_of_one_name_are_refused(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path))
    twice = replace(table.file, more_rows=[{"row": "DGAD", "method": "trades"}])
    with pytest.raises(UserError, match="two rows are called DGAD"):
        _ = replace(table, file=twice).rows
