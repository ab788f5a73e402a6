import pytest

from lib.errors import UserError
from lib.evaluate import ATTACKS, PRESETS, PROTOCOLS, STAGES, at_radius, changed, columns_of, describe_all
from lib.evaluate.protocols import RADIUS, STEP


def measured(protocol):
    """attack, radius and step in 1/255, steps, images, stages of every column."""
    return {
        column.name: (
            column.attack,
            round(255 * column.epsilon, 3),
            round(255 * column.step_size, 3),
            column.steps,
            column.images,
        )
        for column in columns_of(protocol)
    }


ITERATED = {f"PGD-{steps}": ("pgd_frozen", 8, 2, steps, 0) for steps in (10, 20, 50)}
MARGIN = {"C&W": ("cw_frozen", 8, 2, 20, 0)}
CLEAN = {"Clean": ("clean", 0, 0, 0, 0)}


@pytest.mark.parametrize(
    ("protocol", "columns"),
    [
        (
            "las_at",
            CLEAN | {"FGSM": ("fgsm_random", 8, 0, 0, 0)} | ITERATED | MARGIN | {"AA": ("autoattack", 8, 0, 0, 0)},
        ),
        (
            "dgad",
            CLEAN
            | {"FGSM": ("fgsm", 8, 0, 0, 0), "PGD": ("pgd", 8, 2, 10, 0)}
            | {"CW2": ("cw2", 0, 0, 1000, 0), "AA": ("autoattack", 8, 0, 0, 0)},
        ),
        ("dynat", CLEAN | ITERATED | MARGIN | {"AA": ("autoattack", 7.905, 0, 0, 1000)}),
        ("d2r", CLEAN | ITERATED | MARGIN | {"AA": ("autoattack", 7.905, 0, 0, 0)}),
    ],
)
def test_a_papers_protocol_is_what_its_code_runs(protocol, columns):
    assert measured(protocol) == columns


def test_the_common_protocol_has_one_radius_last_iterates_and_all_images():
    columns = [column for column in columns_of("common") if column.attack != "clean"]
    assert {column.epsilon for column in columns} == {RADIUS}
    assert not any("frozen" in column.attack or column.images for column in columns)
    assert {column.attack for column in columns} == {"fgsm", "pgd", "cw", "autoattack"}


def test_every_attack_but_the_surrogates_is_behind_some_preset():
    assert {column.attack for column in PRESETS.values()} == set(ATTACKS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_prints_everything_that_decides_its_number(name):
    column = PRESETS[name]
    assert set(column.settings()) == {"attack", "radius", "step", "steps", "restarts", "seed", "crafted in"}
    assert ("/255" in str(column)) == (ATTACKS[column.attack].bounded and column.attack != "clean")
    assert (f"steps {column.steps}" in str(column)) == (ATTACKS[column.attack].steps == 0)


@pytest.mark.parametrize("name", [name for name, column in PRESETS.items() if column.attack == "autoattack"])
def test_a_preset_of_autoattack_prints_the_stages_where_they_are_not_all(name):
    assert ("apgd" in str(PRESETS[name])) == (PRESETS[name].stages != STAGES)


def test_another_radius_keeps_the_proportions_of_the_papers():
    column = at_radius(PRESETS["PGD-20-0.031"], 0.15, 0.0375)
    assert column.epsilon / 0.15 == pytest.approx(0.031 / RADIUS)
    assert column.step_size / 0.0375 == pytest.approx(0.031 / 4 / STEP)


def test_a_radius_in_1_255_is_named_so():
    assert changed(PRESETS["PGD-10"], {"epsilon_255": 4, "step_size_255": 1.0}).settings()["radius"] == "4/255"
    with pytest.raises(UserError, match="column PGD-10: epsilon_255 wants float, got '8/255'"):
        changed(PRESETS["PGD-10"], {"epsilon_255": "8/255"})


def test_columns_take_changes_by_name_and_refuse_what_they_do_not_know():
    columns = {column.name: column for column in columns_of("common", changes={"AA": {"images": 7, "seed": 3}})}
    assert (columns["AA"].images, columns["AA"].seed, columns["FGSM"].images) == (7, 3, 0)
    with pytest.raises(UserError, match="'PGD-7'"):
        columns_of("common", changes={"PGD-7": {"images": 7}})
    with pytest.raises(UserError, match="column AA has no 'image'"):
        columns_of("common", changes={"AA": {"image": 7}})
    with pytest.raises(UserError, match="unknown protocol 'linf'.*" + ", ".join(PROTOCOLS)):
        columns_of("linf")


def test_what_all_attacks_share_is_described_once():
    text = describe_all(columns_of("d2r"))
    assert text.count("seed 0") == text.count("crafted in fp32") == 1
    assert "all: restarts 1, seed 0, crafted in fp32" in text
    assert "PGD-20, attack PGD on the cross-entropy, an image stays where it is first wrong, radius 8/255" in text
    apart = describe_all((PRESETS["PGD-10"], PRESETS["PGD-20"], columns_of("common", changes={"AA": {"seed": 4}})[-1]))
    assert "seed 4" in apart
