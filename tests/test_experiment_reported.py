import pytest
import yaml

from lib import ROOT
from lib.evaluate import PROTOCOLS
from lib.experiment.parameters import PARAMS, Parameters, load_scale
from lib.experiment.table import open_table
from lib.methods import METHODS
from lib.methods.strategies import STRATEGIES

TABLES = sorted((PARAMS / "tables").glob("*.yaml"))


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


@pytest.mark.parametrize("scale", ["quick", "gpu", "paper"])
def test_dynats_d2rs_and_las_ats_tables_share_the_runs_that_are_the_same(tmp_path, scale):
    data = {"CIFAR10": "digits", "CIFAR100": "digits_b", "TinyImageNet": "digits_five"}
    settings = {"datasets": data, "held_out": 10, "test_images": 100}
    given = Parameters(scale=scale, outputs=str(tmp_path), device="cpu", settings=settings)
    names = [f"{t}_dynat" for t in ("table1", "table2", "table3", "table4", "fig3", "fig4", "fig5")]
    names += [f"{t}_d2r" for t in ("table1", "table2", "fig2", "fig3")] + [f"table{i}_las_at" for i in (2, 3, 4)]
    digests = {
        (name, cell.student, cell.row.row): cell.network.digest
        for name in names
        for cell in open_table(name, given).cells
    }
    wide, small = "WideResNet-34-10", "PreActResNet18"
    for row in ("PGD-AT", "TRADES", "MART", "FAT", "GAIRAT", "AWP", "LBGAT"):
        same = [("table1_dynat", wide), ("fig4_dynat", "CIFAR-10"), ("table1_d2r", "CIFAR-10"), ("table2_las_at", wide)]
        assert len({digests[*place, row] for place in same}) == 1, row
    for row in ("PGD-AT", "TRADES", "SAT (approximation)", "AWP", "LBGAT"):
        same = [
            ("table2_dynat", wide),
            ("fig4_dynat", "CIFAR-100"),
            ("table1_d2r", "CIFAR-100"),
            ("table3_las_at", wide),
        ]
        assert len({digests[*place, row] for place in same}) == 1, row
    for row in ("PGD-AT", "TRADES", "LAS-AT"):
        assert digests["table1_d2r", "TinyImgNet1", row] == digests["table4_las_at", small, row]
    for row in ("DYNAT", "DYNAT-AWP (alpha=1)", "DYNAT-Inner-AWP (alpha=1)"):
        assert digests["table1_dynat", wide, row] == digests["fig4_dynat", "CIFAR-10", row]
        assert digests["table2_dynat", wide, row] == digests["fig4_dynat", "CIFAR-100", row]
    for same in (
        [("table1_dynat", wide, "DYNAT"), ("fig3_dynat", wide, "DYNAT")],
        [("table1_dynat", wide, "LBGAT"), ("fig3_dynat", wide, "LBGAT"), ("fig2_d2r", wide, "LBGAT")],
        [("table1_dynat", wide, "GAIRAT"), ("table3_dynat", wide, "GAIRAT (WRN)"), ("fig5_dynat", wide, "GAIRAT")],
        [("table3_dynat", "ResNet18", "GAIRAT (ResNet-18)"), ("table4_dynat", "ResNet18", "GAIRAT")],
        [("table3_dynat", wide, "DYNAT-Inner-GAIRAT (WRN)"), ("fig5_dynat", wide, "DYNAT-Inner-GAIRAT")],
        [("table1_d2r", "CIFAR-10", "D2R-CAG"), ("table2_d2r", wide, "D2R-CAG (alpha=30, beta=20)")],
        *(
            [(name, wide, f"D2R (alpha={a}, beta={b})") for name in places]
            for a, b, places in (
                (1, 0, ("table2_d2r", "fig2_d2r")),
                (30, 20, ("table2_d2r", "fig2_d2r", "fig3_d2r")),
                (30, 0, ("fig2_d2r", "fig3_d2r")),
            )
        ),
    ):
        assert len({digests[place] for place in same}) == 1, same


@pytest.mark.parametrize(
    ("name", "row", "epochs", "decay", "drops"),
    [
        ("table1_dynat", "DYNAT-Inner-AWP (alpha=1)", 100, 0.0002, (75, 90)),
        ("table3_dynat", "DYNAT-Inner-GAIRAT (ResNet-18)", 120, 0.0005, (59, 89)),
        ("table4_dynat", "MART", 120, 0.0035, (74, 89, 99)),
        ("table4_dynat", "MAIL", 120, 0.0035, (75, 90, 100)),
        ("table4_dynat", "DYNAT-MAIL-Inner", 120, 0.0035, (75, 90, 100)),
        ("table1_d2r", "RAT (TRADES)", 200, 0.0005, (99, 149)),
        ("table1_d2r", "D2R-CAG", 100, 0.0002, (75, 90)),
        ("table2_d2r", "D2R (alpha=30, beta=20)", 100, 0.0002, (75, 90)),
    ],
)
def test_dynats_and_d2rs_rows_have_the_schedules_of_their_code_at_the_papers_scale(
    tmp_path, name, row, epochs, decay, drops
):
    settings = {"datasets": dict.fromkeys(("CIFAR10", "CIFAR100", "TinyImageNet"), "digits"), "test_images": 100}
    given = Parameters(scale="paper", rows=[row], outputs=str(tmp_path), device="cpu", settings=settings)
    schedules = {cell.network.schedule for cell in open_table(name, given).cells}
    assert {(s.epochs, s.weight_decay, s.milestones) for s in schedules} == {(epochs, decay, drops)}


def test_darts_code_is_a_row_with_its_radius_step_and_weight_decay(tmp_path):
    """Keras adds 0.002 w^2 to the loss, whose slope is that of a weight decay of 0.004."""
    row, outputs = "DART (code)", str(tmp_path)
    given = Parameters(
        scale="paper", rows=[row], outputs=outputs, device="cpu", settings={"datasets": {"CIFAR10": "digits"}}
    )
    (cell,) = open_table("table7_las_at", given).cells
    run = cell.network
    assert (run.method, run.attack_steps, run.schedule.epochs) == ("dart_as_released", 10, 120)
    assert (run.epsilon, run.step_size) == (pytest.approx(0.031), pytest.approx(0.031 / 4))
    assert (run.schedule.lr, run.schedule.decay, run.schedule.weight_decay) == (0.01, 1e-4, 2 * 0.002)


@pytest.mark.parametrize(
    ("name", "column", "images"),
    [("table1_dynat", "AA", 1000), ("table4_dynat", "APGD", 1000), ("table2_d2r", "AA", 0)],
)
def test_autoattack_is_measured_as_its_authors_did_and_under_the_common_protocol(tmp_path, name, column, images):
    given = Parameters(scale="paper", outputs=str(tmp_path), device="cpu")
    scale, table = load_scale(given), yaml.safe_load((PARAMS / "tables" / f"{name}.yaml").read_text())
    own = scale.column((PROTOCOLS[table["paper"]] | table.get("same_as", {}))[column])
    assert (255 * own.epsilon, own.images) == (pytest.approx(7.905), images)
    common = [scale.column(preset) for preset in PROTOCOLS[table["other_protocol"]].values() if preset != "Clean"]
    assert {(c.epsilon, c.images) for c in common} == {(8 / 255, 0)}
    assert not any("frozen" in c.attack for c in common)


@pytest.mark.parametrize(
    ("table", "row", "epsilon", "batch", "attack_mode"),
    [
        ("table7_las_at", "CAT (code)", 0.032, 200, "train"),
        ("table7_las_at", "FAT (code)", 0.031, 128, "eval"),
        ("table2_las_at", "FAT (code)", 0.031, 128, "eval"),
        ("table2_las_at", "TRADES (code)", 0.031, 128, "eval"),
        ("table2_las_at", "PGD-AT (code)", 8 / 255, 128, "train"),
        ("table2_las_at", "AWP (code)", 8 / 255, 128, "train"),
        ("table2_las_at", "LAS-AWP (code)", 8 / 255, 128, "eval"),
        ("table3_las_at", "PGD-AT (code)", 8 / 255, 128, "train"),
    ],
)
def test_a_baselines_released_form_has_its_radius_batch_and_mode(tmp_path, table, row, epsilon, batch, attack_mode):
    settings = {"datasets": {"CIFAR10": "digits", "CIFAR100": "digits"}}
    given = Parameters(scale="paper", rows=[row], outputs=str(tmp_path), device="cpu", settings=settings)
    (cell,) = open_table(table, given).cells
    spec = cell.network
    assert spec.epsilon == pytest.approx(epsilon)
    assert (spec.schedule.batch_size, METHODS[spec.method].attack_mode) == (batch, attack_mode)


def test_las_ats_choices_name_the_rows_that_train_at_another_radius_and_lbgats_first_rate():
    given = yaml.safe_load((PARAMS / "choices" / "las_at.yaml").read_text())
    choices = {one["question"]: one["choice"] for one in given["choices"]}
    tables = [yaml.safe_load(path.read_text()) for path in TABLES if path.stem.endswith("las_at")]
    rows = [row for table in tables for row in table["rows"] + table.get("more_rows", [])]
    others = {row["row"].split(" (W")[0] for row in rows if row.get("own_radius") or "epsilon_255" in row}
    assert others == {"GAIRAT", "LBGAT", "TRADES (code)", "FAT (code)", "CAT (code)", "DART (code)"}
    assert all(name in choices["Radius and step of the baselines"] for name in others)
    schedules = yaml.safe_load((PARAMS / "paper.yaml").read_text())["settings"]["schedules"]
    assert schedules["lbgat"]["first_lr"] == 0.02
    assert choices["LBGAT's first epoch"] == "at a rate of 0.02"


def test_the_released_las_at_moves_its_strategy_network_by_0_215_at_the_most_and_the_papers_without_a_bound():
    given = yaml.safe_load((PARAMS / "paper.yaml").read_text())["settings"]["schedules"]["las_at"]
    code, ours = STRATEGIES["las_pgd_at_as_released"], STRATEGIES["las_at"]
    steps = given["epochs"] * -(-50000 // given["batch_size"]) // code.every
    assert steps * code.lr * code.clip / (1 - code.momentum) == pytest.approx(0.215)
    assert ours.clip == float("inf")


def test_las_ats_target_falls_in_rate_at_milestones_and_does_not_keep_the_constant_of_eq_14(tmp_path):
    given = Parameters(scale="paper", outputs=str(tmp_path), device="cpu", settings={"datasets": {"CIFAR10": "digits"}})
    cells = open_table("table2_las_at", given).cells
    assert all(cell.network.schedule.milestones for cell in cells if cell.row.row.startswith("LAS-"))
    text = " ".join((ROOT / "notebooks" / "walkthrough_las_at.ipynb").read_text().split())
    assert all(said in text for said in ("**Theorem 1**", "**Eq. 14**", "**eq. 15**", "No code follows from either"))


def test_one_of_dgads_sixteen_jsma_numbers_equals_a_clean_accuracy_and_none_is_below_one():
    paper = yaml.safe_load((PARAMS / "reported" / "dgad.yaml").read_text())
    clean = {row: values for row, values in paper["table4"]["ResNet18"].items() if row in paper["table7"]["VGG16"]}
    leads = {
        teacher: [paper["table7"][s][row][2] - clean[row][teacher][0] for s in ("ResNet34", "VGG16") for row in clean]
        for teacher in ("WideResNet-34-10", "WideResNet-34-20")
    }
    assert {len(all_leads) for all_leads in leads.values()} == {16}
    assert min(leads["WideResNet-34-10"]) > 0
    assert [lead for lead in leads["WideResNet-34-20"] if lead <= 0] == [0]


def test_table_4_offers_every_released_form_of_its_methods():
    table = yaml.safe_load((PARAMS / "tables" / "table4_dgad.yaml").read_text())
    base = {row["method"] for row in table["rows"]}
    forms = {
        name for name in METHODS for own in base if name.startswith(own) and name.endswith(("released", "printed"))
    } - {"pgd_at_uniform_as_released"}  # a form of LAS-AT's PGD-AT
    assert forms == {row["method"] for row in table["more_rows"]}
