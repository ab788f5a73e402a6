"""What people hand over: networks without gradients, in other precisions, compiled, with other normalisations."""

import json

import pytest
import torch
from torch import nn
from wrapped import CHANGES, FEW, After, Before, fired, made

from lib import report as shown
from lib.attacks.autoattack import standard
from lib.data import Split
from lib.errors import UserError
from lib.evaluate import Accuracy, AttackSpec, accuracy, columns_of, contradictions, evaluate
from lib.evaluate.given import STATISTICS
from lib.evaluate.protocols import PRESETS
from lib.models.deepmind import Normalise


class NoGrad(Before):
    @torch.no_grad()
    def forward(self, x):
        return self.net(x)


class Inference(Before):
    @torch.inference_mode()
    def forward(self, x):
        return self.net(x)


# --- gradients ----------------------------------------------------------------------------------------------------


def nan_gradient(of):
    """The identity whose gradient is NaN on the images that `of` chooses, through a square root at zero."""

    def identity(x):
        chosen = of(x).nonzero().flatten()
        return x.index_add(0, chosen, (0 * x[chosen]).sqrt())

    return identity


NAN = nan_gradient(lambda x: torch.ones(len(x), dtype=torch.bool))
NAN_WHERE_DARK = nan_gradient(lambda x: x[:, 0, 0, 0] < 0.2)


@pytest.mark.parametrize(
    ("attack", "stage"),
    [
        *((attack, "apgd-ce") for attack in ("fgsm", "fgsm_random", "pgd", "pgd_frozen", "cw", "cw2")),
        *(("autoattack", stage) for stage in ("apgd-ce", "apgd-t", "fab-t")),
    ],
)
def test_an_image_without_a_finite_gradient_is_named_and_right_under_no_attack(images, attack, stage):
    net, x, _ = images
    x[:, 0, 0, 0] = 0.5
    x[[1, 4], 0, 0, 0] = 0.0  # stays below 0.2 at this radius
    column = AttackSpec("A", attack, 0.01, 0.0025, 2, stages=(stage,))
    sound, broken = (accuracy(one, Split(x, net(x).argmax(1)), column) for one in (net, Before(net, NAN_WHERE_DARK)))
    assert (sound.blind, broken.blind) == ((), (1, 4))
    assert (broken.flags[1], broken.flags[4]) == ("0", "0")
    assert sound.flags[0] == broken.flags[0]
    assert Accuracy.from_json(json.loads(json.dumps(broken.to_json()))) == broken
    assert "blind" not in sound.to_json()
    assert contradictions([sound]) == []
    (sentence,) = contradictions([broken])
    assert sentence.startswith("2 images were not attacked")
    assert sentence.endswith("none counts as right: 1, 4")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda net: Before(net, NAN),
        lambda net: NoGrad(net, None),
        lambda net: Inference(net, None),
        lambda net: Before(net, lambda x: (x > 0.5).float()),
        lambda net: After(net, lambda z: z.detach()),
        lambda net: After(net, lambda z: nn.functional.one_hot(z.argmax(1), 10).float()),
    ],
)
def test_a_network_that_gives_no_gradient_is_never_robust_and_the_report_begins_with_it(images, wrapped):
    net, x, _ = images
    result = made(wrapped(net), x, wrapped(net)(x).argmax(1))
    assert "zero gradients" in fired(result)
    assert result.worst.k == 0
    assert repr(result).startswith("12 images were not attacked, without a finite gradient")
    assert result.accuracies[0].k == 12  # the clean accuracy stands


def test_images_without_a_gradient_stay_so_when_autoattack_goes_on_from_its_folder(images, tmp_path):
    net, x, y = images
    given = {"epsilon": 0.05, "stages": ("apgd-ce",), "folder": tmp_path}
    first, again = (standard(Before(net, NAN).eval(), x, y, **given) for _ in range(2))
    assert first.blind.all()
    assert again.blind.equal(first.blind)


def test_a_report_under_no_grad_inference_mode_or_autocast_is_the_usual_one(images):
    usual = made(*images).accuracies
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            net, x, y = images
            assert made(net, x.clone(), y.clone()).accuracies == usual


def test_weights_made_under_inference_mode_are_refused_with_the_way_out(images, make_net):
    with torch.inference_mode():
        net = make_net()
    with pytest.raises(UserError, match="made under torch.inference_mode.*make it outside"):
        made(net, *images[1:])


# --- normalisation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(STATISTICS)[1:])
@pytest.mark.parametrize("has", ["none", "another"])
def test_a_network_without_its_normalisation_is_named_on_top_of_its_report(make_net, name, has):
    net, x = make_net().eval(), torch.rand(100, 3, 4, 4)
    with torch.no_grad():
        net[4].bias -= net(Normalise(*map(torch.tensor, STATISTICS[name]))(x)).mean(0)  # every class is an answer
    right = nn.Sequential(Normalise(*map(torch.tensor, STATISTICS[name])), net).eval()
    y = right(x).argmax(1)
    mean, std = torch.tensor([0.9]), torch.tensor([3.0])
    wrong = net if has == "none" else nn.Sequential(Normalise(mean, std), net).eval()
    top = repr(made(wrong, x, y)).splitlines()[0]
    assert top.startswith(f"Another normalisation is probably meant: with {name} the network has 100.0 % of 100 images")
    assert not made(right, x, y).warnings


def test_a_normalisation_that_is_in_use_is_found_under_its_public_names(make_net):
    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.mu, self.sigma = net, torch.full((3, 1, 1), 0.9), [3.0, 3.0, 3.0]

        def forward(self, x):
            return self.net((x - self.mu) / torch.tensor(self.sigma).view(3, 1, 1))

    net, x = make_net().eval(), torch.rand(100, 3, 4, 4)
    with torch.no_grad():
        net[4].bias -= net(x).mean(0)
    assert "with no normalisation the network has 100.0 %" in made(Wrapped(net), x, net(x).argmax(1)).warnings[0]


def test_a_network_that_refuses_values_outside_of_the_image_range_is_evaluated_all_the_same(images):
    def strict(x):
        assert x.min() >= 0
        return x

    net, x, y = images
    assert not made(Before(net, strict), x, y).warnings


# --- radii and steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"epsilon": 16.0}, {"epsilon_255": 0.0314}, {"epsilon": 8 / 255 / 255}, {"step_size_255": 0.0078}]
)
def test_a_radius_or_step_in_the_other_unit_is_refused_with_both(change):
    with pytest.raises(UserError, match=r"cannot be meant .* is in \[0, 1\] and .*_255 in 1/255"):
        columns_of("common", changes={"PGD-20": change})


def test_a_report_at_a_radius_that_was_divided_twice_is_refused(images):
    with pytest.raises(UserError, match="epsilon is .* cannot be meant"):
        made(*images, epsilon=0.0314 / 255)


def test_an_iterated_attack_that_makes_no_step_is_refused():
    for settings in ({"step_size": 0}, {"changes": {"PGD-20": {"step_size": 0.0}}}):
        with pytest.raises(UserError, match="wants a step_size > 0"):
            columns_of("common", **settings)


# --- precision and wrappers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_is_evaluated_as_its_float32_copy_and_left_as_it_was(images, dtype):
    net, x, y = images
    net.to(dtype)
    result = made(net, x, y)
    assert next(net.parameters()).dtype == dtype
    assert result.accuracies == made(net.float(), x, y).accuracies
    assert f"weights in {str(dtype).removeprefix('torch.')}; a copy of it in float32 was evaluated" in repr(result)


def test_logits_in_another_precision_are_read_as_float32_with_a_note(images):
    net, x, y = images
    result = made(After(net, torch.Tensor.double), x, y)
    assert result.accuracies == made(net, x, y).accuracies
    assert "answers in float64" in repr(result)


class Counted(nn.Sequential):
    def __len__(self):
        return 0


def test_a_compiled_model_and_one_of_length_zero_are_evaluated_as_they_are_and_as_unrelated_ones(images, make_net):
    net, x, y = images
    usual, other = made(net, x, y, unrelated=net), make_net()
    compiled, counted = torch.compile(net, backend="eager"), Counted(*net)
    for one in (compiled, counted):
        found = made(one, x, y, unrelated=one)
        assert (found.accuracies, found.findings) == (usual.accuracies, usual.findings)
    column = AttackSpec("PGD", "pgd", 0.3, 0.1, 3, surrogate="another")
    assert evaluate(net, Split(x, y), (column,), Counted(*other)) == evaluate(net, Split(x, y), (column,), other)


def dim(z):
    return z.squeeze()


def writes(x):
    x -= 0.5
    return x


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net, x, y: (lambda z: net(z), x, y), "must be a torch.nn.Module, got function"),
        (
            lambda net, x, y: (After(net, dim), x, y),
            r"of one image the network's outputs must have the shape \(1, 10\)",
        ),
        (lambda net, x, y: (Before(net, writes), x, y), "writes into its images"),
        (lambda net, x, y: (After(net, lambda z: (10 * z).long()), x, y), "must be logits, floats, got torch.int64"),
        (lambda net, x, y: (After(net, lambda z: (z, z)), x, y), "got tuple: of several outputs"),
        (lambda net, x, y: (After(net, lambda z: z[:, :1]), x, 0 * y), "1 outputs, a classifier has two at least"),
        (lambda net, x, y: (net, x.permute(0, 2, 3, 1), y), r"fails on images of the shape \(12, 4, 4, 3\), which are"),
    ],
)
def test_what_cannot_be_evaluated_is_said_with_the_way_out(images, change, reason):
    with pytest.raises(UserError, match=reason) as error:
        made(*change(*images))
    assert len(str(error.value)) <= 500


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"epsilon": "8/255"}, "epsilon must be a number"),
        ({"seed": 2**64}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"changes": {"AA": None}}, "wants dict, got None"),
        ({"changes": [("AA", {})]}, "changes wants dict"),
    ],
)
def test_settings_of_another_type_are_refused_in_a_sentence(images, given, reason):
    with pytest.raises(UserError, match=reason):
        made(*images, **given)


class BatchStatistics(Before):
    def forward(self, x):
        return self.net((x - x.mean(0)) / (x.std(0, unbiased=False) + 0.1))


def test_an_answer_that_depends_on_the_batch_is_said_on_top(images):
    net, x, y = images
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    for one in (BatchStatistics(net, None), nn.Sequential(net[0], norm, *net[2:])):
        assert repr(made(one, x, y)).startswith("The answer to an image depends on the others of its batch")
    noisy = After(net, lambda z: z + 0.1 * torch.rand_like(z))
    result = made(noisy, x, y)
    assert not result.warnings
    assert "two forwards disagree" in fired(result)


# --- the headline and the picture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("easy_first", [True, False])
def test_the_headline_is_above_no_attacks_number_and_says_on_which_images(images, easy_first):
    net, x, y = images
    wrong = slice(5, 12) if easy_first else slice(0, 4)
    y[wrong] = (y[wrong] + 1) % 10
    result = made(net, x, y, epsilon=0.002)
    assert result.worst.percent <= min(a.percent for a in result.accuracies)
    assert result.worst.n == (12 if easy_first else 5)
    assert f"{result.worst.k} of {result.worst.n} under Clean, FGSM" in repr(result).splitlines()[0]
    assert "AA" in result.worst.of or easy_first


def test_a_report_begins_with_a_picture_that_its_json_leaves_out(images, tmp_path):
    result = made(*images)
    assert result._repr_html_().startswith("<img ")
    assert result.picture.startswith(b"\x89PNG")
    assert made(*images).picture == result.picture
    saved = {path.suffix: path for path in shown.save_own(result, tmp_path, "own", "w.pt")}
    assert saved[".html"].read_text().startswith("<img ")
    facts = json.loads(saved[".json"].read_text())
    assert "picture" not in facts
    assert facts["warnings"] == []


# --- few classes, few images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_with_two_or_three_classes_autoattack_has_three_stages_left_and_the_report_says_so(images, classes):
    net, x, y = images
    few = After(net, lambda z: z[:, :classes])
    changes = FEW | {"AA": {"images": 2, "stages": ["apgd-ce", "apgd-t", "fab-t"]}}
    result = made(few, x, few(x).argmax(1), changes=changes)
    assert result.accuracies[-1].column.stages == ("apgd-ce", "fab-t")
    assert f"AA is apgd-ce, fab-t: without apgd-t, whose loss wants four classes; there are {classes}." in repr(result)
    with pytest.raises(
        UserError, match=r"wants 4 classes, .*{AA: \{stages: \[apgd-ce, fab-t, square\]\}\}\} leaves it"
    ):
        evaluate(few, Split(x, 0 * y), (PRESETS["AA"],))
    with pytest.raises(UserError, match="no stage of the column is left"):
        evaluate(few, Split(x, 0 * y), (PRESETS["APGD-T"],))


def test_one_class_is_no_classification(images):
    net, x, y = images
    with pytest.raises(UserError, match="there is one class, so no image can be wrong"):
        evaluate(After(net, lambda z: z[:, :1]), Split(x, 0 * y), (PRESETS["FGSM"],))


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_image_and_a_last_batch_of_one_are_evaluated(images, count):
    net, x, y = images
    result = made(net, x[:count], y[:count], changes=CHANGES | {"PGD-20": {"steps": 2, "batch_size": 1}})
    assert {a.n for a in result.accuracies} == {count}
    column = AttackSpec("PGD", "pgd", 0.05, 0.02, 2, batch_size=11)
    assert accuracy(net, Split(x, y), column).n == 12
