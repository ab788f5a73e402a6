"""What a run with a guide tells of every epoch: it is right, it costs the training nothing, and figures can read it."""

import json

import pandas as pd
import pytest
import torch
from small import parameters

from lib import report
from lib.data import hold_out
from lib.errors import UserError
from lib.evaluate import AttackSpec, accuracy
from lib.experiment import networks, runs
from lib.experiment.table import open_table
from lib.report import figures


def opened(outputs, name, *rows):
    return open_table(name, parameters(outputs, rows=list(rows), students=[], teachers=[]))


def history_of(table, cell):
    return json.loads((table.workspace.store.folder(cell.network.digest) / "history.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    table = opened(tmp_path_factory.mktemp("outputs"), "fig3_dynat", "DYNAT")
    runs.make(table.cells[0].network, table.workspace)
    return table


def test_the_last_epochs_numbers_are_those_of_the_networks_it_left(made):
    (cell,) = made.cells
    seen, unseen = hold_out(made.workspace.dataset(cell.data).train, 12)
    target = networks.network(cell.network, cell.data, made.workspace, "last")
    guide = networks.network(cell.network, cell.data, made.workspace, "guide")
    told = history_of(made, cell)[-1]["followed"]
    for name, net in (("target", target), ("guide", guide)):
        for part, split in (("train", seen.take(slice(0, 12))), ("unseen", unseen)):
            right = net(split.images).argmax(1) == split.labels
            assert told[name][part] == pytest.approx(100 * right.float().mean().item()), (name, part)
    e = cell.network.epsilon
    assert told["target"]["PGD-20"] == accuracy(target, unseen, AttackSpec("", "pgd", e, e / 4, 20)).percent


def test_the_share_of_right_labels_is_that_of_the_epochs_own_batches(made):
    training = runs.start(made.cells[0].network, made.workspace)
    right, batches = [], []
    guide = training.guide
    guide.register_forward_hook(lambda module, inputs, logits: batches.append(logits.detach().argmax(1)))
    step = training.train_step

    def listening(x, y):
        batches.clear()
        terms = step(x, y)
        right.append((batches[0] == y).float().mean())
        return terms

    training.train_step = listening
    training.epoch()
    assert len(right) == 3
    torch.testing.assert_close(torch.stack(training.labels_right), torch.stack(right))
    told = history_of(made, made.cells[0])[0]["followed"]["label"]
    assert told == pytest.approx(100 * torch.stack(right).mean().item())


def test_following_moves_nothing_that_the_training_depends_on(made):
    followed, alone = (runs.start(made.cells[0].network, made.workspace) for _ in range(2))
    alone.follow = None
    for training in (followed, alone):
        training.run()
    for net, other in ((followed.student, alone.student), (followed.guide, alone.guide)):
        assert all(value.equal(other.state_dict()[key]) for key, value in net.state_dict().items())
    assert followed.generator.get_state().equal(alone.generator.get_state())
    assert followed.guide.training


def test_a_guide_that_was_trained_beforehand_is_followed_and_a_run_without_any_is_not(tmp_path):
    table = opened(tmp_path, "fig2_d2r", "LBGAT (guide frozen)")
    for spec in (*table.teachers.values(), table.cells[0].network):
        runs.make(spec, table.workspace)
    told = [row["followed"] for row in history_of(table, table.cells[0])]
    assert told[0]["guide"] == told[-1]["guide"]
    assert told[0]["label"] is None
    plain = opened(tmp_path, "table1_dynat", "PGD-AT")
    runs.make(plain.cells[0].network, plain.workspace)
    assert "followed" not in history_of(plain, plain.cells[0])[0]
    with pytest.raises(UserError, match="has no guide"):
        networks.network(plain.cells[0].network, plain.data, plain.workspace, "guide")


def test_a_guide_of_a_run_that_is_not_there_is_refused(tmp_path):
    table = opened(tmp_path, "fig3_dynat", "DYNAT")
    with pytest.raises(UserError, match="has not been made yet"):
        networks.network(table.cells[0].network, table.data, table.workspace, "guide")


def test_the_curves_are_read_from_a_history_and_drawn_also_where_a_run_was_not_followed(made, tmp_path):
    path = made.workspace.store.folder(made.cells[0].network.digest) / "history.json"
    (tmp_path / "plain.json").write_text(json.dumps([{"epoch": 1, "score": 50.0}, {"epoch": 2, "score": 60.0}]))
    curves = report.followed({"DYNAT": path, "PGD-AT": tmp_path / "plain.json"})
    assert curves.groupby("run").size().to_dict() == {"DYNAT": 2, "PGD-AT": 2}
    assert curves[curves.run == "PGD-AT"]["target under PGD-10"].tolist() == [50.0, 60.0]
    assert curves[curves.run == "DYNAT"].notna().all(axis=None)
    figure = figures.followed(
        curves, {"a": ["DYNAT", "PGD-AT"], "b": ["DYNAT"]}, ["label right", "guide, train images"]
    )
    assert len(figure.axes) == 4
    drawn = [sum(len(line.get_xdata()) > 0 for line in axis.lines) for axis in figure.axes]
    assert drawn == [2, 2, 1, 1]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["DYNAT", "PGD-AT"]
    assert [axis.get_ylabel() for axis in figure.axes[:2]] == ["labels right, %", "accuracy, %"]
    assert figures.history(path).axes


def test_no_two_of_more_than_ten_curves_look_the_same():
    runs_drawn = [f"run {i}" for i in range(12)]
    curves = pd.DataFrame([{"run": run, "epoch": 1, "label right": 50.0} for run in runs_drawn])
    (axis,) = figures.followed(curves, {"": runs_drawn}, ["label right"]).axes
    axis.get_legend().remove()
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == 12


def test_the_seeds_of_a_row_are_one_curve_of_their_mean_in_a_band_from_the_lowest_to_the_highest():
    values = {"DYNAT, seed 0": (40.0, 50.0), "DYNAT, seed 1": (60.0, 90.0), "LBGAT, seed 0": (10.0, 20.0)}
    records = [{"run": run, "epoch": e, "label right": v} for run, own in values.items() for e, v in enumerate(own, 1)]
    (axis,) = figures.followed(pd.DataFrame(records), {"": [*values]}, ["label right"]).axes
    curves = [line.get_xydata().tolist() for line in axis.lines if len(line.get_xdata())]
    assert curves == [[[1, 50.0], [2, 70.0]], [[1, 10.0], [2, 20.0]]]
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (40.0, 90.0)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["DYNAT", "LBGAT"]


@pytest.mark.parametrize(
    ("classes", "turned"), [(tuple("0123"), 0.0), (("cat", "dog", "ship", "truck"), 90.0)], ids=["digits", "words"]
)
def test_beliefs_have_a_line_of_panels_per_image_with_its_true_class_in_red_and_every_axis_labelled(classes, turned):
    answers = {name: torch.arange(8.0).reshape(2, 4) * scale for name, scale in (("guide", 1), ("target", -1))}
    axes = figures.beliefs(answers, classes, [1, 3], ["image 5", "image 7"]).axes
    assert [axis.get_title() for axis in axes] == [f"image {i}, {name}" for i in (5, 7) for name in answers]
    assert [axis.get_xlabel() for axis in axes] == ["", "", "class", "class"]
    assert [axis.get_ylabel() for axis in axes] == ["probability", ""] * 2
    assert axes[2].get_xticklabels()[0].get_rotation() == turned
    for axis, truth in zip(axes, (1, 1, 3, 3), strict=True):
        colours = [bar.get_facecolor() for bar in axis.patches]
        assert [i for i, colour in enumerate(colours) if colours.count(colour) == 1] == [truth]
    heights = [bar.get_height() for bar in axes[0].patches]
    torch.testing.assert_close(heights, answers["guide"][0].softmax(0).tolist())
