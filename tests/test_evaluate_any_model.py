"""Any classifier's report: what it says, and what it refuses."""

import pytest
import torch
from torch import nn
from wrapped import CHANGES, After, fired, made

from lib.data import Split
from lib.errors import UserError
from lib.evaluate import PROTOCOLS, AttackSpec, columns_of, evaluate


def test_a_report_has_the_protocols_columns_as_evaluate_finds_them(images):
    net, x, y = images
    columns = columns_of("common", 0.05, changes=CHANGES)
    assert list(made(net, x, y).accuracies) == evaluate(net, Split(x, y), columns)
    assert [a.column.name for a in made(net, x, y).accuracies] == list(PROTOCOLS["common"])


def test_a_report_shows_every_setting_the_interval_the_worst_case_and_the_checks(images):
    result = made(*images)
    assert {"accuracy", "95 %", "right", "attack", "radius", "step", "steps", "restarts", "seed", "crafted in"} <= {
        *result.frame.columns
    }
    assert "worst case over the attacks" in repr(result)
    assert "of 5 under Clean, FGSM, PGD-20, PGD-50, C&W, AA" in repr(result)
    assert len(result.findings) == 11
    assert "sanity checks" in result._repr_html_()


def test_an_unrelated_network_adds_the_transfer_check(images, make_net):
    assert "transfer beats white-box" in {finding.check for finding in made(*images, unrelated=make_net()).findings}


def test_a_model_left_in_train_mode_is_evaluated_in_eval_mode_with_a_note_and_put_back(images):
    net, x, y = images
    expected = made(net, x, y).accuracies
    result = made(net.train(), x, y)
    assert result.accuracies == expected
    assert net.training
    assert "was in train mode" in repr(result)


def test_fewer_images_than_the_protocol_wants_are_all_taken_with_a_note(images):
    net, x, y = images
    result = made(net, x, y, protocol="dynat", changes={"AA": {"stages": ("apgd-ce",)}})
    assert "AA: on all 12 images" in repr(result)


def test_probabilities_are_flagged(images):
    net, x, y = images
    result = made(nn.Sequential(net, nn.Softmax(1)), x, y)
    assert "outputs are probabilities" in fired(result)
    assert "take the softmax off" in repr(result)


def nan_for_one(z):
    return z.index_fill(0, torch.tensor([len(z) - 1]), float("nan"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net, x, y: (net, 255 * x, y), r"values in \[0, 1\], got .* a normalisation belongs into the network"),
        (lambda net, x, y: (net, x - 0.5, y), r"values in \[0, 1\]"),
        (lambda net, x, y: (net, (255 * x).byte(), y), "bytes are divided by 255 first"),
        (lambda net, x, y: (net, x.index_fill(0, torch.tensor([1]), float("nan")), y), "got nan to nan"),
        (lambda net, x, y: (net, x[0], y), r"the shape \(N, C, H, W\)"),
        (lambda net, x, y: (net, x[:0], y[:0]), "N >= 1"),
        (lambda net, x, y: (net, x, y[:5]), r"one whole number per image \(12\)"),
        (lambda net, x, y: (net, x, y.float()), "one whole number per image"),
        (lambda net, x, y: (net, x, y - 100), "labels must be numbers from 0"),
        (lambda net, x, y: (net, x, y.index_fill(0, torch.tensor([3]), 10)), "10 outputs, the labels go up to 10"),
        (lambda net, x, y: (After(net, lambda z: z[:, :4]), x, y.fill_(4)), "4 outputs, the labels go up to 4"),
        (lambda net, x, y: (After(net, lambda z: z[:, :1]), x, y.zero_()), "1 outputs"),
        (lambda net, x, y: (After(net, nan_for_one), x, y), "not finite .* on 1 of 12 images"),
        (lambda net, x, y: (After(net, lambda z: z.flatten()), x, y), r"the shape \(12, classes\)"),
        (lambda net, x, y: (After(net, lambda z: (z, z)), x, y), "outputs must be a tensor of .* got tuple"),
    ],
)
def test_what_would_make_the_numbers_meaningless_is_refused_with_the_reason(images, change, reason):
    with pytest.raises(UserError, match=reason):
        made(*change(*images))


def test_a_class_count_that_does_not_fit_is_refused(images):
    with pytest.raises(UserError, match="10 outputs, the data 100 classes"):
        made(*images, classes=100)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 8.0])
def test_a_radius_outside_of_the_images_range_is_refused(images, epsilon):
    with pytest.raises(UserError, match=r"the radius lies in \(0, 1\]"):
        made(*images, epsilon=epsilon)


class Brittle(After):
    """NaN in place of every answer that is not differentiated: those that are judged."""

    def forward(self, x):
        return self.net(x) if x.requires_grad else torch.full((len(x), 10), float("nan"))


def test_a_network_that_answers_nan_when_judged_stops_the_evaluation(images):
    net, x, y = images
    with pytest.raises(UserError, match="not finite .* on 12 of 12 images"):
        evaluate(Brittle(net, None), Split(x, y), (AttackSpec("FGSM", "fgsm", 0.3),))


def test_labels_of_any_whole_type_and_images_of_any_float_type_and_arrays_will_do(images):
    net, x, y = images
    known = made(net, x, y).accuracies
    assert made(net, x.double(), y.int()).accuracies == made(net, x.numpy(), y.tolist()).accuracies == known


def test_a_model_elsewhere_than_its_images_is_refused(images):
    net, x, y = images
    with pytest.raises(UserError, match="must be on one device, they are on cpu, meta"):
        made(net.to("meta"), x, y)


def test_on_few_images_a_report_says_how_large_a_fault_has_to_be_and_what_is_right_without_an_attack(images):
    found = made(*images)
    assert "The checks look at 12 images" in repr(found)
    assert f"({found.accuracies[0].flags[: found.worst.n].count('1')} without an attack)" in repr(found)
