import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from small import parameters

from lib import report
from lib.evaluate import Accuracy, AttackSpec, Finding, wilson
from lib.experiment.parameters import Parameters
from lib.experiment.planning import Result
from lib.experiment.table import Table, open_table
from lib.report import compare, figures, gains, save
from lib.report.differences import marks

COLUMNS = ("Clean", "FGSM", "PGD", "CW2", "AA")


pytestmark = pytest.mark.usefixtures("nothing_kept")


@pytest.fixture
def table(tmp_path) -> Table:
    return open_table("table4_dgad", parameters(tmp_path))


def whole(name: str, tmp_path, **changes) -> Table:
    """A table with all of its rows, students and teachers, unless the changes say other."""
    return open_table(name, parameters(tmp_path, **{"rows": [], "students": [], "teachers": [], **changes}))


def right(hits: int) -> str:
    """Flags of twenty images, the first ones right."""
    return "1" * hits + "0" * (20 - hits)


def result(row: str, hits: int, teacher: str = "", seed: int = 0) -> Result:
    accuracies = tuple(Accuracy(AttackSpec(name, "clean"), hits, 20, right(hits)) for name in COLUMNS)
    return Result("ResNet18", teacher, row, seed, f"{row}{seed}", accuracies)


def teacher(name: str) -> Result:
    return Result(name, "", "", 0, "t", result("", 19).accuracies, role="teacher")


def attacked(table: Table, row: str, hits: int) -> Result:
    """A row under the table's own columns, without a teacher."""
    return replace(result(row, hits), accuracies=tuple(Accuracy(c, hits, 20, right(hits)) for c in table.columns))


@pytest.fixture
def results() -> list[Result]:
    return [result("PGD-AT", 18), result("DGAD", 12, "WideResNet-34-10"), teacher("WideResNet-34-10")]


def test_a_difference_stands_only_where_the_data_are_the_papers(table, results):
    assert "difference" not in compare(table, results).frame
    at_gpu = replace(table, parameters=replace(table.parameters, scale="gpu"))  # its name alone
    comparison = compare(at_gpu, results)
    cell = comparison.frame.set_index(["row", "column"]).loc[("DGAD", "PGD")]
    assert cell.difference == pytest.approx(60.0 - 55.29)
    assert "+4.7" in comparison.to_html()
    assert "says nothing about the paper" in comparison.notes["Difference"]


def test_reported_and_measured_stand_side_by_side(table, results):
    cell = compare(table, results).frame.set_index(["row", "column"]).loc[("DGAD", "PGD")]
    assert (cell.reported, cell.measured, cell.k, cell.n) == (55.29, 60.0, 12, 20)
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
    assert marks(block, "reported").tolist() == ["best", "best", "", "", "", ""]


def test_a_measured_mark_is_shared_by_what_a_paired_test_cannot_tell_from_the_leader():
    flags = [[right(18)], [right(17)], [right(9)], [right(8)], []]
    block = pd.DataFrame({"measured": [90.0, 85.0, 45.0, 40.0, None], "flags": flags})
    assert marks(block, "measured").tolist() == ["best", "best", "", "", ""]


def test_where_more_than_half_of_a_column_would_be_marked_nothing_is_and_the_table_says_so_once(tmp_path):
    flags = [[right(18)], [right(17)], [right(9)], []]
    block = pd.DataFrame({"measured": [90.0, 85.0, 45.0, None], "flags": flags})
    assert marks(block, "measured").tolist() == ["untold", "untold", "", ""]
    assert marks(block[:1], "measured").tolist() == [""]  # one row is no comparison
    table = open_table("table4_dgad", parameters(tmp_path, rows=["PGD-AT", "TRADES"]))
    alike = compare(table, [result("PGD-AT", 18), result("TRADES", 17)])
    assert alike.verdict == "This scale cannot tell the best from most rows: no measured number is marked."
    assert alike.to_html().count(alike.verdict) == 1
    assert "<b>90.0" not in alike.to_html()
    apart = compare(table, [result("PGD-AT", 18), result("TRADES", 9)])
    assert apart.verdict == ""
    assert "<b>90.0" in apart.to_html()
    mixed = list(result("TRADES", 9).accuracies)
    mixed[0] = replace(mixed[0], k=17, flags=right(17))
    some = compare(table, [result("PGD-AT", 18), replace(result("TRADES", 9), accuracies=tuple(mixed))])
    assert some.verdict == "This scale cannot tell the best from most rows in Clean: nothing is marked there."


def test_the_worst_case_counts_an_image_as_right_that_is_right_under_every_attack_of_the_papers(table, tmp_path):
    flags = {"Clean": right(20), "PGD": "0" * 5 + "1" * 15}
    columns = [column for column in table.columns if column.name != "CW2"]  # it has no radius
    found = tuple(Accuracy(replace(c, images=0), 18, 20, flags.get(c.name, right(18))) for c in columns)
    comparison = compare(table, [replace(result("PGD-AT", 18), accuracies=found)])
    (line,) = comparison.beside.to_dict("records")
    assert (line["row"], line["k"], line["n"], line["flags"]) == ("PGD-AT", 13, 20, ["0" * 5 + "1" * 13 + "00"])
    assert (line["low"], line["high"]) == pytest.approx(wilson(13, 20))
    csv, md, *_, saved, _ = save(comparison, tmp_path)
    assert pd.read_csv(csv).query("column == 'Worst case'").measured.tolist() == [65.0]
    assert "65.0 <small>[" in md.read_text()
    assert json.loads(saved.read_text())["beside"][0]["flags"] == line["flags"]
    assert comparison.notes["Worst case"].startswith("right under all of Clean, FGSM, PGD, AA")


def test_two_lines_stand_above_a_table_and_the_rest_is_folded_and_complete(table, results, tmp_path):
    comparison = compare(table, results)
    title, on = comparison.caption.split("\n")
    assert title == "White-box robustness on CIFAR-10 (DGAD, Table 4), accuracy in %: reported / measured."
    assert on.startswith("Measured at scale quick: scikit-learn's digits")
    above, folded = comparison.to_html().split("</table>", 1)
    assert "AdaAD's" not in above
    for part in ("ResNet8-w8 for ResNet18", "WideResNet-34-10 by PGD-AT", "† equal to AdaAD&#x27;s", "radius 38/255"):
        assert part in folded, part
    assert folded.count("<details>") == folded.count("</details>") == 3
    assert "attack_steps, columns, held_out, sanity_images, schedules, test_images, train_images" in folded
    notes = " ".join(compare(whole("table5_las_at", tmp_path), []).notes.values())
    for part in ("WideResNet-10-1-silu for", "ResNet8-w8-guide for", "ResNet8-w8 for ResNet18", "digits, digits_b"):
        assert part in notes, part


def test_the_sanity_checks_are_open_where_something_fired(table, results):
    fired = [replace(one, findings=(Finding("noise", 2.0, 1.0, "points"),)) for one in results]
    assert "<details open><summary>Sanity checks: something fired" in compare(table, fired).to_html()
    quiet = [replace(one, findings=(Finding("noise", 0.0, 1.0, "points"),)) for one in results]
    assert "<details><summary>No sanity check fired" in compare(table, quiet).to_html()


def test_reported_and_kept_numbers_are_folded_and_every_reported_one_is_there(tmp_path):
    table = whole("table4_dgad", tmp_path)
    comparison = report.reported_and_kept(table)
    assert comparison._repr_html_().startswith("<details><summary>White-box robustness")
    numbers = comparison.frame["reported"].dropna()
    assert len(numbers) == 160
    assert all(f"{number:.2f}" in comparison.to_html() for number in numbers)
    assert comparison.caption.endswith("Nothing is measured here yet.")


def test_the_caption_names_the_settings_that_were_replaced_and_says_when_the_data_is_another(tmp_path):
    given = Parameters(outputs=str(tmp_path), device="cpu")
    (row,), caption = [result("PGD-AT", 1)], {}
    for name, settings in {"none": {}, "two": {"attack_steps": 2, "epsilon_255": 4.0, "execution": "plain"}}.items():
        caption[name] = compare(open_table("table4_dgad", replace(given, settings=settings)), [row]).caption
    assert "replaced" not in caption["none"]
    assert " (replaced: attack_steps, epsilon_255), " in caption["two"]
    settings = {"datasets": {"CIFAR10": "digits"}}
    other = compare(open_table("table4_dgad", replace(given, settings=settings)), [row]).caption
    assert "on other data than its own, radius" in other
    assert " (replaced: datasets), " in other


def on_fewer_images(table: Table, *names: str) -> list[Result]:
    """Rows whose columns are on 3, 10 and 20 images."""
    flags, results = {"PGD-AT": "1" * 5 + "0" * 15, "DGAD": "10110" + "1" * 12 + "000"}, []
    for name in names:
        columns = [(replace(column, images=0), flags[name][: column.images or 20]) for column in table.columns]
        accuracies = tuple(Accuracy(c, f.count("1"), len(f), f) for c, f in columns)
        results.append(replace(result(name, 1), accuracies=accuracies))
    return results


def test_beside_a_column_on_fewer_images_stands_the_strongest_attack_on_the_same_ones(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path))
    comparison = compare(table, on_fewer_images(table, "PGD-AT", "DGAD"))
    found = comparison.beside.set_index(["row", "column"])["measured"]
    assert found["PGD-AT", "PGD, first 3"] == 100.0
    assert found["DGAD", "PGD, first 3"] == pytest.approx(200 / 3)
    assert (found["PGD-AT", "PGD, first 10"], found["DGAD", "PGD, first 10"]) == (50.0, 80.0)
    assert "PGD, first 3" in comparison._repr_html_()
    (row,) = on_fewer_images(table, "DGAD")
    same = [replace(a, n=20, flags="10110" + "1" * 12 + "000") for a in row.accuracies]
    alone = compare(table, [replace(row, accuracies=tuple(same))])
    assert [*alone.beside["column"]] == ["Worst case"]


def test_a_block_whose_data_has_fewer_images_is_not_counted_over_another_blocks_number(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, students=["ResNet18", "MobileNetV2"]))
    (few,) = on_fewer_images(table, "DGAD")
    few = replace(
        few, student="MobileNetV2", accuracies=tuple(replace(a, k=4, n=5, flags="10111") for a in few.accuracies)
    )
    beside = compare(table, [*on_fewer_images(table, "DGAD"), few]).beside.set_index(["student", "row", "column"])
    measured = beside.loc["MobileNetV2"].loc["DGAD"]["measured"]
    assert measured["PGD, first 3"] == pytest.approx(200 / 3)
    assert pd.isna(measured["PGD, first 10"])


def test_so_it_does_beside_kept_accuracies_whose_images_need_not_be_the_measured_ones(tmp_path, monkeypatch):
    table = open_table("table4_dgad", parameters(tmp_path))
    monkeypatch.setattr("lib.experiment.kept.results", lambda table: on_fewer_images(table, "PGD-AT"))
    monkeypatch.setattr(sys.modules["lib.report.compare"], "_behind_kept", lambda results: "Kept: here.")
    alone = report.reported_and_kept(table)
    kept = alone.beside.set_index(["row", "column"])["kept"]
    assert (kept["PGD-AT", "PGD, first 3"], kept["PGD-AT", "PGD, first 10"]) == (100.0, 50.0)
    head, body = alone.to_html().split("</thead>", 1)
    assert head.endswith("PGD, first 10</div><span class=kept>kept</span></th></tr>")
    assert "<td><span class=kept>50.0<small>[23.7,<br>76.3]</small></span></td></tr>" in body
    both = compare(table, on_fewer_images(table, "PGD-AT", "DGAD")).beside.set_index(["row", "column"])
    assert both.loc[("PGD-AT", "PGD, first 3"), ["kept", "measured"]].tolist() == [100.0, 100.0]
    assert pd.isna(both.loc[("DGAD", "PGD, first 3"), "kept"])
    save(alone, tmp_path)
    assert "50.0 <small>[23.7, 76.3]" in (tmp_path / "tables" / "table4_dgad.md").read_text()


def test_a_table_speaks_of_reported_numbers_only_where_there_are_some(tmp_path):
    for name, there in (("fig2_dgad", False), ("fig4_las_at", False), ("table1_las_at", True)):
        comparison = compare(whole(name, tmp_path), [])
        assert ("Reported" in comparison.notes, "reported" in comparison.caption) == (there, there)


def test_headings_say_which_columns_are_reduced(table):
    assert table.headings()["AA"] == "AA (APGD-CE only, 3 images)"
    assert table.headings()["CW2"] == "CW2 (5 steps, 10 images)"
    assert table.headings()["PGD"] == "PGD (2 steps, 20 images)"


def test_quoted_rows_are_marked_and_others_are_not(table, results):
    html = compare(table, results)._repr_html_()
    assert "82.95†" in html
    assert "87.58†" not in html
    assert "87.58" in html


def test_equal_results_are_saved_as_equal_bytes_in_five_formats_with_notes_beside_them(table, results, tmp_path):
    first, second = (save(compare(table, results), tmp_path / name) for name in ("a", "b"))
    names = ["table4_dgad" + end for end in (".csv", ".md", ".tex", ".html", ".json", "_notes.md")]
    assert [path.name for path in first] == names
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_saved_formats_hold_the_numbers_and_their_provenance(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, rows=["PGD-AT", "TRADES"]))
    comparison = compare(table, [result("PGD-AT", 18), result("TRADES", 9)])
    csv, md, tex, html, js, notes = save(comparison, tmp_path)
    assert len(pd.read_csv(csv)) == 2 * 5
    assert "82.95† / **90.0** <small>[" in md.read_text()
    assert r"82.95$^\dagger$ / \textbf{90.0} {\tiny [" in tex.read_text()
    assert "& AA \\\\" in tex.read_text()
    assert "AA (APGD-CE only, 3 images)" in comparison.notes["Reduced"]
    assert "<b>90.0</b><small>[" in html.read_text()
    saved = json.loads(js.read_text())
    assert saved["provenance"]["data_sha256"] == table.data.sha256
    assert saved["cells"][0]["k"] == 18
    assert saved["notes"] == comparison.notes
    for text in comparison.notes.values():
        assert text in notes.read_text()
        assert text not in md.read_text() + tex.read_text()
    assert table.data.sha256 in notes.read_text()


def test_latex_gets_no_character_that_it_would_read_as_a_command(tmp_path):
    table = open_table("table1_dynat", parameters(tmp_path, rows=["AWP"], students=[], teachers=[]))
    tex = save(compare(table, []), tmp_path)[2].read_text()
    assert r"C\&W" in tex
    assert r"56.03$^\dagger$" in tex
    assert not any(one in tex.replace("\\" + one, "") for one in "%_#†±")


def test_provenance_is_that_of_the_results_and_not_of_the_reader(table, results):
    made = {"commit": "abc", "device": "a GPU", "packages": {"torch": "9"}, "threads": 3, "execution": "fast"}
    facts = compare(table, [replace(result, made=(made,)) for result in results]).provenance
    assert (facts["commit"], facts["device"], facts["execution"]) == (["abc"], ["a GPU"], ["fast"])


def test_the_lead_is_recomputed_over_the_true_next_best(tmp_path):
    table = whole("table4_dgad", tmp_path)
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


def test_a_difference_is_read_off_for_any_pair_of_rows_and_left_out_where_one_is_missing(tmp_path):
    comparison = compare(whole("table2_las_at", tmp_path, rows=["AWP", "LAS-AWP"]), [])
    gained = report.versus(comparison, [("LAS-AWP", "AWP"), ("LAS-AWP", "MART")]).loc["WideResNet-34-10"]
    assert gained.loc[("LAS-AWP over AWP", "reported"), "AA"] == "+1.62 ± 1.4"
    assert set(gained.loc[("LAS-AWP over AWP", "measured")]) == {"–"}
    assert len(gained) == 2
    assert report.versus(comparison, [("LAS-AWP", "AWP")], "reported").loc["WideResNet-34-10"]["AA"].tolist() == [
        "+1.62 ± 1.4"
    ]
    none = report.versus(comparison, [], "reported")
    assert none.empty
    assert list(none.columns) == list(comparison.headings)


def test_a_pair_of_rows_that_stands_in_one_block_has_no_line_in_the_others(tmp_path):
    pairs = [("DYNAT-Inner-GAIRAT (WRN)", "GAIRAT (WRN)")]
    gained = report.versus(compare(whole("table3_dynat", tmp_path), []), pairs)
    assert {student for student, _, _ in gained.index} == {"WideResNet-34-10"}


def test_where_there_are_several_teachers_a_pair_is_compared_under_each(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, rows=["PGD-AT", "DGAD"], teachers=[]))
    small, big = table.teacher_names
    comparison = compare(table, [result("PGD-AT", 18), result("DGAD", 12, small), result("DGAD", 20, big)])
    gained = report.versus(comparison, [("DGAD", "PGD-AT")])["PGD"]
    assert gained["ResNet18", small, "DGAD over PGD-AT", "measured"] == "-30.00 ± 20.1"
    assert gained["ResNet18", big, "DGAD over PGD-AT", "measured"].endswith("(noise)")
    printed = comparison.frame.set_index(["student", "teacher", "row", "column"])["reported"]
    for name in (small, big):
        lead = printed["ResNet18", name, "DGAD", "PGD"] - printed["ResNet18", name, "PGD-AT", "PGD"]
        assert gained["ResNet18", name, "DGAD over PGD-AT", "reported"].startswith(f"{lead:+.2f}")


def test_what_was_measured_under_another_protocol_is_saved_with_its_settings_and_displayed_beside(tmp_path):
    table = open_table("table4_dgad", parameters(tmp_path, rows=["PGD-AT"], protocol="common"))
    own, other = table.columns[-1], replace(table.cells[0].columns[-1], name="AA (common)")
    accuracies = (
        *result("PGD-AT", 18).accuracies[:-1],
        Accuracy(own, 8, 20, right(8)),
        Accuracy(other, 7, 20, right(7)),
    )
    measured = [replace(result("PGD-AT", 18, seed=3), accuracies=accuracies)]
    *_, path = save(compare(table, measured), tmp_path)
    assert path.name == "table4_dgad_common.csv"
    (line,) = pd.read_csv(path).to_dict("records")
    assert (line["column"], line["k"], line["n"], line["protocol"]) == ("AA", 7, 20, "common")
    assert line["attack"].startswith("AutoAttack")
    assert (line["radius"], line["seed"], line["attack seed"]) == ("38/255", 3, 0)
    wide = report.under_both(table, measured)
    assert [name for name, _ in wide.columns] == ["Clean", "FGSM", "AA", "AA"]
    assert [text.split()[0] for text in wide.loc[("ResNet18", "", "PGD-AT", 3)]] == ["90.0", "90.0", "40.0", "35.0"]
    assert report.measurements(table, measured).query("column == 'AA'")["measured"].tolist() == [40.0, 35.0]
    assert {*report.protocols(table)["protocol"]} == {"the paper's", "common"}


def test_the_undefended_student_stands_beside_the_weakest_row(table):
    columns = [AttackSpec("Clean", "clean"), AttackSpec("PGD-20", "pgd", steps=20)]

    def row(name: str, *hits: int) -> Result:
        accuracies = tuple(Accuracy(c, k, 20, right(k)) for c, k in zip(columns, hits, strict=True))
        return replace(result(name, 1), accuracies=accuracies)

    measured = [row("PGD-AT", 19, 15), row("DGAD", 18, 14), replace(row("Natural", 20, 1), role="control")]
    control = report.undefended_control(measured).set_index("attack")
    assert control.loc["PGD-20"].tolist() == ["ResNet18", 5.0, "DGAD", 70.0]


def test_with_several_seeds_the_undefended_control_compares_their_means(table):
    """The last seed alone would call PGD-AT the weakest, at 45 %."""
    hits = {"PGD-AT": (19, 9), "DGAD": (12, 12)}
    measured = [result(row, k, seed=seed) for row, own in hits.items() for seed, k in enumerate(own)]
    measured += [replace(result("Natural", k, seed=seed), role="control") for seed, k in enumerate((1, 4))]
    control = report.undefended_control(measured)
    assert control["attack"].tolist() == list(COLUMNS)
    assert control.iloc[0, 2:].tolist() == [12.5, "DGAD", 60.0]


def test_the_teachers_table_names_the_teachers_own_method(tmp_path):
    table = whole("table8_dgad", tmp_path)
    frame = report.teachers_table(table, [teacher("ResNet18 (TRADES)")])
    assert frame["weights"].tolist() == ["trained here by TRADES"]


def test_figures_are_saved_as_equal_bytes(table, results, tmp_path):
    comparison = compare(table, results)
    paths = [
        figures.save(figures.robust_against_clean(table, comparison, results, "PGD"), "figure", tmp_path / name)
        for name in ("a", "b")
    ]
    assert [p.suffix for p in paths[0]] == [".png", ".pdf"]
    assert [p.read_bytes() for p in paths[0]] == [p.read_bytes() for p in paths[1]]


@pytest.mark.parametrize("rows", [["PGD-AT", "k=1", "k=10", "Frozen"], ["PGD-AT", "Frozen"]])
def test_a_sweep_draws_rows_without_a_number_as_levels(tmp_path, rows):
    table = whole("table1_las_at", tmp_path, rows=rows)
    measured = [attacked(table, row, 9 + i) for i, row in enumerate(rows)]
    figure = figures.sweep(compare(table, measured), line="PGD-AT", axis="k", label="LAS-AT")
    named = figure.axes[0].get_legend_handles_labels()[1]
    assert sorted(named) == sorted(["PGD-AT", "Frozen"] + ["LAS-AT"] * (len(rows) > 2))


def test_bars_stand_for_every_row_and_column_with_the_measured_ones_intervals(tmp_path):
    table = whole("table1_las_at", tmp_path, rows=["PGD-AT", "k=1"])
    comparison = compare(table, [attacked(table, "PGD-AT", 12), attacked(table, "k=1", 15)])
    (axis,) = figures.bars(comparison).axes
    assert [bar.get_height() for bar in axis.patches] == [60.0, 60.0, 75.0, 75.0]
    ends = [segment[:, 1] for lines in axis.collections for segment in lines.get_segments()]
    assert ends[0].tolist() == pytest.approx(wilson(12, 20))
    assert ends[-1].tolist() == pytest.approx(wilson(15, 20))
    (axis,) = figures.bars(comparison, "reported").axes
    assert [bar.get_height() for bar in axis.patches] == [82.56, 53.15, 82.88, 53.71]
    assert not axis.collections


def test_bars_of_several_students_and_teachers_have_a_panel_for_each_with_its_own_numbers(tmp_path):
    table = whole("table4_dgad", tmp_path, rows=["PGD-AT", "DGAD"])
    taught = {teacher: 11 + i for i, teacher in enumerate(table.teacher_names)}
    measured = [attacked(table, "PGD-AT", 10)]
    measured += [replace(attacked(table, "DGAD", hits), teacher=name) for name, hits in taught.items()]
    comparison = compare(table, measured)
    panels = figures.bars(comparison).axes
    assert len(panels) == len(table.students) * len(table.teacher_names) == 4
    for panel, hits in zip(panels[:2], taught.values(), strict=True):  # the other student was not run
        assert [bar.get_height() for bar in panel.patches] == [50.0] * 5 + [5.0 * hits] * 5
        ends = [segment[:, 1] for lines in panel.collections for segment in lines.get_segments()]
        assert ends[-1].tolist() == pytest.approx(wilson(hits, 20))
    printed = comparison.frame.query("row == 'DGAD'")["reported"].tolist()
    drawn = [bar.get_height() for panel in figures.bars(comparison, "reported").axes for bar in panel.patches[5:]]
    assert drawn == printed


def test_where_nothing_was_measured_the_figures_draw_what_was_reported(tmp_path):
    table = whole("table4_dgad", tmp_path, rows=["PGD-AT", "DGAD"], students=["ResNet18"])
    comparison = compare(table, [])
    axes = figures.robust_against_clean(table, comparison, [], "PGD").axes
    printed = comparison.frame.set_index(["teacher", "row", "column"])["reported"]
    upper, lower = axes[:2], axes[2:]
    assert all(pd.isna(line.get_xdata()).all() for axis in upper for line in axis.lines)
    for axis, teacher in zip(lower, table.teacher_names, strict=True):
        points = [(*line.get_xdata(), *line.get_ydata()) for line in axis.lines]
        assert points == [(printed[teacher, row, "Clean"], printed[teacher, row, "PGD"]) for row in ("PGD-AT", "DGAD")]
    assert not any(bar.get_height() for axis in figures.bars(comparison).axes for bar in axis.patches)
    assert figures.ranked(comparison, "PGD").axes


def test_where_nothing_is_reported_a_figure_has_no_panel_for_it(tmp_path):
    table = whole("compare_papers", tmp_path, rows=["PGD-AT", "TRADES"])
    comparison = compare(table, [attacked(table, "PGD-AT", 12), attacked(table, "TRADES", 15)])
    (axis,) = figures.robust_against_clean(table, comparison, [], "AA").axes
    assert axis.get_ylabel().startswith("measured AA")


def test_a_log_has_what_was_written_where_a_page_has_html(table, results):
    comparison = compare(table, results)
    shown = report.finish(table, comparison, a_figure=figures.bars(comparison))
    assert repr(shown).startswith("Written: ")
    written = repr(shown).removeprefix("Written: ").removesuffix(".").split(", ")
    assert [Path(name).name for name in written[-2:]] == ["a_figure.png", "a_figure.pdf"]
    assert all(Path(name).is_file() for name in written)
    assert written[0] in shown.data
    source = report.source(report.finish)
    assert repr(source) == "The source of lib.report.render.finish."
    assert "save_figure" in source.data
