import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from small import parameters

from lib import report
from lib.evaluate import Accuracy, AttackSpec, wilson
from lib.experiment.planning import Result
from lib.experiment.spec import GivenWeights
from lib.experiment.table import Table, open_table
from lib.methods.strategies import STRATEGIES
from lib.report import compare, figures, gains, reported_table, save
from lib.report.compare import _marks_of_measured, _marks_of_reported

COLUMNS = ("Clean", "FGSM", "PGD", "CW2", "AA")


@pytest.fixture
def table(tmp_path) -> Table:
    return open_table("table4_dgad", parameters(tmp_path))


def right(hits: int) -> str:
    """Flags of twenty images, the first ones right."""
    return "1" * hits + "0" * (20 - hits)


def with_cells(table, *cells):
    """The table with these cells."""
    changed = replace(table)
    vars(changed)["cells"] = cells
    return changed


def result(row: str, hits: int, teacher: str = "", seed: int = 0) -> Result:
    accuracies = tuple(Accuracy(AttackSpec(name, "clean"), hits, 20, right(hits)) for name in COLUMNS)
    return Result("ResNet18", teacher, row, seed, f"{row}{seed}", accuracies)


@pytest.fixture
def results() -> list[Result]:
    teacher = Result("WideResNet-34-10", "", "", 0, "t", result("", 19).accuracies, role="teacher")
    return [result("PGD-AT", 18), result("DGAD", 12, "WideResNet-34-10"), teacher]


def test_reported_measured_and_difference_stand_side_by_side(table, results):
    frame = compare(table, results).frame.set_index(["row", "column"])
    cell = frame.loc[("DGAD", "PGD")]
    assert (cell.reported, cell.measured, cell.k, cell.n) == (55.29, 60.0, 12, 20)
    assert cell.difference == pytest.approx(60.0 - 55.29)
    assert (cell.low, cell.high) == pytest.approx(wilson(12, 20))


def test_a_row_without_a_teacher_stands_under_every_teacher_with_one_number(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, teachers=[], rows=["PGD-AT"]))
    frame = compare(table, [result("PGD-AT", 18)]).frame
    assert frame[frame.column == "Clean"].measured.tolist() == [90.0, 90.0]


def test_several_seeds_give_their_mean_and_spread_and_the_interval_of_one_test_set(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, rows=["PGD-AT"], seeds=[0, 1]))
    cell = compare(table, [result("PGD-AT", 18), result("PGD-AT", 16, seed=1)]).frame.iloc[0]
    assert (cell.measured, cell.k, cell.n, cell.seeds) == (85.0, 17, 20, 2)
    assert (cell.low, cell.high) == pytest.approx(wilson(17, 20))
    assert cell.sd == pytest.approx(100 * 0.1 / 2**0.5)


def test_a_reported_mark_is_shared_where_two_sets_of_images_may_differ_so():
    values = [70.0, 69.0, 60.0, 59.5, 40.0, None]
    block = pd.DataFrame({"reported": values, "reported_n": [10_000, 1_000, 10_000, 10_000, 10_000, 10_000]})
    assert _marks_of_reported(block).tolist() == ["best", "best", "second", "second", "", ""]


def test_a_measured_mark_is_shared_by_what_a_paired_test_cannot_tell_from_the_leader():
    flags = [[right(18)], [right(17)], [right(9)], []]
    block = pd.DataFrame({"measured": [90.0, 85.0, 45.0, None], "flags": flags})
    assert _marks_of_measured(block).tolist() == ["best", "best", "second", ""]


def test_the_caption_names_the_scale_the_data_and_the_stand_ins(table, results):
    caption = compare(table, results).caption
    for part in (
        "scale 'quick'",
        "digits",
        "ResNet8-w8 for ResNet18",
        "says nothing about the paper",
        "† equal to AdaAD's table",
    ):
        assert part in caption, part


def test_the_caption_says_what_pgd_leaves_of_the_images_that_reduced_columns_have(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path))
    flags = {"PGD-AT": "1" * 5 + "0" * 15, "DGAD": "10110" + "1" * 12 + "000"}

    def row(name: str) -> Result:
        columns = [(replace(column, images=0), flags[name][: column.images or 20]) for column in table.columns]
        return replace(result(name, 1), accuracies=tuple(Accuracy(c, f.count("1"), len(f), f) for c, f in columns))

    said = (
        "PGD leaves 66.7 to 100.0 % of the first 3, 50.0 to 80.0 % of the first 10 right, and 25.0 to 75.0 % of all 20."
    )
    assert said in compare(table, [row("PGD-AT"), row("DGAD")]).caption
    assert "leaves 100.0 % of the first 3" in compare(table, [row("PGD-AT")]).caption
    assert "easier" not in compare(table, []).caption
    same = [replace(a, n=20, flags=flags["DGAD"]) for a in row("DGAD").accuracies]
    assert "easier" not in compare(table, [replace(row("DGAD"), accuracies=tuple(same))]).caption


def test_the_caption_and_the_teachers_table_name_the_teachers_own_method(tmp_path):
    table = open_table("table8_dgad", parameters(tmp_path, students=[], teachers=[]))
    teacher = Result("ResNet18 (TRADES)", "", "", 0, "t", result("", 19).accuracies, role="teacher")
    assert "Teachers trained here by TRADES: ResNet18 (TRADES)." in compare(table, []).caption
    assert report.teachers_table(table, [teacher])["weights"].tolist() == ["trained here by TRADES"]


def test_a_caption_speaks_of_reported_numbers_only_where_there_are_some(tmp_path):
    for name, there in (("fig2_dgad", False), ("fig4_las_at", False), ("table1_las_at", True)):
        table = open_table(name, parameters(tmp_path, rows=[], students=[], teachers=[]))
        caption = compare(table, []).caption
        assert ("Reported:" in caption, "10,000" in caption, "The difference" in caption) == (there, there, there)


def test_headings_say_which_columns_are_reduced(table):
    assert table.headings()["AA"] == "AA (APGD-CE only, 3 images)"
    assert table.headings()["CW2"] == "CW2 (5 steps, 10 images)"
    assert table.headings()["PGD"] == "PGD (2 steps, 20 images)"


def test_quoted_rows_are_marked_and_others_are_not(table, results):
    html = compare(table, results)._repr_html_()
    assert "82.95†" in html
    assert "87.58†" not in html
    assert "87.58" in html


def test_equal_results_are_saved_as_equal_bytes_in_five_formats(table, results, tmp_path):
    first = save(compare(table, results), tmp_path / "a")
    second = save(compare(table, results), tmp_path / "b")
    assert [path.suffix for path in first] == [".csv", ".md", ".tex", ".html", ".json"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_saved_formats_hold_the_numbers_and_their_provenance(table, results, tmp_path):
    csv, md, tex, html, js = save(compare(table, results), tmp_path)
    assert len(pd.read_csv(csv)) == 2 * 5
    assert "**90.0 [" in md.read_text()
    assert r"\textbf{90.0 [" in tex.read_text()
    assert "†" not in tex.read_text()
    assert "font-weight: bold" in html.read_text()
    saved = json.loads(js.read_text())
    assert saved["provenance"]["data_sha256"] == table.data.sha256
    assert saved["cells"][0]["k"] == 18


def test_figures_are_saved_as_equal_bytes(table, results, tmp_path):
    comparison = compare(table, results)
    paths = [
        figures.save(figures.robust_against_clean(table, comparison, results, "PGD"), "figure", tmp_path / name)
        for name in ("a", "b")
    ]
    assert [p.suffix for p in paths[0]] == [".png", ".pdf"]
    assert [p.read_bytes() for p in paths[0]] == [p.read_bytes() for p in paths[1]]


def test_the_lead_is_recomputed_over_the_true_next_best(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, rows=[], students=[], teachers=[]))
    leads = gains(table, compare(table, [])).set_index(["student", "teacher", "column"])
    wrong = leads.loc[("MobileNetV2", "WideResNet-34-20", "FGSM")]
    assert (wrong["printed lead"], wrong["reported lead"], wrong["over (reported)"]) == (3.49, 2.91, "IAD")
    assert leads.loc[("MobileNetV2", "WideResNet-34-20", "Clean"), "reported lead"] == 1.51


def test_the_lead_is_empty_where_a_row_or_a_rival_is_missing(tmp_path):
    for rows in (["DGAD"], ["PGD-AT", "TRADES"], ["DGAD", "DGAD (code)"]):
        table = open_table("table4_dgad", parameters(tmp_path, rows=rows))
        leads = gains(table, compare(table, []))
        assert leads["reported lead"].isna().all()
        assert leads["measured lead"].isna().all()


def test_a_lead_is_read_off_for_any_pair_of_rows_and_left_out_where_one_is_missing(tmp_path):
    table = open_table("table2_las_at", parameters(tmp_path, rows=["AWP", "LAS-AWP"], students=[], teachers=[]))
    gained = report.versus(compare(table, []), [("LAS-AWP", "AWP"), ("LAS-AWP", "MART")]).loc["WideResNet-34-10"]
    assert gained.loc[("LAS-AWP over AWP", "reported"), "AA"] == "+1.62 ± 1.4"
    assert set(gained.loc[("LAS-AWP over AWP", "measured")]) == {"–"}
    assert set(gained.loc[("LAS-AWP over MART", "reported")]) == {"–"}


def test_a_pair_of_rows_that_stands_in_one_block_has_no_line_in_the_others(tmp_path):
    table = open_table("table3_dynat", parameters(tmp_path, rows=[], students=[], teachers=[]))
    gained = report.versus(compare(table, []), [("DYNAT-Inner-GAIRAT (WRN)", "GAIRAT (WRN)")])
    assert {student for student, _, _ in gained.index} == {"WideResNet-34-10"}


def test_a_difference_that_vanishes_in_its_errors_is_shown_with_them(table):
    gained = report.versus(compare(table, [result("PGD-AT", 18), result("DGAD", 12)]), [("DGAD", "PGD-AT")])
    assert gained.loc[("ResNet18", "DGAD over PGD-AT", "measured"), "PGD"] == "-30.00 ± 20.1"


def test_where_there_are_several_teachers_a_pair_is_compared_under_each(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, rows=["PGD-AT", "DGAD"], teachers=[]))
    small, big = table.teacher_names
    found = [result("PGD-AT", 18), result("DGAD", 12, small), result("DGAD", 20, big)]
    comparison = compare(table, found)
    gained = report.versus(comparison, [("DGAD", "PGD-AT")])["PGD"]
    assert gained["ResNet18", small, "DGAD over PGD-AT", "measured"].startswith("-30.00")
    assert gained["ResNet18", big, "DGAD over PGD-AT", "measured"].startswith("+10.00")
    printed = comparison.frame.set_index(["student", "teacher", "row", "column"])["reported"]
    for teacher in (small, big):
        lead = printed["ResNet18", teacher, "DGAD", "PGD"] - printed["ResNet18", teacher, "PGD-AT", "PGD"]
        assert gained["ResNet18", teacher, "DGAD over PGD-AT", "reported"].startswith(f"{lead:+.2f}")


def test_what_was_measured_under_another_protocol_is_saved_with_its_settings(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, rows=["PGD-AT"], protocol="common"))
    other = Accuracy(replace(table.cells[0].columns[-1], name="AA (common)"), 7, 20, right(7))
    mine = replace(result("PGD-AT", 18), accuracies=(*result("PGD-AT", 18).accuracies, other))
    *_, path = save(compare(table, [mine]), tmp_path)
    assert path.name == "table4_dgad_common.csv"
    (line,) = pd.read_csv(path).to_dict("records")
    assert (line["column"], line["k"], line["n"], line["protocol"]) == ("AA", 7, 20, "common")
    assert line["attack"].startswith("AutoAttack")
    assert line["radius"] == "38/255"


def test_numbers_are_found_where_the_papers_columns_are_the_rows_and_where_its_rows_are_a_list(tmp_path):
    first = reported_table(open_table("table1_las_at", parameters(tmp_path, rows=[], students=[], teachers=[])))
    assert first.loc[("ResNet18", "", "k=40")].tolist() == [82.3, 54.29]
    fifth = reported_table(open_table("table5_las_at", parameters(tmp_path, rows=[], students=[], teachers=[])))
    assert fifth.loc[("CIFAR100", "", "LAS-AWP (WRN-34-20)")].tolist() == [67.31, 31.92]


@pytest.mark.parametrize(("every", "ratio"), [(1, 4.85), (10, 1.74), (20, 1.57), (40, 1.48), (60, 1.45)])
def test_the_counted_cost_is_within_an_eighth_of_the_papers_times(every, ratio):
    printed = report.paper("las_at")["table1"]
    minutes = dict(zip(printed["columns"], printed["rows"]["Time(min)"], strict=True))
    counted = report.las_at_cost(every)
    assert counted == pytest.approx(ratio, abs=0.006)
    assert counted == pytest.approx(minutes[f"k={every}"] / minutes["PGD-AT"], rel=0.14)


def test_leaving_done_images_and_weight_gradients_out_makes_the_strategy_nearly_free():
    assert report.las_at_passes(steps=9, **report.HERE) == (23, 22, 47)
    assert report.las_at_passes() == (33, 46, 114)
    assert report.las_at_cost(40, steps=9, **report.HERE) == pytest.approx(1.0, abs=0.02)


def test_times_are_the_runs_own_over_pgd_ats(tmp_path):
    table = open_table("table1_las_at", parameters(tmp_path, rows=["PGD-AT", "k=1"], students=[], teachers=[]))
    made = [replace(result(row, 18), made=({"seconds": s},)) for row, s in (("PGD-AT", 10.0), ("k=1", 25.0))]
    times = report.times(table, made)
    assert times.loc["k=1"].tolist() == [1378, 5.28, 4.85, 3.0, 25.0, 2.5]
    assert report.times(table, [])["measured"].isna().all()


def test_times_are_the_mean_of_the_seeds_and_empty_for_what_the_count_does_not_model(tmp_path):
    table = open_table("table1_las_at", parameters(tmp_path, rows=["PGD-AT", "k=1"], students=[], teachers=[]))
    given = GivenWeights("ResNet8-w8", "0" * 64)
    cat = replace(table.cells[1].network, strategy=STRATEGIES["cat"])
    for network in (given, cat):
        table = with_cells(table, table.cells[0], replace(table.cells[1], network=network))
        seeds = [("PGD-AT", 0, 10.0), ("PGD-AT", 1, 30.0), ("k=1", 0, 40.0)]
        made = [replace(result(row, 18, seed=seed), made=({"seconds": s},)) for row, seed, s in seeds]
        times = report.times(table, made)
        assert times["measured, s"].tolist() == [20.0, 40.0]
        assert times.loc["k=1"].filter(like="counted").isna().all()


def test_histories_are_named_by_row_and_by_seed_where_there_are_several_and_given_weights_have_none(tmp_path):
    rows = ["PGD-AT", "k=1"]
    for seeds, names in (([3], rows), ([0, 1], [f"{row}, seed {seed}" for row in rows for seed in (0, 1)])):
        table = open_table("table1_las_at", parameters(tmp_path, rows=rows, students=[], teachers=[], seeds=seeds))
        told = report.histories(table)
        assert list(told) == names
        assert list(told.values()) == [
            table.workspace.store.folder(c.network.digest) / "history.json" for c in table.cells
        ]
    first = replace(table.cells[0], network=GivenWeights("ResNet8-w8", "0" * 64))
    assert list(report.histories(with_cells(table, first, *table.cells[1:]))) == names[1:]


def test_the_steps_of_strategy_networks_are_counted_for_those_that_learn(tmp_path):
    rows = ["PGD-AT", "k=1", "k=10", "Frozen"]
    table = open_table("table1_las_at", parameters(tmp_path, rows=rows, students=[], teachers=[]))
    assert report.strategy_steps(table) == {"k=1": 6, "k=10": 0}  # 48 images, batches of 16, two epochs


HISTORY = [
    {"strategy": {"chosen": {"epsilon": {str(1 / 255): 3, str(2 / 255): 1}, "steps": {"3.0": 4}}, "reward": None}},
    {"strategy": {"chosen": {"epsilon": {str(1 / 255): 0, str(2 / 255): 4}, "steps": {"3.0": 4}}, "reward": 1.5}},
]


def test_what_a_strategy_picked_is_told_for_the_first_and_the_last_epoch(tmp_path):
    (tmp_path / "history.json").write_text(json.dumps(HISTORY))
    first, last = report.picked({"run": tmp_path / "history.json"}).to_dict("records")
    assert (first["mean"], first["entropy"], last["mean"], last["entropy"]) == (1.25, 0.562, 2.0, 0)
    assert (last["entropy if uniform"], last["reward"]) == (0.693, 1.5)


def test_trainings_that_pick_nothing_from_options_are_left_out_of_what_was_picked(tmp_path):
    plain, cat = [{"epoch": 1, "score": 1.0}], [{"epoch": 1, "strategy": {"level": 2}}]
    for name, rows in (("PGD-AT", plain), ("CAT", cat), ("learned", HISTORY)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    told = {name: tmp_path / f"{name}.json" for name in ("PGD-AT", "CAT", "learned")}
    assert set(report.picked(told)["run"]) == {"learned"}
    assert [axis.get_title() for axis in figures.picks(told).axes if axis.get_title()] == ["learned"]
    none = {name: told[name] for name in ("PGD-AT", "CAT")}
    assert report.picked(none).empty
    assert not figures.picks(none).axes


def test_a_sweep_draws_rows_without_a_number_as_levels(tmp_path):
    for rows, levels in (
        (["PGD-AT", "k=1", "k=10", "Frozen"], ["PGD-AT", "Frozen"]),
        (["PGD-AT", "Frozen"], ["PGD-AT", "Frozen"]),
    ):
        table = open_table("table1_las_at", parameters(tmp_path, rows=rows, students=[], teachers=[]))
        measured = [
            replace(result(row, 9 + i), accuracies=tuple(Accuracy(c, 9 + i, 20, right(9 + i)) for c in table.columns))
            for i, row in enumerate(rows)
        ]
        figure = figures.sweep(compare(table, measured), line="PGD-AT", axis="k", label="LAS-AT")
        named = figure.axes[0].get_legend_handles_labels()[1]
        assert sorted(named) == sorted(levels + ["LAS-AT"] * (len(rows) > 2))


def test_the_figures_of_a_strategy_are_drawn_from_a_history_also_without_rewards(tmp_path):
    for name, rows in (("learned", HISTORY), ("random", HISTORY[:1])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    told = {name: tmp_path / f"{name}.json" for name in ("learned", "random")}
    for setting in ("epsilon", "steps"):
        assert figures.save(figures.picks(told, setting), setting, tmp_path)[1].stat().st_size
    shares = {"before": {"steps": torch.tensor([0.5, 0.5])}, "after": {"steps": torch.tensor([0.1, 0.9])}}
    assert figures.save(figures.policies(shares, {"steps": (3.0, 4.0)}), "policies", tmp_path)[1].stat().st_size


def test_bars_stand_for_every_row_and_column(table, results):
    (axis,) = figures.bars(compare(table, results)).axes
    assert len(axis.patches) == 2 * len(COLUMNS)


def test_the_caption_names_the_stand_ins_of_models_that_rows_name_and_all_data(tmp_path):
    table = open_table("table5_las_at", parameters(tmp_path, rows=[], students=[], teachers=[]))
    caption = compare(table, []).caption
    for part in ("WideResNet-10-1-silu for", "ResNet8-w8-guide for", "ResNet8-w8 for ResNet18", "digits, digits_b"):
        assert part in caption, part


def test_provenance_is_that_of_the_results_and_not_of_the_reader(table, results):
    made = {"commit": "abc", "device": "a GPU", "packages": {"torch": "9"}, "threads": 3}
    made |= {"python": "3", "uncommitted_changes": False, "tf32": True}
    facts = compare(table, [replace(result, made=(made,)) for result in results]).provenance
    assert (facts["commit"], facts["device"]) == (["abc"], ["a GPU"])


def test_the_caption_names_what_was_replaced_and_who_trained_the_teachers(table, results):
    caption = compare(table, results).caption
    assert (
        "Settings replaced: attack_steps, columns, held_out, sanity_images, schedules, test_images, train_images."
        in caption
    )
    assert "Teachers trained here by PGD-AT: WideResNet-34-10." in caption


def test_the_reported_table_is_the_papers(table):
    reported = reported_table(table)
    assert reported.loc[("ResNet18", "WideResNet-34-10", "DGAD")].tolist() == [87.58, 61.72, 55.29, 78.36, 50.59]


def test_the_floor_sets_the_undefended_student_beside_the_weakest_row(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path))
    columns = [AttackSpec("Clean", "clean"), AttackSpec("PGD-20", "pgd", steps=20)]

    def row(name: str, digest: str, *hits: int) -> Result:
        accuracies = tuple(Accuracy(c, k, 20, right(k)) for c, k in zip(columns, hits, strict=True))
        return Result("ResNet18", "", name, 0, digest, accuracies, role="control" if name == "Natural" else "cell")

    mine = [row("PGD-AT", table.cells[0].network.digest, 19, 15), row("DGAD", table.cells[1].network.digest, 18, 14)]
    shown = report.undefended_control(table, [*mine, row("Natural", "n", 20, 1)]).set_index("attack")
    assert shown.loc["PGD-20"].tolist() == ["ResNet18", 5.0, "DGAD", 70.0]


def test_comparing_no_pair_of_rows_gives_an_empty_table_with_the_columns(table, results):
    frame = report.versus(compare(table, results), [])
    assert frame[frame.index.get_level_values(2) == "reported"].droplevel(2).empty
    assert list(frame.columns) == [column.name for column in table.columns]
