"""torchrun with two processes on this machine's CPU, beside one process and beside a rank that dies.

The runs compared in fp32 are of attacks on a cross-entropy or on the teacher. KL(S(x) || S(x')) has next to no gradient
where its attack starts, so rounding decides signs; tests/test_train_devices.py compares those methods in float64.
"""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small import SETTINGS, parameters

from lib import ROOT
from lib.errors import UserError
from lib.experiment.parameters import load_scale
from lib.files import file_digest
from lib.train.devices import Parallel

TOLERANCE = 1e-5  # of a weight, in fp32, after six steps; the largest difference seen is 7e-7
SYNCHRONISED = SETTINGS | {"batch_norm": "synchronised"}
PER_DEVICE = SETTINGS | {"batch_norm": "per_device", "devices": 2}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
MAKE = ("-m", "lib.experiment.everything")
DYING = """
import os
from lib.experiment import everything
from lib.train import Training, devices

def epoch(self, epoch=Training.epoch):
    if self.history and devices.rank() == 1:
        os._exit(9)
    return epoch(self)

Training.epoch = epoch
everything.main()
"""


def call(outputs, settings, *command):
    """A process with these arguments, and with the outputs, the settings and the CPU."""
    given = ("--outputs", outputs, "--device", "cpu", "--settings", yaml.safe_dump(settings))
    command = [sys.executable, *map(str, (*command, *given))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def runs(outputs):
    return {folder.name: folder for folder in sorted((outputs / "runs").iterdir())}


def facts(folder):
    return json.loads((folder / "provenance.json").read_text())


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """LAS-AT and searches beside it, DGAD in three forms and its teacher, by two processes."""
    outputs = tmp_path_factory.mktemp("two")
    made = call(outputs, SYNCHRONISED, *TORCHRUN, *MAKE, "fig3_las_at", "table3_dgad")
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.count("Plan.") == 1
    return outputs


@pytest.mark.slow
def test_runs_by_torchrun_end_in_the_weights_that_one_process_ends_in(by_two, tmp_path):
    made = call(tmp_path, SYNCHRONISED, *MAKE, "--workers", "1", "fig3_las_at", "table3_dgad")
    assert made.returncode == 0, made.stderr
    ones, twos = runs(tmp_path), runs(by_two)
    assert list(ones) == list(twos)
    assert len(ones) == 8
    for digest, one in ones.items():
        assert (facts(one)["devices"], facts(twos[digest])["devices"]) == (1, 2)
        for name in {file.name for file in one.glob("*.safetensors")} - {"best.safetensors"}:
            weights, found = (load_file(folder / name) for folder in (one, twos[digest]))
            torch.testing.assert_close(found, weights, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.slow
def test_after_a_rank_died_the_same_call_goes_on_and_ends_in_the_same_bits(tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    whole = call(tmp_path / "whole", PER_DEVICE, *TORCHRUN, *MAKE, "fig3_dynat")
    ended = call(tmp_path / "cut", PER_DEVICE, *TORCHRUN, tmp_path / "dying.py", "fig3_dynat")
    assert (whole.returncode, ended.returncode) == (0, 1), whole.stderr
    assert not runs(tmp_path / "cut")
    assert len([*(tmp_path / "cut" / "partial").glob("*.pt")]) == 1
    again = call(tmp_path / "cut", PER_DEVICE, *TORCHRUN, *MAKE, "fig3_dynat")
    assert again.returncode == 0, again.stderr
    expected, found = runs(tmp_path / "whole"), runs(tmp_path / "cut")
    assert list(expected) == list(found)
    assert sorted(facts(folder)["resumed"] for folder in found.values()) == [False, True]
    for digest, folder in found.items():
        for file in folder.glob("*.safetensors"):
            assert file_digest(file) == file_digest(expected[digest] / file.name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        (SETTINGS, (), "several devices want settings that say whose batch statistics"),
        (SYNCHRONISED, ("--workers", "2"), "several devices make one run after the other"),
    ],
)
def test_what_makes_no_sense_under_torchrun_is_refused_in_a_sentence(tmp_path, settings, more, message):
    made = call(tmp_path, settings, *TORCHRUN, *MAKE, "fig3_dynat", *more)
    assert made.returncode == 1
    assert message in made.stderr


def test_a_scale_says_whose_batch_statistics_its_runs_have():
    found = [load_scale(parameters("x", settings=more)).parallel for more in ({}, SYNCHRONISED, PER_DEVICE)]
    assert found == [None, Parallel("synchronised"), Parallel("per_device", 2)]
    with pytest.raises(UserError, match="devices goes with batch_norm"):
        load_scale(parameters("x", settings={"devices": 2}))
