import json
from functools import partial

import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import nn

from lib.attacks import autoattack
from lib.attacks.autoattack import STAGES, perturb, standard
from lib.attacks.folding import folded
from lib.errors import UserError
from lib.models.modes import frozen

EPSILON, BATCH, STEPS, QUERIES, TARGETS = 0.1, 5, 6, 60, 3


def small_net(classes=10):
    """Convolution, batch-norm, relu, linear for 2x5x5 images, in eval mode."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, classes)
    )
    net[1].running_mean.uniform_(-0.2, 0.2), net[1].running_var.uniform_(0.5, 1.5)
    return net.eval()


def labelled(net, n=11, wrong=(2, 7)):
    """Images and the labels that the network gives them, but for those at `wrong`."""
    x = torch.rand(n, 2, 5, 5)
    x[:, :, 0], x[:, :, 1] = 0, 1
    y = net(x).argmax(1)
    y[[*wrong]] = (y[[*wrong]] + 1) % 4
    return x, y


def authors(net, x, y, stages=STAGES, targets=TARGETS, seed=0, steps=STEPS, queries=QUERIES):
    """x' of pyautoattack's `run_standard_evaluation`, of attacks that are shorter than the standard ones."""
    attack = AutoAttack(net, norm="Linf", eps=EPSILON, version="standard", device=x.device, seed=seed)
    attack.attacks_to_run, settings = list(stages), dict(eps=EPSILON, device=x.device)
    attack.apgd = APGDAttack(net, n_iter=steps, **settings)
    attack.apgd_targeted = APGDAttack_targeted(net, n_iter=steps, n_target_classes=targets, **settings)
    attack.fab = FABAttack_PT(net, n_iter=steps, n_target_classes=targets, **settings)
    attack.square = SquareAttack(net, n_queries=queries, resc_schedule=False, **settings)
    return attack.run_standard_evaluation(x, y, batch_size=BATCH)[0]


def right(net, x, y):
    return net(x).argmax(1) == y


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(autoattack, "STEPS", STEPS)
    monkeypatch.setattr(autoattack, "QUERIES", QUERIES)
    monkeypatch.setattr(autoattack, "TARGETS", TARGETS)


@pytest.fixture
def case():
    net = small_net()
    return net, *labelled(net)


attack = partial(standard, epsilon=EPSILON, batch_size=BATCH)


def assert_equal(one, other):
    assert one.x_adv.equal(other.x_adv)
    assert all(one.robust[name].equal(flags) for name, flags in other.robust.items())


@pytest.mark.parametrize(("classes", "targets", "seed"), [(10, 9, 0), (10, 9, 3), (5, 4, 0)])
def test_every_image_is_that_of_the_authors_own_evaluation_pixel_by_pixel(classes, targets, seed, monkeypatch):
    monkeypatch.setattr(autoattack, "TARGETS", 9)
    net = small_net(classes)
    x, y = labelled(net)
    result = attack(net, x, y, seed=seed)
    assert result.x_adv.equal(authors(net, x, y, targets=targets, seed=seed))
    assert 0 < result.robust["square"].sum() < result.robust["clean"].sum()


@pytest.mark.slow
def test_the_standard_lengths_are_the_authors(case, monkeypatch):
    monkeypatch.undo()
    net, x, y = case
    x, y = x[:4], y[:4]
    theirs = AutoAttack(net, norm="Linf", eps=EPSILON, version="standard", device="cpu", seed=0)
    assert attack(net, x, y).x_adv.equal(theirs.run_standard_evaluation(x, y, batch_size=BATCH)[0])


def test_on_the_folded_frozen_network_the_flags_are_the_networks_own_after_every_stage(case):
    net, x, y = case
    assert folded(net) is not net
    on_folded, plain = attack(folded(net), x, y, judge=net), attack(net, x, y)
    assert list(on_folded.robust) == list(plain.robust)
    assert all(on_folded.robust[stage].equal(flags) for stage, flags in plain.robust.items())


def test_flags_are_kept_after_every_stage(case):
    net, x, y = case
    result = attack(net, x, y)
    assert list(result.robust) == ["clean", *STAGES]
    assert result.robust["clean"].equal(right(net, x, y))
    for n in (1, 3):
        alone = right(net, authors(net, x, y, STAGES[:n]), y)
        assert result.robust[STAGES[n - 1]].equal(alone)


def test_a_set_of_which_nothing_is_right_is_not_attacked(case):
    net, x, _ = case
    result = attack(net, x, (net(x).argmax(1) + 1) % 10)
    assert result.x_adv.equal(x)
    assert not any(robust.any() for robust in result.robust.values())


def test_images_left_over_are_packed_into_full_batches_before_each_stage(case, monkeypatch):
    net, x, y = case
    sizes = []
    monkeypatch.setattr(
        autoattack, "perturb", lambda stage, net, x, y, *rest: sizes.append(len(x)) or perturb(stage, net, x, y, *rest)
    )
    result = attack(net, x, y)
    left = [int(result.robust[name].sum()) for name in ("clean", *STAGES[:-1])]
    assert sizes == [size for n in left for size in [BATCH] * (n // BATCH) + [n % BATCH] * (n % BATCH > 0)]


@pytest.mark.parametrize("want_gradients", [True, False])
def test_no_parameter_gets_a_gradient_or_loses_its_flag_and_torchs_own_draws_are_left_alone(case, want_gradients):
    net, state, flags = case[0], torch.get_rng_state(), []
    net.requires_grad_(want_gradients)
    net.register_forward_hook(
        lambda net, *_: flags.append(torch.is_grad_enabled() and any(p.requires_grad for p in net.parameters()))
    )
    attack(*case, clean=torch.ones(11, dtype=torch.bool))
    assert not any(flags)  # FAB would compute and keep every weight's gradient
    assert all(p.grad is None and p.requires_grad == want_gradients for p in net.parameters())
    assert torch.get_rng_state().equal(state)


def test_an_image_that_rounding_alone_breaks_is_attacked_again_on_the_network_itself(case):
    net, x, y = case

    def crafting(z):
        """The network, its last class far ahead in the upper half of an attack."""
        return net(z) + 100 * nn.functional.one_hot(torch.tensor(9), 10) * (z.mean((1, 2, 3)) > 0.52)[:, None]

    with frozen(net):
        result = attack(crafting, x, y, judge=net)
    assert result.x_adv.equal(attack(net, x, y).x_adv)


# --- saved and resumed ---------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


@pytest.fixture
def count(monkeypatch):
    """The number of batches that are attacked; the one after `limit` ends the run."""
    done, limit = [], [10**6]

    def through(*settings):
        if len(done) >= limit[0]:
            raise KilledError
        done.append(settings[0])
        return perturb(*settings)

    monkeypatch.setattr(autoattack, "perturb", through)
    return done, limit


@pytest.mark.parametrize("batches", [0, 2, 5])
def test_a_killed_run_goes_on_to_equal_images_and_flags_and_repeats_no_batch(case, tmp_path, batches, count):
    (done, limit), whole = count, attack(*case)
    total = len(done)
    limit[0] = total + batches
    with pytest.raises(KilledError):
        attack(*case, folder=tmp_path)
    limit[0] = 2 * total
    assert_equal(attack(*case, folder=tmp_path), whole)
    assert len(done) == 2 * total
    assert_equal(attack(*case, folder=tmp_path), whole)  # nothing is attacked any more


def test_a_damaged_batch_is_done_again_and_no_pickle_is_in_the_folder(case, tmp_path):
    whole = attack(*case, folder=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    json.loads((tmp_path / "about.json").read_text())
    damaged = next(file for file in files if file.suffix == ".safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert_equal(attack(*case, folder=tmp_path), whole)


@pytest.mark.parametrize("change", ["net", "images", "seed"])
def test_the_state_of_another_attack_is_refused(case, tmp_path, change):
    net, x, y = case
    attack(net, x, y, stages=("apgd-ce",), folder=tmp_path)
    other = {"net": (small_net(), x, y), "images": (net, x + 0.01, y)}.get(change, case)
    with pytest.raises(UserError, match="state of another AutoAttack"):
        attack(*other, seed=int(change == "seed"), folder=tmp_path)


def test_the_finished_share_rises_to_one(case):
    shares = []
    attack(*case, notify=shares.append)
    assert shares == sorted(shares)
    assert len(shares) > 4
    assert shares[-1] == 1
