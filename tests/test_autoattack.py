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
from lib.attacks.autoattack import STAGES, Found, standard
from lib.attacks.batches import Setting
from lib.attacks.reference import REFERENCE
from lib.errors import UserError

EPSILON, BATCH, STEPS, QUERIES = 0.1, 5, 12, 150
GRADIENTS = ("apgd-ce", "apgd-t")


def small_net(classes=10):
    """Convolution, batch-norm, relu, linear for 2x5x5 images, in eval mode."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, classes)
    )
    net[1].running_mean.uniform_(-0.2, 0.2), net[1].running_var.uniform_(0.5, 1.5)
    return net.eval()


def labelled(net, n=13, wrong=(2, 7)):
    """Images and the labels that the network gives them, but for those at `wrong`."""
    x = torch.rand(n, 2, 5, 5)
    x[:, :, 0], x[:, :, 1] = 0, 1
    y = net(x).argmax(1)
    y[[*wrong]] = (y[[*wrong]] + 1) % 4
    return x, y


def authors(net, x, y, stages=STAGES, targets=9, seed=0, steps=STEPS, queries=QUERIES):
    """x' as pyautoattack's `run_standard_evaluation` gives it, of attacks that are shorter than the standard ones."""
    attack = AutoAttack(net, norm="Linf", eps=EPSILON, version="standard", device="cpu", seed=seed)
    attack.attacks_to_run, given = list(stages), dict(eps=EPSILON, device="cpu")
    attack.apgd = APGDAttack(net, n_iter=steps, **given)
    attack.apgd_targeted = APGDAttack_targeted(net, n_iter=steps, n_target_classes=targets, **given)
    attack.fab = FABAttack_PT(net, n_iter=steps, n_target_classes=targets, **given)
    attack.square = SquareAttack(net, n_queries=queries, resc_schedule=False, **given)
    return attack.run_standard_evaluation(x, y, batch_size=BATCH)[0]


def right(net, x, y):
    return net(x).argmax(1) == y


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(autoattack, "Setting", partial(Setting, steps=STEPS, queries=QUERIES))


@pytest.fixture
def case():
    net = small_net()
    return net, *labelled(net)


attack = partial(standard, epsilon=EPSILON, batch_size=BATCH)
theirs = partial(attack, attacks=REFERENCE)


# --- the driver: the authors' stages through it, and the authors' own evaluation -----------------------------------


@pytest.mark.parametrize(("classes", "targets", "seed"), [(10, 9, 0), (10, 9, 3), (5, 4, 0)])
def test_the_driver_makes_the_authors_images_pixel_by_pixel(classes, targets, seed):
    net = small_net(classes)
    x, y = labelled(net)
    found = theirs(net, x, y, seed=seed)
    assert found.x_adv.equal(authors(net, x, y, targets=targets, seed=seed))
    assert 1 < sum(name in STAGES for name in found.broken_by) < len(x) - 2


def test_flags_are_kept_after_every_stage(case):
    net, x, y = case
    found = theirs(net, x, y)
    assert list(found.robust) == ["clean", *STAGES]
    assert found.robust["clean"].equal(right(net, x, y))
    for n in (1, 3):
        alone = right(net, authors(net, x, y, STAGES[:n]), y)
        assert found.robust[STAGES[n - 1]].equal(alone)


def test_every_image_is_told_which_stage_broke_it():
    robust = {"clean": [1, 1, 1, 0], "apgd-ce": [1, 0, 1, 0], "square": [1, 0, 0, 0]}
    found = Found(torch.zeros(4, 1), {name: torch.tensor(flags, dtype=torch.bool) for name, flags in robust.items()})
    assert found.broken_by == ["", "apgd-ce", "square", "clean"]


def test_a_set_of_which_nothing_is_right_is_not_attacked(case):
    net, x, _ = case
    found = theirs(net, x, (net(x).argmax(1) + 1) % 10)
    assert found.x_adv.equal(x)
    assert not any(robust.any() for robust in found.robust.values())


def test_an_image_that_rounding_alone_breaks_is_attacked_again_on_the_network_itself(case):
    net, x, y = case

    def crafting(z):
        """The network, its last class far ahead in the upper half of an attack."""
        return net(z) + 100 * nn.functional.one_hot(torch.tensor(9), 10) * (z.mean((1, 2, 3)) > 0.52)[:, None]

    found = attack(crafting, x, y, judge=net)
    assert found.x_adv.equal(attack(net, x, y).x_adv)


# --- saved, resumed, shared out ------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def killed_after(batches):
    """The stages; the one after so many batches ends the run."""
    done = []

    def through(stage):
        def run(*given):
            if len(done) == batches:
                raise KilledError
            done.append(stage)
            return stage(*given)

        return run

    return {name: through(stage) for name, stage in autoattack.OWN.items()}, done


@pytest.mark.parametrize("batches", [0, 2, 5])
def test_a_killed_run_goes_on_to_equal_images_and_flags_and_repeats_no_batch(case, tmp_path, batches):
    whole = attack(*case)
    stages, done = killed_after(batches)
    with pytest.raises(KilledError):
        attack(*case, attacks=stages, folder=tmp_path)
    assert len(done) == batches
    stages, done = killed_after(1000)
    found = attack(*case, attacks=stages, folder=tmp_path)
    assert found.x_adv.equal(whole.x_adv)
    assert all(found.robust[name].equal(flags) for name, flags in whole.robust.items())
    stages, _ = killed_after(0)
    assert attack(*case, attacks=stages, folder=tmp_path).x_adv.equal(whole.x_adv)


def test_a_damaged_batch_is_done_again_and_no_pickle_is_in_the_folder(case, tmp_path):
    whole = attack(*case, folder=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    json.loads((tmp_path / "about.json").read_text())
    damaged = next(file for file in files if file.suffix == ".safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert attack(*case, folder=tmp_path).x_adv.equal(whole.x_adv)


@pytest.mark.parametrize("change", ["net", "images", "seed"])
def test_the_state_of_another_attack_is_refused(case, tmp_path, change):
    net, x, y = case
    attack(net, x, y, stages=("apgd-ce",), folder=tmp_path)
    other = {"net": (small_net(), x, y), "images": (net, x + 0.01, y)}.get(change, case)
    with pytest.raises(UserError, match="state of another AutoAttack"):
        attack(*other, seed=int(change == "seed"), folder=tmp_path)


def test_two_processes_find_what_one_finds(case):
    whole, found = attack(*case), attack(*case, workers=2)
    assert found.x_adv.equal(whole.x_adv)
    assert all(found.robust[name].equal(flags) for name, flags in whole.robust.items())


def test_a_network_that_cannot_be_sent_is_refused_in_a_sentence(case):
    net, x, y = case
    with pytest.raises(UserError, match="cannot be sent.*workers=1"):
        attack(lambda z: net(z), x, y, workers=2)


def test_the_finished_share_rises_to_one(case):
    shares = []
    attack(*case, notify=shares.append)
    assert shares == sorted(shares)
    assert len(shares) > 4
    assert shares[-1] == 1


def test_an_unknown_stage_is_refused(case):
    with pytest.raises(UserError, match="'apgd'.*apgd-ce"):
        attack(*case, stages=("apgd",))
