from dataclasses import replace

import pytest
import torch
import yaml

from lib.errors import UserError
from lib.evaluate import PRESETS, AttackSpec
from lib.experiment.parameters import PARAMS, Parameters, declared_and_injected, device_of, load_scale, validate
from lib.methods import METHODS


def test_what_papermill_injects_is_read_from_the_kernel_history():
    history = ["", "scale = 'quick'", "# Parameters\nepochs = 3\nrows = ['DGAD']\n", "x = 1"]
    assert declared_and_injected(history) == (["scale"], ["epochs", "rows"])


def test_an_unknown_injected_parameter_is_refused_with_the_valid_names():
    with pytest.raises(UserError, match=r"unknown parameter 'sclae'; choose from: scale, rows"):
        validate({"In": ["# Parameters\nsclae = 'gpu'\n"]})


def test_a_parameter_that_the_notebook_does_not_declare_is_refused_with_those_that_it_does():
    history = ["", "scale = 'quick'\nguess = 3  # its own", "# Parameters\nteachers = []\n"]
    with pytest.raises(UserError, match=r"unknown parameter 'teachers'; choose from: scale, guess$"):
        validate({"In": history, "scale": "quick", "teachers": []})
    assert validate({"In": [*history[:2], "# Parameters\nguess = 4\n"], "guess": 4}) == Parameters()


def test_names_that_the_user_made_himself_are_no_parameters():
    assert validate({"In": ["mine = 3"], "mine": 3, "scale": "gpu"}) == Parameters(scale="gpu")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("download", "false", r"download wants bool, got 'false' \(str\)"),
        ("workers", "two", "workers wants int"),
        ("workers", True, "workers wants int"),
        ("workers", -1, "workers must be 0 or more"),
        ("executor", "slurm", "unknown executor .slurm.; choose one of: local, ray"),
        ("cpus_per_run", 0, "cpus_per_run must be 0.01 or more"),
        ("gpus_per_run", 2, r"gpus_per_run must lie in \[0, 1\], got 2"),
        ("rows", "DGAD", "rows wants list"),
        ("seeds", ["0"], "seeds wants int"),
        ("teacher_files", {"a": 1}, "teacher_files.*wants str"),
        ("scale", 3, "scale wants str"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name, value, said):
    with pytest.raises(UserError, match=said):
        validate({name: value})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epsilon_255": -1.0}, "epsilon_255 is in 1/255 and must lie in"),
        ({"epsilon_255": 0.0314}, "epsilon is 0.0001231, which is 0.0314/255 and cannot be meant"),
        ({"step_size_255": 0.0078}, "which is 0.0078/255 and cannot be meant"),
        ({"epsilon": 8.0}, "settings has no 'epsilon'; choose from: .*epsilon_255"),
        ({"levers": "plain"}, "settings has no 'levers'; choose from: .*execution"),
        ({"execution": "calibrated"}, "unknown execution 'calibrated'; choose one of: fast, plain"),
        ({"columns": {"PGD-10": {"step_size": 2.0}}}, "column PGD-10: step_size is given as step_size_255"),
        ({"epsilon_255": "1e-3"}, "write 0.001"),
        ({"epsilonn": 8.0}, "no 'epsilonn'; choose from: epsilon_255, title"),
        ({"selection": "train"}, "unknown selection 'train'; choose one of: test, held_out"),
        ({"selection": "held_out", "held_out": 0}, "held_out > 0"),
        ({"epsilon_255": float("nan")}, "epsilon_255 wants a finite number"),
        ({"schedules": {"default": {"epoch": 3}}}, "schedule default has no 'epoch'"),
        ({"schedules": {"dgad": {}}}, "schedule dgad is incomplete"),
        ({"schedules": {"dgda": {"epochs": 3}}}, "unknown method 'dgda'"),
        ({"schedules": {"default": {"epochs": 0}}}, "wants epochs and batch_size >= 1"),
        ({"schedules": {"default": {"lr": -0.1}}}, "a positive lr"),
        ({"columns": {"PGD-10": {"steps": 0}}}, "column PGD-10: the attack pgd wants steps"),
        ({"columns": {"PGD-10": {"images": -1}}}, "column PGD-10: numbers must be >= 0"),
        ({"columns": {"PGD-10": {"epsilon_255": -8.0}}}, "column PGD-10: numbers must be >= 0"),
        ({"columns": {"PGD-10": {"epsilon_255": "8"}}}, "column PGD-10: epsilon_255 wants float"),
        ({"columns": {"PGD-10": {"batch_size": 0}}}, "batch_size and restarts >= 1"),
        ({"schedules": {"default": {"epochs": 3, "lr": "1e-1"}}}, "write 0.001"),
        ({"columns": {"PGD-10": {"stepz": 3}}}, "column PGD-10 has no 'stepz'"),
        ({"columns": {"PGD": {"steps": 3}}}, "unknown column 'PGD'; choose one of: PGD-50, Clean"),
        ({"columns": {"mine": {"attack": "pdg"}}}, "unknown attack 'pdg'; choose one of: pgd, clean"),
        ({"columns": {"AA": {"attack": "autoattack", "stages": ["fab"]}}}, "unknown AutoAttack stage 'fab'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'; choose one of: fp32, bf16"),
        ({"models": {"ResNet18": "ResNet19"}}, "unknown model 'ResNet19'; a model's name is one of: ResNet"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_a_sentence(settings, said):
    with pytest.raises(UserError, match=said):
        load_scale(Parameters(settings=settings))


def test_an_unknown_scale_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="unknown scale 'huge'; choose one of: gpu, paper, quick"):
        load_scale(Parameters(scale="huge"))


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "meta:x", "meta"])
def test_an_unknown_device_is_refused_with_the_valid_ones(device):
    with pytest.raises(UserError, match="no device .* choose from: auto, cpu"):
        device_of(device)


def test_every_schedule_that_a_row_names_is_one_of_the_papers():
    scale = load_scale(Parameters(scale="paper"))
    for path in (PARAMS / "tables").glob("*.yaml"):
        table = yaml.safe_load(path.read_text())
        named = {row["schedule"] for row in table["rows"] + table.get("more_rows", []) if row.get("schedule")}
        assert named <= set(scale.schedules), path.name


FROM_0 = {  # the first epochs at a lower rate in codes that count epochs from 0, or give a share of the training
    **{"default": (100, 150), "pgd_at": (100, 105), "pgd_at_as_released": (100, 105), "las_at": (99, 104)},
    **{"las_trades": (75, 90), "las_awp": (100, 150), "rice": (100, 150), "sat": (40, 60, 80), "mail": (75, 90, 100)},
    **{"lbgat": (75, 90), "lbgat_tiny": (75, 90)},
}
FROM_1 = {  # in codes that count from 1; GAIRAT's hybrid has GAIRAT's
    **{"trades_76": (75,), "mart_90": (75, 90), "mart_120": (75, 90, 100), "fat": (60, 90), "dynat_gairat": (60, 90)},
    **{"cat": (60, 90), "rat": (100, 150), "dart": (60, 100), "dart_as_released": (60, 100)},
}


def test_every_schedule_drops_where_its_authors_code_does_whichever_number_they_begin_to_count_with():
    scale = load_scale(Parameters(scale="paper"))
    assert {*FROM_0, *FROM_1, "gowal"} == set(scale.schedules)
    for name, drops, first in [(n, d, i) for i, each in enumerate((FROM_0, FROM_1)) for n, d in each.items()]:
        schedule = replace(scale.schedule(name), decay=0.0)
        steps = -(-50_000 // schedule.batch_size)
        _, scheduler = schedule.build(torch.nn.Linear(1, 1), 50_000)
        for epoch in range(1 if schedule.first_lr else 0, schedule.epochs):
            expected = 0.1 ** len([drop for drop in drops if epoch + first >= drop])
            for step in (epoch * steps, epoch * steps + steps - 1):
                assert scheduler.lr_lambdas[0](step) == pytest.approx(expected), (name, epoch)


@pytest.mark.parametrize(("method", "row_schedule"), [("gairat", "fat"), ("gairat_smoothed", "fat")])
def test_gairats_weights_begin_with_the_first_drop_of_its_rate_at_index_59_of_120(method, row_schedule):
    schedule = load_scale(Parameters(scale="paper")).schedule(row_schedule)
    begins = METHODS[method].all_weights["active"].shares[0] * schedule.epochs
    assert begins == schedule.milestones[0] == 59


def test_darts_rate_falls_by_a_ten_thousandth_per_step_beside_its_two_drops():
    """Keras divides the rate by 1 + decay times the steps made: at the first drop it is 30 % of what it was."""
    schedule = load_scale(Parameters(scale="paper")).schedule("dart_as_released")
    _, scheduler = schedule.build(torch.nn.Linear(1, 1), 50_000)
    rates = [0.01 * scheduler.lr_lambdas[0](epoch * 391) for epoch in (0, 1, 58, 59, 119)]
    assert rates == pytest.approx([0.01, 0.01 / 1.0391, 0.01 / 3.2678, 0.001 / 3.3069, 0.0001 / 5.6529])


def test_gowals_cycle_rises_for_10_of_its_400_epochs():
    schedule = load_scale(Parameters(scale="paper")).schedule("gowal")
    optimizer, scheduler = schedule.build(torch.nn.Linear(1, 1), 10 * 1024)
    rates = []
    for _ in range(4000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates.index(max(rates)) == 100 - 1
    assert max(rates) == pytest.approx(0.4)


def test_the_paper_scale_is_the_common_protocol_of_dgad():
    scale = load_scale(Parameters(scale="paper"))
    assert (scale.epsilon_255, scale.step_size_255, scale.attack_steps) == (8.0, 2.0, 10)
    long, short = scale.schedule("dgad"), scale.schedule("pgd_at")
    assert (long.epochs, long.milestones, long.lr, long.weight_decay) == (200, (100, 150), 0.1, 5e-4)
    assert (short.epochs, short.milestones) == (110, (100, 105))
    assert all(own == paper for paper, own in scale.models.items())


def test_a_setting_replaces_the_scale_file_and_leaves_the_rest():
    plain, changed = load_scale(Parameters()), load_scale(Parameters(settings={"max_steps": 3}))
    assert changed.max_steps == 3
    assert changed.models == plain.models


def test_one_entry_of_a_mapping_is_replaced_without_the_others():
    changed = load_scale(Parameters(settings={"columns": {"AA": {"images": 7}}}))
    assert changed.column("AA").images == 7
    assert changed.column("AA").stages == ("apgd-ce", "apgd-t")
    assert changed.column("CW2") == load_scale(Parameters()).column("CW2")


def test_a_column_carries_only_the_radii_its_attack_heeds():
    scale = load_scale(Parameters(scale="paper"))
    assert (scale.column("PGD-10").epsilon, scale.column("PGD-10").step_size) == (8 / 255, 2 / 255)
    assert (scale.column("AA").epsilon, scale.column("AA").step_size) == (8 / 255, 0.0)
    assert (scale.column("CW2").epsilon, scale.column("Clean").epsilon) == (0.0, 0.0)


def test_a_column_of_ones_own_says_its_attack_and_has_the_scales_radius():
    scale = load_scale(Parameters(scale="paper", settings={"columns": {"mine": {"attack": "cw", "steps": 7}}}))
    assert scale.column("mine") == AttackSpec("mine", "cw", 8 / 255, 2 / 255, 7, preset="mine")


@pytest.mark.parametrize("scale", ["quick", "gpu", "paper"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_every_scale_in_proportion_to_its_radius(scale, name):
    scale = load_scale(Parameters(scale=scale))
    share = scale.column(name).epsilon / (scale.epsilon_255 / 255)
    assert share == pytest.approx(PRESETS[name].epsilon / (8 / 255))


def test_fewer_test_images_bound_every_column():
    plain = load_scale(Parameters())
    scale = load_scale(Parameters(settings={"test_images": 100}))
    for name in PRESETS:
        assert scale.column(name).images == min(plain.column(name).images or 100, 100)


@pytest.mark.parametrize(("seeds", "said"), [([-1], "seeds must be 0 or more"), ([10**30], "64 bits")])
def test_a_seed_that_no_generator_takes_is_refused(seeds, said):
    with pytest.raises(UserError, match=said):
        validate({"seeds": seeds})


@pytest.mark.parametrize("setting", [{"momentum": -1.0}, {"momentum": 1.5}, {"weight_decay": -1.0}])
def test_a_schedules_momentum_and_decay_are_checked(setting):
    with pytest.raises(UserError, match="a schedule wants a"):
        load_scale(Parameters(settings={"schedules": {"default": setting}}))


@pytest.mark.parametrize("stages", [[], ["apgd-ce", "apgd-ce"]])
def test_autoattack_without_a_stage_or_with_one_twice_is_refused(stages):
    with pytest.raises(UserError, match="stages wants one at least, each once"):
        load_scale(Parameters(settings={"columns": {"AA": {"stages": stages}}}))


def test_a_radius_beyond_the_range_of_images_is_refused_in_its_own_unit():
    with pytest.raises(UserError, match=r"epsilon_255 is in 1/255 and must lie in \(0, 255\], got 300"):
        load_scale(Parameters(settings={"epsilon_255": 300.0}))
