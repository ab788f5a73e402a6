import pytest
import torch

from lib.losses import (
    cross_entropy,
    kl,
    margin,
    mix_labels,
    smooth_labels,
    softmax_distance,
    softmax_mse,
    swap_labels,
)


def logits(n=6, classes=4):
    return 3 * torch.randn(n, classes, dtype=torch.double, requires_grad=True)


def gradients(loss, *arguments):
    return torch.autograd.grad(loss.sum(), arguments)


Y = torch.tensor([0, 1, 2, 3, 0, 1])


def test_cross_entropy_is_minus_the_log_probability_of_the_label():
    z = logits()
    expected = torch.stack([-(z[i].exp()[Y[i]] / z[i].exp().sum()).log() for i in range(6)])
    torch.testing.assert_close(cross_entropy(z, Y), expected)


def test_cross_entropy_of_probabilities_weighs_every_class():
    z, target = logits(), logits().softmax(1)
    torch.testing.assert_close(cross_entropy(z, target), -(target * z.softmax(1).log()).sum(1))


def test_gradient_of_cross_entropy_is_softmax_minus_onehot():
    z = logits()
    torch.testing.assert_close(gradients(cross_entropy(z, Y), z)[0], z.softmax(1) - torch.eye(4)[Y])


@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_kl_is_the_mean_log_ratio_under_the_target(temperature):
    a, b = logits(), logits()
    p, q = (z.div(temperature).softmax(1) for z in (a, b))
    torch.testing.assert_close(kl(a, b, temperature), (p * (p / q).log()).sum(1))


@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_gradient_of_kl_flows_into_both_arguments(temperature):
    a, b = logits(), logits()
    p, q = (z.div(temperature).softmax(1) for z in (a, b))
    ratio = (p / q).log()
    to_target, to_logits = gradients(kl(a, b, temperature), a, b)
    torch.testing.assert_close(to_target, p * (ratio - (p * ratio).sum(1, keepdim=True)) / temperature)
    torch.testing.assert_close(to_logits, (q - p) / temperature)


def test_kl_of_equal_distributions_is_zero_whatever_is_added_to_their_logits():
    z = logits()
    torch.testing.assert_close(kl(z, z + 5), torch.zeros(6, dtype=torch.double))


def test_kl_ignores_a_constant_added_to_either_argument():
    a, b, shift = logits(), logits(), torch.randn(6, 1, dtype=torch.double)
    torch.testing.assert_close(kl(a + shift, b - 2 * shift), kl(a, b))


def test_kl_is_finite_where_probabilities_underflow():
    a, b = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    torch.testing.assert_close(kl(a, b), torch.tensor([1e4]))


def test_margin_is_the_best_other_logit_minus_the_true_one_even_if_all_are_negative():
    z = logits() - 100
    expected = torch.stack([max(z[i, j] for j in range(4) if j != Y[i]) - z[i, Y[i]] for i in range(6)])
    torch.testing.assert_close(margin(z, Y), expected)


def test_swap_labels_puts_the_true_class_on_top_and_keeps_all_scores():
    z = logits(50)
    y = torch.arange(50) % 4
    swapped = swap_labels(z, y)
    assert swapped.argmax(1).equal(y)
    assert swapped.sort(1).values.equal(z.sort(1).values)


def test_swap_labels_moves_two_scores_where_the_prediction_is_wrong_and_none_where_it_is_right():
    z, y = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]), torch.tensor([0, 2])
    assert swap_labels(z, y).tolist() == [[5.0, 2.0, 1.0], [1.0, 2.0, 5.0]]


def test_swapping_logits_is_swapping_probabilities():
    z = logits()
    torch.testing.assert_close(swap_labels(z, Y).softmax(1), swap_labels(z.softmax(1), Y))


def test_swap_labels_leaves_its_input_as_it_was():
    z = logits().detach()
    before = z.clone()
    swap_labels(z, Y).zero_()
    assert z.equal(before)


def test_softmax_mse_is_the_squared_distance_of_probabilities_over_the_number_of_classes():
    a, b = logits(), logits()
    difference = a.softmax(1) - b.softmax(1)
    torch.testing.assert_close(softmax_mse(a, b), (difference**2).sum(1) / 4)


def test_softmax_distance_is_the_norm_of_the_difference_of_probabilities():
    a, b = logits(), logits()
    torch.testing.assert_close(softmax_distance(a, b), torch.linalg.vector_norm(a.softmax(1) - b.softmax(1), dim=1))


@pytest.mark.parametrize("consistency", [softmax_mse, softmax_distance])
def test_gradient_of_the_consistency_terms_flows_into_both_arguments_symmetrically(consistency):
    a, b = logits(), logits()
    to_a, to_b = gradients(consistency(a, b), a, b)
    assert (to_a.abs().amax(1) > 1e-8).all()
    torch.testing.assert_close(gradients(consistency(b, a), a, b), (to_a, to_b))


@pytest.mark.parametrize("consistency", [softmax_mse, softmax_distance])
def test_the_consistency_terms_of_equal_logits_are_zero_with_gradient_zero(consistency):
    z = logits()
    loss = consistency(z, z.clone())
    assert (loss < 1e-5).all()
    assert gradients(loss, z)[0].equal(torch.zeros_like(z))


@pytest.mark.parametrize("rule", [smooth_labels, mix_labels])
def test_a_repaired_answer_puts_the_true_class_first_and_leaves_right_answers_alone(rule):
    logits, y = torch.randn(64, 5), torch.randint(0, 5, (64,))
    repaired, right = rule(logits, y, share=0.5), logits.argmax(1) == y
    assert (repaired.argmax(1) == y).all()
    assert repaired[right].equal(logits[right])
    assert not repaired[~right].isclose(logits[~right]).all(1).any()


def test_smoothed_labels_spread_their_share_over_all_classes():
    p = smooth_labels(torch.tensor([[0.0, 9.0, 0.0, 0.0]]), torch.tensor([2]), share=0.2).softmax(1)
    torch.testing.assert_close(p, torch.tensor([[0.05, 0.05, 0.85, 0.05]]))


def test_mixed_labels_give_the_true_class_what_the_teacher_does_not_keep():
    logits = torch.tensor([[1.0, 3.0, 0.0]])
    p = mix_labels(logits, torch.tensor([0]), share=0.25).softmax(1)
    torch.testing.assert_close(p, 0.25 * logits.softmax(1) + 0.75 * torch.tensor([[1.0, 0.0, 0.0]]))
