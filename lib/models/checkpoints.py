"""Weights on disk: written as safetensors, read back strictly, never by running code from a file."""

import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lib.errors import UserError, abridged
from lib.models import fitting

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state")  # where public checkpoints put their weights
PREFIXES = ("module.", "model.", "net.", "0.")  # DataParallel and wrappers; never "1.", which hides a normalisation
LAYOUT = re.compile("-(silu|sub-block|deepmind|guide)$")  # what a name of a depth and a width may end in


def as_safetensors(tensors: dict[str, Tensor]) -> bytes:
    """The content of a safetensors file; equal tensors give equal bytes."""
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a file's state dict into `net`, as `read_state` and `load_state` do."""
    load_state(net, read_state(path), path)


def load_state(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load the tensors read from `path` into `net`, prefixes taken off; UserError, and none loaded, if one misfits."""
    own = net.state_dict()
    state = bare(state, own)
    problems = {
        "missing": own.keys() - state.keys(),
        "unexpected": state.keys() - own.keys(),
        "shapes": {
            f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
            for name in own.keys() & state.keys()
            if own[name].shape != state[name].shape
        },
    }
    if differences := [f"{kind}: {abridged(names, most=6)}" for kind, names in problems.items() if names]:
        named = fitting(bare(state))
        differences += [f"with its own number of classes the file fits {' and '.join(named)}"] if named else []
        raise UserError(f"{path} does not fit {type(net).__name__}; nothing was loaded. {'; '.join(differences)}")
    net.load_state_dict(state)


def bare(state: dict[str, Tensor], own: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors without the prefixes that all of their names have, as far as none is one of `own`."""
    while not {*own} & state.keys() and (found := [p for p in PREFIXES if all(n.startswith(p) for n in state)]):
        state = {name.removeprefix(found[0]): tensor for name, tensor in state.items()}
    return state


def chosen(model: str, state: dict[str, Tensor], path: Path) -> str:
    """`model` if the tensors read from `path` fit it, else the network they fit of its depth and width; of any if "".

    Raises a UserError where they fit several, whose keys are the same, or without a `model` none.
    """
    named = fitting(bare(state))
    near = [name for name in named if not model or LAYOUT.sub("", name) == LAYOUT.sub("", model)]
    if len(near) == 1:
        return near[0]
    if model in named or (model and not near):
        return model
    same = f"{' and '.join(near)}, whose keys are the same and whose logits are not"
    raise UserError(f"{path} fits {same if near else 'no network of lib/models'}; say which model it is")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, out of its wrappers: of safetensors, or of torch's format read without running code.

    Raises:
        UserError: the file is missing, truncated, not a state dict, or holds objects other than plain data.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else read_plain(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error})") from error
    while isinstance(state, dict) and (inner := next((state[w] for w in WRAPPERS if w in state), None)) is not None:
        state = inner
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (a mapping from names to tensors)")
    return state


def read_plain(path: Path) -> Any:
    """torch.load of tensors and plain values; UserError where the pickle asks for more, which is not run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is damaged or wants to run code while loading; refused") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or not a weights file") from error
