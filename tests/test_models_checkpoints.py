import os
import pickle

import pytest
import torch
from torch import nn

from lib.errors import UserError
from lib.models.checkpoints import as_safetensors, load_weights, read_state


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


def test_an_html_page_in_place_of_weights_is_called_damaged(tmp_path):
    (tmp_path / "w.pt").write_text("<!doctype html><html>quota exceeded</html>")
    with pytest.raises(UserError, match="damaged"):
        read_state(tmp_path / "w.pt")
