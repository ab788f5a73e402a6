import pytest
import torch
import torchattacks
from torch import Generator

from lib.attacks.pgd import PerImage, at_image, gaussian, gaussian_in_image, pgd, project, uniform, uniform_in_image
from lib.errors import UserError
from lib.losses import cross_entropy

STARTS = [at_image, uniform, uniform_in_image, gaussian, gaussian_in_image]


def generator(seed=0):
    return Generator().manual_seed(seed)


def wavy(z):
    """An objective whose gradient changes its sign inside the ball."""
    return (40 * z).sin().flatten(1).sum(1)


@pytest.mark.parametrize("start", STARTS)
def test_pgd_reaches_the_optimum_of_a_linear_objective(start, batch):
    x, w = batch[0], torch.randn(3, 4, 4)
    x_adv = pgd(lambda z: (z * w).sum((1, 2, 3)), x, epsilon=0.1, step_size=0.05, steps=5, start=start)
    torch.testing.assert_close(x_adv, (x + 0.1 * w.sign()).clamp(0, 1))


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("start", STARTS)
def test_pgd_stays_in_the_ball_and_in_the_image_range(start, steps, batch):
    x = batch[0]
    epsilon = torch.tensor([0.0, 0.0001, 0.01, 0.1, 0.3, 2.0])
    x_adv = pgd(wavy, x, epsilon=epsilon, step_size=0.07, steps=steps, start=start)
    assert ((x_adv - x).abs().amax((1, 2, 3)) <= epsilon + 1e-6).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_every_step_is_projected_not_only_the_last():
    x, seen = torch.full((1, 1, 1, 1), 0.5), []

    def away_from_the_start(z):
        seen.append(z.item())
        return z.flatten()

    pgd(away_from_the_start, x, epsilon=0.1, step_size=0.2, steps=3, start=at_image)
    assert seen == pytest.approx([0.5, 0.6, 0.6])


def test_pgd_returns_its_last_iterate_even_if_it_overshot():
    x = torch.full((1, 1, 1, 1), 0.5)
    x_adv = pgd(lambda z: -(z - 0.55).square().flatten(), x, epsilon=1, step_size=0.2, steps=1, start=at_image)
    assert x_adv.item() == pytest.approx(0.7)


def test_settings_per_image_are_separate_calls_per_image(batch):
    x = batch[0][:3]
    settings = {
        "epsilon": torch.tensor([0.05, 0.1, 0.2]),
        "step_size": torch.tensor([0.03, 0.02, 0.01]),
        "steps": torch.tensor([4, 0, 2]),
    }
    start = lambda x, epsilon, generator: x + 0.01  # noqa: E731
    together = pgd(wavy, x, start=start, **settings)
    alone = [pgd(wavy, x[[i]], start=start, **{k: v[i].item() for k, v in settings.items()}) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_without_steps_the_start_itself_is_returned(batch):
    x = batch[0]
    assert pgd(wavy, x, epsilon=0.1, step_size=0.1, steps=0, start=at_image).equal(x)
    expected = uniform_in_image(x, torch.tensor(0.1), generator())
    torch.testing.assert_close(pgd(wavy, x, epsilon=0.1, step_size=0.1, steps=0, generator=generator()), expected)


def test_fgsm_is_the_sign_of_softmax_minus_onehot_times_the_weights(batch):
    (x, y), w = batch, torch.randn(48, 10)
    net = lambda z: z.flatten(1) @ w  # noqa: E731
    x_adv = pgd(lambda z: cross_entropy(net(z), y), x, epsilon=0.1, step_size=0.1, steps=1, start=at_image)
    gradient = (net(x).softmax(1) - torch.eye(10)[y]) @ w.T
    torch.testing.assert_close(x_adv, (x + 0.1 * gradient.sign().view_as(x)).clamp(0, 1))


@pytest.mark.parametrize("name", ["epsilon", "step_size", "steps"])
@pytest.mark.parametrize("value", [-1, torch.tensor([1, 1, 1, 1, 1, -1])])
def test_a_negative_setting_is_refused_for_a_batch_and_for_one_image(name, value, batch):
    with pytest.raises(UserError, match=">= 0"):
        pgd(wavy, batch[0], **{"epsilon": 0.1, "step_size": 0.1, "steps": 1, name: value})


@pytest.mark.parametrize("value", [None, 7.0])
def test_pgd_touches_no_gradient_but_the_inputs(value, make_net, batch):
    net, (x, y) = make_net().eval(), batch
    for p in net.parameters():
        p.grad = None if value is None else torch.full_like(p, value)
    x.requires_grad_()
    x_adv = pgd(lambda z: cross_entropy(net(z), y), x, epsilon=0.1, step_size=0.1, steps=2)
    assert all(p.grad is None if value is None else (p.grad == value).all() for p in net.parameters())
    assert x.grad is None
    assert not x_adv.requires_grad


def test_pgd_takes_gradients_even_inside_no_grad(batch):
    x = batch[0]
    with torch.no_grad():
        x_adv = pgd(wavy, x, epsilon=0.1, step_size=0.1, steps=1, start=at_image)
    torch.testing.assert_close(x_adv, (x + 0.1 * (40 * x).cos().sign()).clamp(0, 1))


def test_pgd_leaves_the_images_as_they_were(batch):
    before = batch[0].clone()
    pgd(wavy, batch[0], epsilon=0.1, step_size=0.1, steps=2)
    assert batch[0].equal(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.1, torch.full((6,), 0.1, dtype=torch.double)])
def test_the_adversarial_image_has_the_images_dtype_and_precision(epsilon, dtype, batch):
    x = batch[0].to(dtype)
    x_adv = pgd(lambda z: z.flatten(1).sum(1), x, epsilon=epsilon, step_size=0.2, steps=1, start=at_image)
    torch.testing.assert_close(x_adv, (x + 0.1).clamp(max=1), atol=2 * torch.finfo(dtype).eps, rtol=0)


def test_the_uniform_start_fills_each_images_own_ball():
    x, epsilon = torch.full((2, 1, 50, 50), 0.5), torch.tensor([0.01, 0.4])
    noise = uniform(x, epsilon.view(2, 1, 1, 1), generator()) - x
    low, high = noise.amin((1, 2, 3)), noise.amax((1, 2, 3))
    assert (torch.stack([-low, high]) <= epsilon + 1e-6).all()
    torch.testing.assert_close(torch.stack([-low, high]) / epsilon, torch.ones(2, 2), atol=0.01, rtol=0)
    torch.testing.assert_close(noise.std((1, 2, 3)) / epsilon, torch.full((2,), 3**-0.5), atol=0.02, rtol=0)


def test_the_gaussian_start_has_a_thousandth_of_noise_whatever_the_radius():
    x = torch.full((1, 1, 100, 100), 0.5)
    noise = gaussian(x, torch.tensor(0.3), generator()) - x
    assert noise.std().item() == pytest.approx(0.001, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=5e-5)
    assert noise.abs().max() > 0.003


@pytest.mark.parametrize(("start", "inside"), [(uniform, uniform_in_image), (gaussian, gaussian_in_image)])
def test_only_a_clipped_start_is_inside_the_image_range_before_the_first_gradient(start, inside):
    x, first = torch.zeros(1, 1, 4, 4), []

    def objective(z):
        first.append(z.detach().clone())
        return z.flatten(1).sum(1)

    for chosen in ({"start": start}, {"start": inside}, {}):
        pgd(objective, x, epsilon=0.1, step_size=0.1, steps=1, generator=generator(), **chosen)
    assert first[0].min() < 0
    assert first[1].equal(first[0].clamp(0, 1))
    assert first[2].equal(uniform(x, torch.tensor(0.1), generator()).clamp(0, 1))  # without a choice: uniform, clipped


@pytest.mark.parametrize("start", [uniform, uniform_in_image, gaussian, gaussian_in_image])
def test_the_generator_alone_decides_the_result(start, batch):
    def run(seed):
        return pgd(wavy, batch[0], epsilon=0.1, step_size=0.02, steps=2, start=start, generator=generator(seed))

    before = torch.get_rng_state()
    first = run(0)
    assert torch.get_rng_state().equal(before)
    torch.rand(1)
    assert run(0).equal(first)
    assert not run(1).equal(first)


def test_pgd_equals_torchattacks_from_the_same_start(make_net, batch):
    net, (x, y) = make_net().eval(), batch

    def their_start(x, epsilon, generator):
        return (x + torch.empty_like(x).uniform_(-epsilon, epsilon)).clamp(0, 1)

    torch.manual_seed(1)
    theirs = torchattacks.PGD(net, eps=0.1, alpha=0.03, steps=7)(x, y)
    torch.manual_seed(1)
    ours = pgd(lambda z: cross_entropy(net(z), y), x, epsilon=0.1, step_size=0.03, steps=7, start=their_start)
    assert (ours - x).abs().max() > 0.09
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_fgsm_equals_torchattacks(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    theirs = torchattacks.FGSM(net, eps=0.1)(x, y)
    ours = pgd(lambda z: cross_entropy(net(z), y), x, epsilon=0.1, step_size=0.1, steps=1, start=at_image)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_projection_is_the_nearest_point_of_the_ball_in_the_image_range():
    x, x_adv = torch.tensor([0.0, 0.5, 0.5, 0.5, 1.0]), torch.tensor([-0.3, 0.1, 0.55, 0.9, 0.95])
    torch.testing.assert_close(project(x_adv, x, 0.1), torch.tensor([0.0, 0.4, 0.55, 0.6, 0.95]))


# --- budgets per image, and images that finish ---------------------------------------------------------------------


BUDGETS = {
    "epsilon": torch.tensor([0.02, 0.1, 0.05, 0.0, 0.3, 0.08]),
    "step_size": torch.tensor([0.01, 0.02, 0.03, 0.02, 0.05, 0.01]),
    "steps": torch.tensor([5, 2, 0, 4, 1, 5]),
}


def shifted(x, epsilon, generator):
    """A start that depends on the image and its radius alone."""
    return x + epsilon * (100 * x).sin()


def of_label(net, y):
    return PerImage(lambda z, y: cross_entropy(net(z), y), (y,))


def counted(net):
    """`net`, and the sizes of the batches that pass it."""
    sizes = []

    def counting(z):
        sizes.append(len(z))
        return net(z)

    return counting, sizes


def forms(objective):
    """The same objective for parts of the batch, and as a plain function of all of it."""
    return objective, lambda z: objective(z)


@pytest.mark.parametrize("form", [0, 1], ids=["PerImage", "plain"])
def test_an_image_ends_where_it_would_alone_and_in_its_own_ball(form, make_net, batch):
    net, (x, y) = make_net().eval(), batch
    together = pgd(forms(of_label(net, y))[form], x, start=shifted, **BUDGETS)
    for i in range(6):
        own = {name: value[i].item() for name, value in BUDGETS.items()}
        alone = pgd(of_label(net, y[[i]]), x[[i]], start=shifted, **own)
        torch.testing.assert_close(together[[i]], alone)
    moved = (together - x).abs().amax((1, 2, 3))
    assert (moved <= BUDGETS["epsilon"] + 1e-6).all()
    assert (moved > 0).tolist() == [radius > 0 for radius in BUDGETS["epsilon"].tolist()]
    assert together.min() >= 0
    assert together.max() <= 1


def test_every_step_of_an_image_is_projected_to_its_own_ball():
    x, seen = torch.full((2, 1, 1, 1), 0.5), []

    def away_from_the_start(z):
        seen.append(z.flatten().tolist())
        return z.flatten()

    pgd(PerImage(away_from_the_start), x, epsilon=torch.tensor([0.1, 0.3]), step_size=0.2, steps=3, start=at_image)
    pgd(
        PerImage(away_from_the_start),
        x,
        epsilon=torch.tensor([0.1, 0.3]),
        step_size=0.2,
        steps=torch.tensor([3, 3]),
        start=at_image,
    )
    assert [value for both in seen for value in both] == pytest.approx(2 * [0.5, 0.5, 0.6, 0.7, 0.6, 0.8])


def test_equal_budgets_are_the_attack_with_one_budget(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    settings = {"epsilon": 0.1, "step_size": 0.03, "steps": 4}
    per_image = {name: torch.full((6,), value) for name, value in settings.items()}
    one, six = (pgd(of_label(net, y), x, generator=generator(), **chosen) for chosen in (settings, per_image))
    assert six.equal(one)


def test_images_whose_steps_are_done_leave_the_batch(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    counting, sizes = counted(net)
    pgd(of_label(counting, y), x, start=shifted, **BUDGETS)
    assert sizes == [5, 4, 3, 3, 2]
    counting, sizes = counted(net)
    pgd(forms(of_label(counting, y))[1], x, start=shifted, **BUDGETS)
    assert sizes == [6] * 5  # a plain function cannot be asked for a part


@pytest.mark.parametrize("form", [0, 1], ids=["PerImage", "plain"])
def test_an_image_that_the_rule_stops_stays_where_it_is_for_good(form, make_net, batch):
    net, (x, y) = make_net().eval(), batch
    asked, last = [], torch.tensor([0, 2, 1, 9, 9, 3])  # image i is stopped when it has moved last[i] times

    def criterion(x_adv, gradient, index):
        asked.append(index.tolist())
        return last[index] != len(asked) - 1  # it would let everyone go on at the next call

    settings = {"epsilon": 0.2, "step_size": 0.01, "start": shifted}
    counting, sizes = counted(net)
    stopped = pgd(forms(of_label(counting, y))[form], x, steps=5, criterion=criterion, **settings)
    assert asked == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 3, 4, 5], [3, 4, 5], [3, 4]]
    assert sizes == ([6] * 5 if form else [6, 5, 4, 3, 2])
    assert stopped.equal(pgd(of_label(net, y), x, steps=last.clamp(max=5), **settings))


def test_an_attack_whose_images_are_all_stopped_asks_the_network_no_more(make_net, batch):
    counting, sizes = counted(make_net().eval())
    x_adv = pgd(
        of_label(counting, batch[1]),
        batch[0],
        epsilon=0.1,
        step_size=0.1,
        steps=9,
        start=at_image,
        criterion=lambda x_adv, gradient, index: torch.zeros_like(index, dtype=torch.bool),
    )
    assert sizes == [6]
    assert x_adv.equal(batch[0])


def test_the_rule_sees_the_image_before_the_step_and_the_gradient_that_the_step_takes(batch):
    x, seen = batch[0], []

    def criterion(x_adv, gradient, index):
        seen.append((x_adv.clone(), gradient.clone()))
        return torch.ones_like(index, dtype=torch.bool)

    x_adv = pgd(PerImage(wavy), x, epsilon=1, step_size=0.02, steps=2, start=at_image, criterion=criterion)
    path = [*(point for point, _ in seen), x_adv]
    assert path[0].equal(x)
    for (point, gradient), after in zip(seen, path[1:], strict=True):
        torch.testing.assert_close(gradient, 40 * (40 * point).cos())
        torch.testing.assert_close(after, (point + 0.02 * gradient.sign()).clamp(0, 1))


def test_a_rule_that_lets_all_go_on_changes_nothing(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    settings = {"epsilon": 0.1, "step_size": 0.03, "steps": 4}
    everyone = lambda x_adv, gradient, index: torch.ones_like(index, dtype=torch.bool)  # noqa: E731
    free, judged = (pgd(of_label(net, y), x, generator=generator(), criterion=c, **settings) for c in (None, everyone))
    assert judged.equal(free)


def test_a_part_of_a_per_image_objective_has_the_values_of_those_images(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    clean, index = net(x).detach(), torch.tensor([4, 1])
    objective = PerImage(lambda z, y, clean: cross_entropy(net(z), y) + (net(z) - clean).sum(1), (y, clean))
    torch.testing.assert_close(objective.take(index)(x[index] + 0.1), objective(x + 0.1)[index])


@pytest.mark.parametrize("form", [0, 1], ids=["PerImage", "plain"])
def test_a_budget_per_image_touches_no_gradient_and_no_image(form, make_net, batch):
    net, (x, y) = make_net().eval(), batch
    before = x.clone()
    x_adv = pgd(forms(of_label(net, y))[form], x, start=at_image, **BUDGETS)
    assert x.equal(before)
    assert all(p.grad is None for p in net.parameters())
    assert not x_adv.requires_grad
