"""Weights on disk: written as safetensors, read back strictly, never by running code from a file."""

import os
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lib.errors import UserError, abridged
from lib.models import fitting

PREFERRED = ("state_dict", "model_state_dict", "model", "net", "state", "")  # of a file's networks; "": not in a dict
HALVES = {"mean": ("mean", "mu", "means", "new_mean"), "std": ("std", "sigma", "stds", "sds", "new_std")}
NORMALISATION = {name: half for half, names in HALVES.items() for name in names}  # as public files call its two halves
COUNTER = "num_batches_tracked"  # of a batch-norm: no output depends on it, and old files lack it
LAYOUT = re.compile("-(silu|sub-block|deepmind|guide)$")  # what a name of a depth and a width may end in
NUMPY = ("multiarray.scalar", "multiarray._reconstruct")
HOLDERS = ["argparse.Namespace", "types.SimpleNamespace", "numpy.dtype", "numpy.ndarray", "pathlib.PosixPath"]
HOLDERS += [f"numpy.{core}.{name}" for core in ("core", "_core") for name in NUMPY]
"""Classes that only hold data, which training scripts save beside the weights; none of them is made."""

CONTENTS = {  # how a file begins -> what it is, and the way out
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; git lfs pull fetches it",
    b"<": "a web page, not a weights file; fetch the file itself (a login or a quota may stand before it)",
    b"\x89HDF": "an HDF5 file; a state dict of torch or safetensors is wanted",
    b"\x1f\x8b": "a gzip archive; unpack it and name the weights file inside",
    b"\x93NUMPY": "a numpy array; a state dict of torch or safetensors is wanted",
    **dict.fromkeys(
        (b"\x80\x04", b"\x80\x05"), "a plain pickle, which may run code; refused. Write it with torch.save"
    ),
    b"": "empty",
}


class Beside:
    """Stands for an object of HOLDERS, whose content is not kept."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


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
    state = {name: tensor for name, tensor in own.items() if name.endswith(COUNTER)} | state
    both = sorted(own.keys() & state.keys())
    problems = {
        "missing": own.keys() - state.keys(),
        "unexpected": {name[:80] for name in state.keys() - own.keys()},
        "shapes": {
            f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
            for name in both
            if own[name].shape != state[name].shape
        },
        "kinds": {f"{name} is {kind}" for name in both if (kind := _unfit(state[name], own[name]))},
    }
    if differences := [f"{kind}: {abridged(names)}" for kind, names in problems.items() if names]:
        named = fitting(bare(state))
        differences += [f"with its own number of classes the file fits {' and '.join(named)}"] if named else []
        raise UserError(f"{path} does not fit {type(net).__name__}; nothing was loaded. {'; '.join(differences)}")
    net.load_state_dict(state)


def _unfit(tensor: Tensor, own: Tensor) -> str:
    """What keeps a tensor from being the weight `own`, whatever its shape; "" if nothing does."""
    kinds = {"quantised": tensor.is_quantized, "sparse": tensor.layout != torch.strided}
    kinds |= {"without values (meta)": tensor.is_meta}
    kinds |= {str(tensor.dtype): own.is_floating_point() and not tensor.is_floating_point()}
    return next((kind for kind, there in kinds.items() if there), "")


def bare(state: dict[str, Tensor], own: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors without the prefixes that all of their names have, as far as none is one of `own`.

    A prefix is DataParallel's, torch.compile's or any wrapper's, and a number only if it is 0: "1." hides a layer.
    """
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    while not {*own} & state.keys() and len(firsts := {name.partition(".")[0] for name in state}) == 1:
        (first,) = firsts
        if first in state or (first.isdecimal() and first != "0"):
            break
        state = {name.removeprefix(f"{first}."): tensor for name, tensor in state.items()}
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


def read_state(path: Path, part: str = "") -> dict[str, Tensor]:
    """The tensors of a state dict, out of its wrappers: of safetensors, or of torch's format read without running code.

    Where the file holds several networks, `part` names one; without it the first of PREFERRED is taken, and said in a
    warning. Raises a UserError where the file is missing, truncated or no state dict, holds objects other than plain
    data, or several networks of which none is preferred.
    """
    networks = networks_in(path)
    wanted = part or preferred([*networks], path)
    if wanted in networks:
        return networks[wanted]
    inside = {
        name.removeprefix(f"{part}."): tensor
        for state in networks.values()
        for name, tensor in state.items()
        if name.startswith(f"{part}.")
    }
    if not inside:
        raise UserError(f"{path} holds no network {part!r}; part is one of: {abridged(networks, 6)}")
    return inside


def preferred(names: list[str], path: Path) -> str:
    """The one of a file's networks that is meant where none is named; a warning says so, or a UserError asks."""
    ranks = {name: [(*PREFERRED, part).index(part) for part in name.split(".")] for name in names}
    first, *others = sorted(names, key=lambda name: ranks[name])
    if others and ranks[first] == ranks[others[0]]:
        raise UserError(f"{path} holds several networks; say with part which is meant: {abridged(names, 6)}")
    if others:
        warnings.warn(f"{path} holds several networks ({abridged(names, 6)}); {first!r} was taken", stacklevel=3)
    return first


def networks_in(path: Path) -> dict[str, dict[str, Tensor]]:
    """Every state dict of a file by the keys that lead to it, "" if none: tensors, and a normalisation's numbers."""
    found: dict[str, dict[str, Tensor]] = {}
    waiting, seen = [("", _content(path))], set[int]()
    while waiting:  # a hostile file may contain itself, or nest without end
        where, value = waiting.pop()
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        named = {name: item for name, item in value.items() if isinstance(name, str)}
        tensors = {name: item for name, item in named.items() if isinstance(item, Tensor) and name != "n_averaged"}
        if any(tensor.dim() > 1 for tensor in tensors.values()):
            numbers = {name: item for name, item in named.items() if name in NORMALISATION and _numbers(item)}
            found[where] = tensors | {name: torch.tensor(item) for name, item in numbers.items()}
        waiting += [(f"{where}.{name}".lstrip(".")[:200], item) for name, item in named.items()]
    if not found:
        raise UserError(f"{path} holds no state dict (a mapping from names to tensors)")
    return dict(sorted(found.items()))


def _numbers(item: Any) -> bool:
    items = item if isinstance(item, list | tuple) else [item]
    return bool(items) and all(isinstance(number, int | float) for number in items)


def _content(path: Path) -> Any:
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name the weights file in it")
    if not os.path.isfile(path):
        raise UserError(f"there is no weights file {path}")
    try:
        with path.open("rb") as file:
            header = file.read(9)
        return load_file(path) if header[8:] == b"{" else read_plain(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or cannot be read ({str(error)[:100]})") from error


def read_plain(path: Path) -> Any:
    """torch.load of tensors and plain values; UserError where the pickle asks for more, which is not run."""
    try:
        if zipfile.is_zipfile(path) and (broken := zipfile.ZipFile(path).testzip()):  # which torch does not look at
            raise ValueError(f"the checksum of {broken} is wrong")
        with torch.serialization.safe_globals([(Beside, name) for name in HOLDERS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # whatever a foreign file makes the reader say
        raise UserError(f"{path} {_refusal(path, str(error))}") from error


def _refusal(path: Path, error: str) -> str:
    """What the file is that torch does not read, as far as its beginning or torch's error says."""
    with path.open("rb") as file:
        head = file.read(400).lstrip() or b""
    for begin, what in CONTENTS.items():
        if head.startswith(begin) and bool(begin) == bool(head):
            return f"is {what}"
    if wanted := re.search(r"GLOBAL (\S+)", error):
        return (
            f"wants to run code while loading ({wanted[1][:80]}); refused. If it is a whole network, "
            "save its state dict in its place: torch.save(net.state_dict(), ...)"
        )
    if "TorchScript" in error:
        return "is a TorchScript archive, which is code; a state dict is wanted: torch.save(net.state_dict(), ...)"
    text = not {*head} & {*range(9), *range(14, 32), *range(127, 256)}
    return "is a text file, not a weights file" if text else "is damaged or not a weights file"
