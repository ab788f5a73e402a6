import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lib.errors import UserError
from lib.models import build
from lib.models.checkpoints import as_safetensors, bare, load_weights, read_state


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_weights_survive_the_round_trip_and_equal_weights_are_equal_bytes(tmp_path):
    one = net().to(memory_format=torch.channels_last)
    other = net()
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(as_safetensors(one.state_dict()))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    load_weights(other, tmp_path / "a.safetensors")
    for name, tensor in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "net"])
def test_public_checkpoints_load_whatever_their_prefix_and_wrapper(tmp_path, prefix, wrapper):
    own, other = net(), net()
    state = {prefix + name: tensor for name, tensor in own.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(other.state_dict()["0.weight"], own.state_dict()["0.weight"])


def test_a_file_that_does_not_fit_is_refused_by_the_names_and_loads_nothing(tmp_path):
    state = net().state_dict()
    state["fc.weight"] = state.pop("1.weight")
    torch.save(state, tmp_path / "w.pt")
    target = net()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError, match=r"missing: 1\.weight; unexpected: fc\.weight"):
        load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_another_shape_is_refused_with_both_shapes(tmp_path):
    state = net().state_dict() | {"0.bias": torch.zeros(5)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"0\.bias is \(5,\), not \(2,\)"):
        load_weights(net(), tmp_path / "w.pt")


class Hostile:
    def __init__(self, victim: str) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (self.victim,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", ["torch", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, write):
    victim, path = tmp_path / "victim", tmp_path / "w.pt"
    if write == "torch":
        torch.save({"weight": Hostile(str(victim))}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Hostile(str(victim))}))
    with pytest.raises(UserError, match="refused"):
        read_state(path)
    assert not victim.exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file_is_called_damaged(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(net().state_dict(), path)
    else:
        path.write_bytes(as_safetensors(net().state_dict()))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        read_state(path)


@pytest.mark.parametrize("content", [{}, {"state_dict": 3}, [1, 2], {"a": "text"}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="no state dict"):
        read_state(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no weights file .*nowhere\.pt"):
        read_state(tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n<!doctype html><html>quota exceeded</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer.*git lfs pull"),
        (b"root:x:0:0:root:/root:/bin/bash\n", "is a text file"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x1f\x8b\x08", "is a gzip archive; unpack it"),
        (b"\x93NUMPY\x01\x00", "is a numpy array"),
        (b"", "is empty"),
        (bytes(range(256)), "is damaged"),
        (b"PK\x03\x04 and more", "is damaged"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_is_no_weights_file_is_called_what_it_is(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_state(tmp_path / name)


def test_a_folder_given_as_weights_is_called_one(tmp_path):
    with pytest.raises(UserError, match="is a folder; name the weights file in it"):
        read_state(tmp_path)


def test_a_whole_module_is_refused_by_its_class_with_the_way_out(tmp_path):
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=r"wants to run code while loading \(torch\.nn.*Sequential\); refused.*state_dict"
    ):
        read_state(tmp_path / "w.pt")


def test_a_torchscript_archive_is_called_one(tmp_path):
    torch.jit.script(net()).save(tmp_path / "w.pt")
    with pytest.raises(UserError, match="is a TorchScript archive"):
        read_state(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "beside",
    [
        np.float64(81.2),
        np.zeros((2, 2)),
        argparse.Namespace(lr=0.1, out=Path("runs")),
        {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1}]}},
    ],
    ids=["a numpy number", "a numpy array", "argparse's Namespace", "an optimiser's state"],
)
def test_what_only_holds_data_may_stand_beside_the_weights(tmp_path, beside):
    own, other = net(), net()
    torch.save({"state_dict": own.state_dict(), "beside": beside}, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(other.state_dict()["0.weight"], own.state_dict()["0.weight"])


def test_safetensors_are_known_by_their_content_and_may_have_metadata(tmp_path):
    save_file(net().state_dict(), tmp_path / "w.pt", metadata={"format": "pt"})
    assert read_state(tmp_path / "w.pt").keys() == net().state_dict().keys()


LAYOUTS = {
    "torch.compile": lambda state: with_prefix("_orig_mod.", state),
    "compiled, in parallel": lambda state: with_prefix("module._orig_mod.", state),
    "in parallel, compiled": lambda state: with_prefix("_orig_mod.module.", state),
    "a compiled layer": lambda state: {name.replace("0.", "0._orig_mod."): tensor for name, tensor in state.items()},
    "AveragedModel": lambda state: with_prefix("module.", state) | {"n_averaged": torch.tensor(5)},
    "a wrapper of any name": lambda state: with_prefix("backbone.encoder.", state),
    "without counters": lambda state: {name: t for name, t in state.items() if "num_batches" not in name},
    "averaged counters": lambda state: state | {"1.num_batches_tracked": torch.tensor(2.5)},
    "numbers beside tensors": lambda state: {**state, "epoch": 3, "accuracy": 81.5, "name": "mine"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_dict_loads_in_every_form_that_training_leaves(tmp_path, layout):
    own, other = net(), net()
    torch.save(LAYOUTS[layout](own.state_dict()), tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    for name, parameter in own.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name


def with_prefix(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def test_a_networks_own_names_are_no_prefixes():
    for name in ("ResNet8-w8", "PreActResNet8-w8", "WideResNet-10-1", "VGG-small", "MobileNetV2-small"):
        state = build(name, classes=10).state_dict()
        assert bare(state).keys() == state.keys()


WEIGHT = net().state_dict()["0.weight"]


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (WEIGHT.to(torch.complex64), r"0\.weight is torch\.complex64"),
        (WEIGHT.to(torch.int8), r"0\.weight is torch\.int8"),
        (WEIGHT.to_sparse(), r"0\.weight is sparse"),
        (WEIGHT.to("meta"), r"0\.weight is without values"),
        (torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8), r"0\.weight is quantised"),
        (WEIGHT[..., :2], r"0\.weight is \(2, 1, 3, 2\), not \(2, 1, 3, 3\)"),
        (torch.zeros(1).expand(10**6, 10**6), r"0\.weight is \(1000000, 1000000\), not"),
    ],
    ids=["complex", "whole numbers", "sparse", "meta", "quantised", "another shape", "a huge view"],
)
def test_a_tensor_that_is_no_plain_weight_is_refused_by_its_name(tmp_path, tensor, said):
    torch.save(net().state_dict() | {"0.weight": tensor}, tmp_path / "w.pt")
    target = net()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError, match=said) as refused:
        load_weights(target, tmp_path / "w.pt")
    assert len(str(refused.value)) <= 500
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_a_file_that_contains_itself_or_nests_without_end_is_read_or_refused(tmp_path):
    itself: dict = {"epoch": 1}
    itself["state_dict"] = itself
    deep: dict = {}
    for _ in range(150):
        deep = {"model": deep}
    for content in (itself, deep):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match="no state dict"):
            read_state(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("model", "ema"), "model"),
        (("state_dict", "state_dict_ema"), "state_dict"),
        (("unaveraged_model_state_dict", "model_state_dict"), "model_state_dict"),
        (("net", "adversary"), "net"),
    ],
)
def test_of_a_files_networks_the_one_that_is_taken_is_said_and_another_can_be_chosen(tmp_path, names, taken):
    states = {name: net().state_dict() for name in names}
    torch.save({**states, "epoch": 3}, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match=f"{names[0]}.*'{taken}' was taken|{names[1]}.*'{taken}' was taken"):
        assert torch.equal(read_state(tmp_path / "w.pt")["0.weight"], states[taken]["0.weight"])
    for name in names:
        assert torch.equal(read_state(tmp_path / "w.pt", name)["0.weight"], states[name]["0.weight"])


def test_of_networks_of_which_none_is_preferred_one_has_to_be_chosen(tmp_path):
    states = {name: net().state_dict() for name in ("last", "best")}
    torch.save(states, tmp_path / "w.pt")
    with pytest.raises(UserError, match="several networks; say with part which is meant: best, last"):
        read_state(tmp_path / "w.pt")
    assert torch.equal(read_state(tmp_path / "w.pt", "best")["0.weight"], states["best"]["0.weight"])
    with pytest.raises(UserError, match="no network 'first'; part is one of: best, last"):
        read_state(tmp_path / "w.pt", "first")


def test_of_two_networks_in_one_flat_dict_a_prefix_names_one(tmp_path):
    student, teacher = net().state_dict(), net().state_dict()
    torch.save(with_prefix("student.", student) | with_prefix("teacher.", teacher), tmp_path / "w.pt")
    assert torch.equal(read_state(tmp_path / "w.pt", "teacher")["0.weight"], teacher["0.weight"])
    with pytest.raises(UserError, match="does not fit"):
        load_weights(net(), tmp_path / "w.pt")


def test_a_bit_flip_among_the_weights_of_a_torch_file_is_found_by_its_checksum(tmp_path):
    torch.save(net().state_dict(), tmp_path / "w.pt")
    content = bytearray((tmp_path / "w.pt").read_bytes())
    content[content.index(net_bytes := read_state(tmp_path / "w.pt")["0.weight"].numpy().tobytes()) + 5] ^= 4
    assert net_bytes not in content
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_state(tmp_path / "w.pt")
