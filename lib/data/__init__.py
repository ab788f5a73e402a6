"""Data sets as tensors: images stay on the device, and are cropped and flipped there, each image by its own draw."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lib.data.core import Dataset, Split, crop_and_flip, hold_out, to_float
from lib.data.sources import BLANK, blank, cifar, digits, folder
from lib.data.tiny_imagenet import tiny_imagenet
from lib.errors import choose

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "cifar10_jpeg": "CIFAR-10 (JPEG)"}
"""How a data set is called in print, where that is not its name here."""


def load(name: str, *, data_dir: Path, download: bool = False, cache_dir: Path | None = None) -> Dataset:
    """The data set called `name`; UserError with the remedy where there is none, or its files are missing or damaged.

    digits, digits_b and digits_five are embedded; cifar10 and cifar100 lie in torchvision's layout, tiny_imagenet in
    its archive's, and a folder has train/ and test/; cifar10_jpeg is such a folder, cifar10, of the data set's public
    JPEG copy. cifar10_blank, cifar100_blank and tiny_imagenet_blank are as large as theirs, and all black. `download`
    fetches CIFAR; `cache_dir` keeps decoded images.
    """
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": partial(digits, "digits"),
        "digits_b": partial(digits, "digits_b (the ten digits, a second split)", draw=1),
        "digits_five": partial(digits, "digits_five (the digits 0 to 4)", classes=5, test=250),
        "cifar10": partial(cifar, 10, data_dir, download),
        "cifar100": partial(cifar, 100, data_dir, download),
        "tiny_imagenet": partial(tiny_imagenet, data_dir, cache_dir),
        "folder": partial(folder, f"folder {data_dir.name}", data_dir, cache_dir),
        "cifar10_jpeg": partial(folder, TITLES["cifar10_jpeg"], data_dir / "cifar10", cache_dir),
        **{f"{name}_blank": partial(blank, name) for name in BLANK},
    }
    return choose("data set", name, loaders)()
