import pytest
import torch
import torchattacks
from torch import Generator

from lib import attacks
from lib.attacks import at_image, gaussian, gaussian_in_image, pgd, uniform, uniform_in_image
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
        return (x + torch.empty_like(x).uniform_(-epsilon.item(), epsilon.item())).clamp(0, 1)

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
    torch.testing.assert_close(attacks.project(x_adv, x, 0.1), torch.tensor([0.0, 0.4, 0.55, 0.6, 0.95]))
