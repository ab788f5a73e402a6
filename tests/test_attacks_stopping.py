import pytest
import torch

from lib.attacks.pgd import PerImage, at_image, gaussian, pgd, uniform
from lib.attacks.stopping import (
    StoppingCriterion,
    Trajectory,
    UntilConverged,
    UntilConvergedAsReleased,
    UntilGap,
    UntilWrong,
)
from lib.losses import cross_entropy
from lib.methods.reweighting import CountIterates

STEP = 0.125  # exact in binary, so that an image's moves can be counted
STEPS = 4
RIGHT = torch.tensor([[1.0, 0.0]])  # logits of an image of class 0
WRONG = torch.tensor([[0.0, 1.0]])


def threshold(z):
    """Logits of two classes: an image of one pixel is class 0 below 3/4 and class 1 above."""
    return torch.cat([0.75 - z.flatten(1), torch.zeros(len(z), 1)], 1)


@pytest.fixture
def images():
    """Pixels that the attack carries over the threshold before its first step, then after 1, 2, 3 and 5 steps."""
    x = torch.tensor([0.8125, 0.6875, 0.5625, 0.4375, 0.1875]).view(5, 1, 1, 1)
    return x, torch.zeros(5, dtype=torch.long)


def attacked(criterion, x, y, net=threshold, plain=False, **settings):
    """x' of PGD on the label under the criterion."""
    logits = criterion.listen(net)
    objective = PerImage(lambda z, y: cross_entropy(logits(z), y), (y,))
    settings = {"epsilon": 1, "step_size": STEP, "steps": STEPS, "start": at_image, **settings}
    return pgd((lambda z: objective(z)) if plain else objective, x, criterion=criterion, **settings)


def moves(x, x_adv):
    return ((x_adv - x) / STEP).flatten().tolist()


def decision(criterion, logits):
    """The decision about image 0 at these logits (1, C)."""
    criterion.logits = logits
    return criterion(criterion.x[:1], torch.zeros_like(criterion.x[:1]), torch.tensor([0])).item()


# --- listening ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("make", [StoppingCriterion, CountIterates])
def test_listening_costs_no_forward_and_changes_no_image(make, plain, images):
    (x, y), sizes = images, []

    def net(z):
        sizes.append(len(z))
        return threshold(z)

    x_adv = attacked(make(x, y, 1.0), x, y, net, plain=plain)
    assert sizes == [5] * STEPS
    plain_pgd = pgd(lambda z: cross_entropy(threshold(z), y), x, epsilon=1, step_size=STEP, steps=STEPS, start=at_image)
    assert x_adv.equal(plain_pgd)


def test_what_is_kept_are_the_networks_own_logits_without_their_graph(images):
    x, y = images
    criterion = StoppingCriterion(x, y, 1.0)
    logits = criterion.listen(threshold)(x.clone().requires_grad_())
    assert logits.requires_grad
    assert not criterion.logits.requires_grad
    assert criterion.logits.equal(logits)
    assert criterion.observed() == {}


@pytest.mark.parametrize("make", [lambda *a: UntilWrong(*a, patience=1), lambda *a: UntilGap(*a, gap=0.1)])
def test_a_criterion_decides_alike_whether_finished_images_leave_the_batch_or_not(make, images):
    x, y = images
    x_adv, same = (attacked(make(x, y, 1.0), x, y, plain=plain) for plain in (False, True))
    assert x_adv.equal(same)
    assert len(set(moves(x, x_adv))) > 2


# --- until wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patience", "expected"),
    [(0, [0, 1, 2, 3, 4]), (1, [1, 2, 3, 4, 4]), (2, [2, 3, 4, 4, 4]), (9, [4, 4, 4, 4, 4])],
)
def test_an_image_moves_until_it_is_wrong_and_as_many_steps_as_there_is_patience(patience, expected, images):
    x, y = images
    criterion = UntilWrong(x, y, 1.0, patience=patience)
    x_adv = attacked(criterion, x, y, epsilon=4, step_size=STEP)
    limits = ((1 - x) / STEP).flatten().tolist()  # white is as far as it goes
    assert moves(x, x_adv) == [min(steps, limit) for steps, limit in zip(expected, limits, strict=True)]


def test_by_default_there_is_no_patience(images):
    x, y = images
    assert moves(x, attacked(UntilWrong(x, y, 1.0), x, y)) == [0, 1, 2, 3, 4]


def test_patience_is_used_up_by_wrong_answers_only(images):
    criterion = UntilWrong(*images, 1.0, patience=2)
    said = [decision(criterion, logits) for logits in (WRONG, RIGHT, RIGHT, WRONG, RIGHT, WRONG)]
    assert said == [True, True, True, True, True, False]


def test_one_images_patience_is_not_anothers(images):
    criterion = UntilWrong(*images, 1.0, patience=1)
    criterion.logits = torch.cat([WRONG, RIGHT])
    for expected in ([True, True], [False, True]):
        assert criterion(criterion.x[:2], criterion.x[:2], torch.tensor([3, 1])).tolist() == expected
    assert criterion.left.tolist() == [1, 1, 1, -1, 1]


# --- until a gap --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [-0.5, 0.0, 0.3, 1.0])
def test_an_image_moves_while_the_best_other_class_is_ahead_by_no_more_than_the_gap(gap):
    x, logits, y = torch.rand(40, 1, 2, 2), 4 * torch.randn(40, 5), torch.arange(40) % 5
    criterion = UntilGap(x, y, 0.1, gap=gap)
    criterion.logits = logits
    expected = []
    for row, label in zip(logits, y.tolist(), strict=True):
        p = (row.exp() / row.exp().sum()).tolist()
        expected.append(max(p[:label] + p[label + 1 :]) - p[label] <= gap)
    assert criterion(x, x, torch.arange(40)).tolist() == expected
    assert gap == 1 or len(set(expected)) == 2


def test_an_image_on_the_boundary_still_moves_where_the_gap_is_nothing(images):
    criterion = UntilGap(*images, 1.0, gap=0.0)
    assert decision(criterion, torch.tensor([[1.0, 1.0]]))
    assert not decision(criterion, torch.tensor([[1.0, 1.0001]]))


def test_a_gap_of_nothing_stops_where_no_patience_does_and_a_gap_of_one_never(images):
    x, y = images
    none, full = (attacked(UntilGap(x, y, 1.0, gap=gap), x, y) for gap in (0.0, 1.0))
    assert none.equal(attacked(UntilWrong(x, y, 1.0), x, y))
    assert full.equal(attacked(StoppingCriterion(x, y, 1.0), x, y))


# --- until converged ----------------------------------------------------------------------------------------------


def fosc(x, x_adv, gradient, epsilon):
    """One pixel at a time."""
    pairs = zip((x_adv - x).flatten(1), gradient.flatten(1), strict=True)
    return [sum(epsilon * abs(g) - d * g for d, g in zip(*(row.tolist() for row in p), strict=True)) for p in pairs]


def test_an_image_moves_while_its_first_order_condition_is_above_the_bound():
    x, gradient = torch.rand(30, 2, 3, 3), torch.randn(30, 2, 3, 3)
    x_adv = x + 0.1 * (2 * torch.rand_like(x) - 1)
    values = fosc(x, x_adv, gradient, 0.1)
    bound = sorted(values)[14] + 1e-4
    criterion = UntilConverged(x, torch.zeros(30, dtype=torch.long), 0.1, bound=bound)
    criterion.logits = torch.zeros(30, 2)
    assert criterion(x_adv, gradient, torch.arange(30)).tolist() == [value > bound for value in values]
    assert min(values) >= 0


def test_the_condition_is_taken_about_each_images_own_centre():
    x, gradient = torch.tensor([0.0, 0.25, 0.5, 0.75]).view(4, 1, 1, 1).expand(4, 1, 2, 2), torch.ones(2, 1, 2, 2)
    index = torch.tensor([3, 1])
    criterion = UntilConverged(x, torch.zeros(4, dtype=torch.long), 0.25, bound=0.9)
    criterion.logits = torch.zeros(2, 2)
    offset = torch.tensor([0.0, 0.125]).view(2, 1, 1, 1)  # FOSC is 1 at the centre, 1/2 halfway to the corner
    assert criterion(x[index] + offset, gradient, index).tolist() == [True, False]


def test_an_image_in_the_corner_that_its_gradient_points_to_is_converged_even_at_a_bound_of_zero():
    x, gradient = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1.0, -2.0, 4.0, -0.5]).view(1, 1, 2, 2)
    criterion = UntilConverged(x, torch.zeros(1, dtype=torch.long), 0.25, bound=0.0)
    criterion.logits = torch.zeros(1, 2)
    corner = x + 0.25 * gradient.sign()
    assert not criterion(corner, gradient, torch.tensor([0]))
    almost = corner - torch.tensor([0.0, 0.0, 0.0625, 0.0]).view(1, 1, 2, 2)
    assert criterion(almost, gradient, torch.tensor([0]))


def test_the_first_order_condition_is_never_negative_on_an_attacks_way(make_net, batch):
    (x, y), net, values = batch, make_net().eval(), []

    class Spy(UntilConverged):
        def __call__(self, x_adv, gradient, index):
            values.extend(fosc(self.x[index], x_adv, gradient, self.epsilon))
            return super().__call__(x_adv, gradient, index)

    attacked(Spy(x, y, 0.1, bound=-1.0), x, y, net, epsilon=0.1, step_size=0.03, start=uniform)
    assert len(values) == 6 * STEPS
    assert min(values) > -1e-5


def dart_by_hand(net, x, y, start, bound):
    """x' of DART's loop for one image, and every FOSC: a step, then FOSC about the start, which decides on the next."""
    now, values = start, [float("inf")]
    while len(values) <= STEPS and values[-1] > bound:
        now = now.detach().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(net(now), y).sum(), now)
        now = torch.minimum(torch.maximum(now + 0.03 * slope.sign(), x - 0.1), x + 0.1).clamp(0, 1).detach()
        here = now.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(net(here), y).sum(), here)
        values.append((0.1 * slope.abs().sum() - ((now - start) * slope).sum()).item())
    return now, values[1:]


def test_darts_code_takes_every_first_step_and_measures_the_condition_from_the_random_start(make_net, batch):
    (x, y), net = batch, make_net().eval()
    start = uniform(x, 0.1, torch.Generator().manual_seed(0))
    ones = [(net, x[i : i + 1], y[i : i + 1], start[i : i + 1]) for i in range(len(x))]
    every = sorted(value for one in ones for value in dart_by_hand(*one, bound=-1.0)[1])
    for bound in (1e9, every[len(every) // 2] - 1e-6, -1.0):
        expected = [dart_by_hand(*one, bound) for one in ones]
        criterion = UntilConvergedAsReleased(x, y, 0.1, bound=bound)
        settings = {"epsilon": 0.1, "step_size": 0.03, "start": uniform, "generator": torch.Generator().manual_seed(0)}
        x_adv = attacked(criterion, x, y, net, **settings)
        torch.testing.assert_close(x_adv, torch.cat([one for one, _ in expected]))
        taken = {len(values) for _, values in expected}
        assert taken == {1} if bound == 1e9 else taken == {STEPS} if bound == -1.0 else len(taken) > 1
    assert attacked(UntilConverged(x, y, 0.1, bound=1e9), x, y, net, **settings | {"start": at_image}).equal(x)


# --- counting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 4, 8])
def test_kappa_counts_the_iterates_at_which_an_image_is_right_with_the_start_and_without_the_end(steps, images):
    x, y = images
    criterion = CountIterates(x, y, 1.0)
    attacked(criterion, x, y, steps=steps)
    assert criterion.observed()["kappa"].tolist() == [min(right, steps) for right in [0, 1, 2, 3, 5]]


def test_kappa_counts_right_answers_after_a_wrong_one_too(images):
    criterion = CountIterates(*images, 1.0)
    assert all(decision(criterion, logits) for logits in (RIGHT, WRONG, RIGHT))
    assert criterion.observed()["kappa"].tolist() == [2, 0, 0, 0, 0]


def test_kappa_is_counted_for_the_images_that_are_asked(images):
    criterion = CountIterates(*images, 1.0)
    criterion.logits = torch.cat([RIGHT, WRONG, RIGHT])
    assert criterion(criterion.x[:3], criterion.x[:3], torch.tensor([4, 3, 1])).all()
    assert criterion.observed()["kappa"].tolist() == [0, 1, 0, 0, 1]


def test_fosc_is_of_each_images_own_radius_where_radii_differ():
    x, y = torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, dtype=torch.long)
    criterion = UntilConverged(x, y, torch.tensor([0.1, 0.3]), bound=0.2)
    criterion.listen(lambda z: torch.zeros(len(z), 2))(x)
    assert criterion(x, torch.ones_like(x), torch.arange(2)).tolist() == [False, True]


# --- recording the way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
def test_one_run_holds_the_iterates_of_a_run_per_number_of_steps_and_costs_no_forward(freeze, plain, images):
    (x, y), at, sizes = images, (0, 1, 3, STEPS), []

    def net(z):
        sizes.append(len(z))
        return threshold(z)

    path = Trajectory(x, y, 1.0, at=at, freeze=freeze)
    iterates = path.iterates(attacked(path, x, y, net, plain=plain))
    left = [5, 4, 3, 2] if freeze and not plain else [5] * STEPS  # frozen images leave the batch
    assert sizes == left
    for steps in at:
        criterion = UntilWrong(x, y, 1.0) if freeze else StoppingCriterion(x, y, 1.0)
        assert iterates[steps].equal(attacked(criterion, x, y, steps=steps))


def test_where_every_image_is_frozen_early_the_later_iterates_are_where_they_stay(images):
    x, y = images
    path = Trajectory(x[:2], y[:2], 1.0, at=(1, 3), freeze=True)
    iterates = path.iterates(attacked(path, x[:2], y[:2]))
    assert moves(x[:2], iterates[3]) == moves(x[:2], iterates[1]) == [0, 1]


@pytest.mark.parametrize("freeze", [False, True])
def test_right_answers_are_recorded_at_every_iterate_but_the_last(freeze, images):
    x, y = images
    path = Trajectory(x, y, 1.0, freeze=freeze)
    attacked(path, x, y)
    assert torch.stack(path.right).sum(0).tolist() == [0, 1, 2, 3, 4]


def test_a_frozen_image_counts_as_wrong_from_its_first_mistake_on():
    x, y = torch.tensor([0.5, 0.625]).view(2, 1, 1, 1), torch.zeros(2, dtype=torch.long)
    path = Trajectory(x, y, 1.0, freeze=True)
    attacked(path, x, y)
    assert torch.stack(path.right).tolist() == [[True, True], [True, True], [True, False], [False, False]]


@pytest.mark.parametrize("plain", [False, True])
def test_a_jittered_step_is_the_signed_step_plus_noise_in_the_ball_for_the_images_that_move_alone(images, plain):
    x, y = images
    g, again = (torch.Generator().manual_seed(3) for _ in range(2))
    x_adv = attacked(UntilWrong(x, y, 1.0), x, y, plain=plain, jitter=gaussian, generator=again, epsilon=0.5)
    now = x.clone()
    for _ in range(STEPS):
        going = (now < 0.75).flatten()
        now[going] += STEP + 0.001 * torch.randn(now[going].shape, generator=g)
        now = now.clamp(x - 0.5, x + 0.5).clamp(0, 1)
    torch.testing.assert_close(x_adv, now)
    assert (x_adv - attacked(UntilWrong(x, y, 1.0), x, y, plain=plain, epsilon=0.5)).abs().max() > 1e-4
