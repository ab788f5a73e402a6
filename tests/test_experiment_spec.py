from dataclasses import fields, replace

import pytest

from lib.errors import UserError, choose, typed
from lib.experiment.spec import DataSpec, GivenWeights, RunSpec
from lib.methods import Piecewise
from lib.methods.strategy import StrategySpec
from lib.train import Schedule
from lib.train.devices import Parallel
from lib.train.weights import AWP

SPEC = RunSpec(
    data=DataSpec("digits", "00", 0, 100),
    model="ResNet8-w8",
    method="dgad",
    weights=(("beta", 5.0), ("exponent", Piecewise((0.3,), (0.0, 0.1)))),
    teacher=GivenWeights("WideResNet-10-1", "11"),
    schedule=Schedule(epochs=10),
    epsilon=0.1,
    step_size=0.02,
    attack_steps=10,
    selection="held_out",
    selection_images=0,
    seed=0,
)
CHANGES = {
    "data": DataSpec("digits", "01", 0, 100),
    "model": "MobileNetV2-small",
    "method": "adaad",
    "weights": (("beta", 5.0), ("exponent", Piecewise((0.4,), (0.0, 0.1)))),
    "teacher": None,
    "schedule": Schedule(epochs=11),
    "epsilon": 0.11,
    "step_size": 0.03,
    "attack_steps": 9,
    "selection": "test",
    "selection_images": 50,
    "seed": 1,
    "precision": "bf16",
    "max_steps": 3,
    "guide": "ResNet8-w8",
    "strategy": StrategySpec("random", (("steps", (1.0, 2.0)),)),
    "awp": AWP(0.005),
    "average": 0.99,
    "recipe": 99,
    "parallel": Parallel("synchronised"),
}


def test_the_digest_of_a_spec_is_the_same_everywhere():
    assert SPEC.digest == replace(SPEC).digest == "e90c3614a2da"
    assert replace(SPEC, teacher=replace(SPEC, teacher=None)).digest == "43d06745c3cb"


def test_the_number_of_devices_changes_a_digest_where_each_has_its_own_batch_statistics():
    two, three = (replace(SPEC, parallel=Parallel("per_device", count)) for count in (2, 3))
    assert len({SPEC.digest, replace(SPEC, parallel=Parallel("synchronised")).digest, two.digest, three.digest}) == 4


@pytest.mark.parametrize("name", [f.name for f in fields(RunSpec)])
def test_every_field_of_a_spec_changes_its_digest(name):
    assert replace(SPEC, **{name: CHANGES[name]}).digest != SPEC.digest


def test_a_students_digest_changes_with_its_teachers_training():
    teacher = replace(SPEC, teacher=None, method="pgd_at", weights=())
    student, other = (replace(SPEC, teacher=t) for t in (teacher, replace(teacher, seed=1)))
    assert student.digest != other.digest


def test_an_unknown_field_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="schedule has no 'epoch'; choose from: epochs, batch_size"):
        typed(Schedule, {"epoch": 3}, "schedule")


def test_a_whole_number_serves_as_a_float_and_a_list_as_a_tuple():
    assert typed(Schedule, {"epochs": 3, "lr": 1, "milestones": [1, 2]}, "s").milestones == (1, 2)


def test_choosing_what_is_not_there_lists_the_choices():
    with pytest.raises(UserError, match="unknown fruit 'plum'; choose one of: apple, pear"):
        choose("fruit", "plum", {"apple": 1, "pear": 2})
