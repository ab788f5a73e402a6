import pytest
import torch

from lib.losses import (
    boosted_cross_entropy,
    cross_entropy,
    kl,
    kl_floored,
    logit_mse,
    margin,
    mix_labels,
    reinforce,
    smooth_labels,
    smoothed_cross_entropy,
    smoothed_target,
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


def test_kl_floored_adds_its_floor_under_the_second_logarithm_only():
    a, b = logits(), logits()
    p, q = a.softmax(1), b.softmax(1)
    torch.testing.assert_close(kl_floored(a, b, 0.1), (p * (p.log() - (q + 0.1).log())).sum(1))
    ours, theirs = (gradients(loss, a, b) for loss in (kl_floored(a, b, 1e-12), kl(a, b)))
    torch.testing.assert_close(ours, theirs)


def test_kl_floored_ends_at_the_logarithm_of_its_floor_where_kl_goes_on():
    a, b = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]], requires_grad=True)
    loss = kl_floored(a, b, 1e-12)
    torch.testing.assert_close(loss, torch.tensor([1e-12]).log().neg())
    assert gradients(loss, b)[0].isfinite().all()


def test_boosted_cross_entropy_adds_the_log_of_what_the_best_wrong_class_leaves():
    z = logits()
    expected = []
    for row, label in zip(z.softmax(1), Y.tolist(), strict=True):
        wrong = max((p for j, p in enumerate(row) if j != label), key=lambda p: p.item())
        expected.append(-row[label].log() - (1.0001 + 1e-12 - wrong).log())
    torch.testing.assert_close(boosted_cross_entropy(z, Y), torch.stack(expected))
    ours, theirs = (gradients(loss, z) for loss in (boosted_cross_entropy(z, Y), torch.stack(expected)))
    torch.testing.assert_close(ours, theirs)


def test_boosted_cross_entropy_is_bounded_by_its_constant_where_a_wrong_class_is_certain():
    z = torch.tensor([[0.0, 1e3]], requires_grad=True)
    loss = boosted_cross_entropy(z, torch.tensor([0]))
    assert loss.item() == pytest.approx(1e3 - torch.tensor(1e-4).log().item(), rel=1e-3)
    assert gradients(loss, z)[0].isfinite().all()


def test_the_smoothed_target_gives_every_wrong_class_the_same_of_the_rest():
    target = smoothed_target(torch.tensor([2, 0]), classes=4, true_share=0.7)
    torch.testing.assert_close(target, torch.tensor([[0.1, 0.1, 0.7, 0.1], [0.7, 0.1, 0.1, 0.1]]))
    assert smoothed_target(Y, classes=4, true_share=1.0).equal(torch.eye(4)[Y])


def test_smoothed_cross_entropy_is_the_cross_entropy_of_the_smoothed_target_and_of_the_label_at_a_share_of_one():
    z = logits()
    target = torch.full((6, 4), 0.05, dtype=torch.double).scatter(1, Y[:, None], 0.85)
    torch.testing.assert_close(
        smoothed_cross_entropy(z, Y, 0.85), -(target * z.log_softmax(1)).sum(1), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(smoothed_cross_entropy(z, Y, 1.0), cross_entropy(z, Y))
    assert smoothed_cross_entropy(z.float(), Y, 0.85).dtype == torch.float32


def test_logit_mse_is_the_mean_square_over_classes_of_the_logits_and_pulls_both():
    a, b = logits(), logits()
    loss = logit_mse(a, b)
    torch.testing.assert_close(loss, ((a - b) ** 2).sum(1) / 4)
    to_a, to_b = gradients(loss, a, b)
    torch.testing.assert_close(to_a, (a - b) / 2)
    torch.testing.assert_close(to_b, -to_a)


def test_reinforce_summed_over_all_actions_is_minus_the_gradient_of_the_expected_reward():
    theta = torch.randn(5, dtype=torch.double, requires_grad=True)
    reward = torch.randn(5, dtype=torch.double, requires_grad=True)
    p = theta.softmax(0)
    (exact,) = torch.autograd.grad((p * reward.detach()).sum(), theta)
    weighted = p.detach() * reinforce(theta.log_softmax(0), reward)
    (score,) = torch.autograd.grad(weighted.sum(), theta)
    torch.testing.assert_close(-score, exact)
    assert not reinforce(theta.detach(), reward).requires_grad
