import pytest
import torch

from lib.attacks.pgd import PerImage, at_image, pgd, uniform
from lib.attacks.stopping import CountRight, UntilConverged, UntilGap, UntilWrong, Watch
from lib.losses import cross_entropy

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


def attacked(watch, x, y, net=threshold, plain=False, **settings):
    """x' of PGD on the label under the watch."""
    heard = watch.listen(net)
    objective = PerImage(lambda z, y: cross_entropy(heard(z), y), (y,))
    settings = {"epsilon": 1, "step_size": STEP, "steps": STEPS, "start": at_image, **settings}
    return pgd((lambda z: objective(z)) if plain else objective, x, rule=watch, **settings)


def moves(x, x_adv):
    return ((x_adv - x) / STEP).flatten().tolist()


def asked(watch, logits):
    """What the watch says of image 0 at these logits (1, C)."""
    watch.logits = logits
    return watch(watch.x[:1], torch.zeros_like(watch.x[:1]), torch.tensor([0])).item()


# --- listening ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("make", [Watch, CountRight])
def test_listening_costs_no_forward_and_changes_no_image(make, plain, images):
    (x, y), sizes = images, []

    def net(z):
        sizes.append(len(z))
        return threshold(z)

    x_adv = attacked(make(x, y, 1.0), x, y, net, plain=plain)
    assert sizes == [5] * STEPS
    plain_pgd = pgd(lambda z: cross_entropy(threshold(z), y), x, epsilon=1, step_size=STEP, steps=STEPS, start=at_image)
    assert x_adv.equal(plain_pgd)


def test_what_is_heard_are_the_networks_own_logits_without_their_graph(images):
    x, y = images
    watch = Watch(x, y, 1.0)
    logits = watch.listen(threshold)(x.clone().requires_grad_())
    assert logits.requires_grad
    assert not watch.logits.requires_grad
    assert watch.logits.equal(logits)
    assert watch.seen() == {}


@pytest.mark.parametrize("make", [lambda *a: UntilWrong(*a, patience=1), lambda *a: UntilGap(*a, gap=0.1)])
def test_a_watch_decides_alike_whether_finished_images_leave_the_batch_or_not(make, images):
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
    watch = UntilWrong(x, y, 1.0, patience=patience)
    x_adv = attacked(watch, x, y, epsilon=4, step_size=STEP)
    limits = ((1 - x) / STEP).flatten().tolist()  # white is as far as it goes
    assert moves(x, x_adv) == [min(steps, limit) for steps, limit in zip(expected, limits, strict=True)]


def test_without_a_word_there_is_no_patience(images):
    x, y = images
    assert moves(x, attacked(UntilWrong(x, y, 1.0), x, y)) == [0, 1, 2, 3, 4]


def test_patience_is_used_up_by_wrong_answers_only(images):
    watch = UntilWrong(*images, 1.0, patience=2)
    said = [asked(watch, logits) for logits in (WRONG, RIGHT, RIGHT, WRONG, RIGHT, WRONG)]
    assert said == [True, True, True, True, True, False]


def test_one_images_patience_is_not_anothers(images):
    watch = UntilWrong(*images, 1.0, patience=1)
    watch.logits = torch.cat([WRONG, RIGHT])
    for expected in ([True, True], [False, True]):
        assert watch(watch.x[:2], watch.x[:2], torch.tensor([3, 1])).tolist() == expected
    assert watch.left.tolist() == [1, 1, 1, -1, 1]


# --- until a gap --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [-0.5, 0.0, 0.3, 1.0])
def test_an_image_moves_while_the_best_other_class_is_ahead_by_no_more_than_the_gap(gap):
    x, logits, y = torch.rand(40, 1, 2, 2), 4 * torch.randn(40, 5), torch.arange(40) % 5
    watch = UntilGap(x, y, 0.1, gap=gap)
    watch.logits = logits
    expected = []
    for row, label in zip(logits, y.tolist(), strict=True):
        p = (row.exp() / row.exp().sum()).tolist()
        expected.append(max(p[:label] + p[label + 1 :]) - p[label] <= gap)
    assert watch(x, x, torch.arange(40)).tolist() == expected
    assert gap == 1 or len(set(expected)) == 2


def test_an_image_on_the_boundary_still_moves_where_the_gap_is_nothing(images):
    watch = UntilGap(*images, 1.0, gap=0.0)
    assert asked(watch, torch.tensor([[1.0, 1.0]]))
    assert not asked(watch, torch.tensor([[1.0, 1.0001]]))


def test_a_gap_of_nothing_stops_where_no_patience_does_and_a_gap_of_one_never(images):
    x, y = images
    none, full = (attacked(UntilGap(x, y, 1.0, gap=gap), x, y) for gap in (0.0, 1.0))
    assert none.equal(attacked(UntilWrong(x, y, 1.0), x, y))
    assert full.equal(attacked(Watch(x, y, 1.0), x, y))


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
    watch = UntilConverged(x, torch.zeros(30, dtype=torch.long), 0.1, bound=bound)
    watch.logits = torch.zeros(30, 2)
    assert watch(x_adv, gradient, torch.arange(30)).tolist() == [value > bound for value in values]
    assert min(values) >= 0


def test_the_condition_is_taken_about_each_images_own_centre():
    x, gradient = torch.tensor([0.0, 0.25, 0.5, 0.75]).view(4, 1, 1, 1).expand(4, 1, 2, 2), torch.ones(2, 1, 2, 2)
    index = torch.tensor([3, 1])
    watch = UntilConverged(x, torch.zeros(4, dtype=torch.long), 0.25, bound=0.9)
    watch.logits = torch.zeros(2, 2)
    offset = torch.tensor([0.0, 0.125]).view(2, 1, 1, 1)  # FOSC is 1 at the centre, 1/2 halfway to the corner
    assert watch(x[index] + offset, gradient, index).tolist() == [True, False]


def test_an_image_in_the_corner_that_its_gradient_points_to_is_converged_even_at_a_bound_of_zero():
    x, gradient = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1.0, -2.0, 4.0, -0.5]).view(1, 1, 2, 2)
    watch = UntilConverged(x, torch.zeros(1, dtype=torch.long), 0.25, bound=0.0)
    watch.logits = torch.zeros(1, 2)
    corner = x + 0.25 * gradient.sign()
    assert not watch(corner, gradient, torch.tensor([0]))
    almost = corner - torch.tensor([0.0, 0.0, 0.0625, 0.0]).view(1, 1, 2, 2)
    assert watch(almost, gradient, torch.tensor([0]))


def test_the_first_order_condition_is_never_negative_on_an_attacks_way(make_net, batch):
    (x, y), net, values = batch, make_net().eval(), []

    class Spy(UntilConverged):
        def goes_on(self, logits, x_adv, gradient, index):
            values.extend(fosc(self.x[index], x_adv, gradient, self.epsilon))
            return super().goes_on(logits, x_adv, gradient, index)

    attacked(Spy(x, y, 0.1, bound=-1.0), x, y, net, epsilon=0.1, step_size=0.03, start=uniform)
    assert len(values) == 6 * STEPS
    assert min(values) > -1e-5


# --- counting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 4, 8])
def test_kappa_counts_the_iterates_at_which_an_image_is_right_with_the_start_and_without_the_end(steps, images):
    x, y = images
    watch = CountRight(x, y, 1.0)
    attacked(watch, x, y, steps=steps)
    assert watch.seen()["kappa"].tolist() == [min(right, steps) for right in [0, 1, 2, 3, 5]]


def test_kappa_counts_right_answers_after_a_wrong_one_too(images):
    watch = CountRight(*images, 1.0)
    assert all(asked(watch, logits) for logits in (RIGHT, WRONG, RIGHT))
    assert watch.seen()["kappa"].tolist() == [2, 0, 0, 0, 0]


def test_kappa_is_counted_for_the_images_that_are_asked(images):
    watch = CountRight(*images, 1.0)
    watch.logits = torch.cat([RIGHT, WRONG, RIGHT])
    assert watch(watch.x[:3], watch.x[:3], torch.tensor([4, 3, 1])).all()
    assert watch.seen()["kappa"].tolist() == [0, 1, 0, 0, 1]


def test_fosc_is_of_each_images_own_radius_where_radii_differ():
    x, y = torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, dtype=torch.long)
    watch = UntilConverged(x, y, torch.tensor([0.1, 0.3]), bound=0.2)
    watch.listen(lambda z: torch.zeros(len(z), 2))(x)
    assert watch(x, torch.ones_like(x), torch.arange(2)).tolist() == [False, True]
