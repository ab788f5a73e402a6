"""scikit-learn's digits, CIFAR in its official files, folders of image files: read without torchvision."""

import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.data.core import Dataset, Split, fixed_order
from lib.errors import UserError, abridged
from lib.files import file_digest, write_atomically

Sample = tuple[Path, int]  # an image file and its label
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

CIFAR = {  # classes -> torchvision's folder, the keys of labels and names, the official files, and their MD5 digests
    10: ("cifar-10-batches-py", "labels", "label_names", {
        "data_batch_1": "c99cafc152244af753f735de768cd75f", "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751", "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb", "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888"}),
    100: ("cifar-100-python", "fine_labels", "fine_label_names", {
        "train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48"}),
}  # fmt: skip


def digits(name: str, *, classes: int = 10, test: int = 500, draw: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten 8x8 digits, those below `classes`; `draw` picks the `test` test images."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images, labels = torch.from_numpy(bunch.images).float().div(16)[:, None], torch.from_numpy(bunch.target).long()
    everything = Split(images, labels).take(labels < classes)
    order = fixed_order(len(everything.labels), draw)
    train_split, test_split = everything.take(order[test:]), everything.take(order[:test])
    return Dataset(name, train_split, test_split, tuple("0123456789"[:classes]), padding=0, flip=False)


BLANK = {"cifar10": (10, 50_000, 32), "cifar100": (100, 50_000, 32), "tiny_imagenet": (200, 100_000, 64)}
"""Classes, training images and side of data sets that a plan can count without having them; each has 10,000 to test."""


def blank(name: str) -> Dataset:
    """As many images as `name` has, of its shape and all one black image: a plan is counted on it without the data."""
    classes, train, side = BLANK[name]
    black = torch.zeros((1, 3, side, side), dtype=torch.uint8)
    splits = [Split(black.expand(n, -1, -1, -1), torch.arange(n) % classes) for n in (train, 10_000)]
    return Dataset(f"{name}_blank", splits[0], splits[1], tuple(map(str, range(classes))), padding=4, flip=True)


def cifar(classes: int, data_dir: Path, download: bool) -> Dataset:
    """CIFAR-10 or, with its fine labels, CIFAR-100, as torchvision lays it out in `data_dir`; it only fetches them.

    A pickle may run code, so that no file is opened whose digest is not the official one's.
    """
    base, labels, names, digests = CIFAR[classes]
    paths = [data_dir / base / name for name in digests]
    contents = {path.name: _bytes(path) for path in paths}
    if wrong := [name for name, each in contents.items() if hashlib.md5(each).hexdigest() != digests[name]]:
        if download:
            _fetch(classes, data_dir)
            return cifar(classes, data_dir, download=False)
        raise UserError(
            f"CIFAR-{classes} is not (whole) in {data_dir}: put torchvision's folder {base} there, or pass "
            f"download=True where a network is ({abridged(wrong)} missing or not the official){_instead(data_dir)}"
        )
    *train, test, meta = (pickle.loads(content, encoding="latin1") for content in contents.values())
    splits = [
        Split(
            torch.from_numpy(np.concatenate([batch["data"] for batch in part]).reshape(-1, 3, 32, 32)),
            torch.tensor([label for batch in part for label in batch[labels]]),
        )
        for part in (train, [test])
    ]
    return Dataset(f"cifar{classes}", splits[0], splits[1], tuple(meta[names]), padding=4, flip=True)


def _bytes(path: Path) -> bytes:
    """The content of a file; nothing where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _fetch(classes: int, data_dir: Path) -> None:
    try:
        from torchvision.datasets import CIFAR10, CIFAR100

        {10: CIFAR10, 100: CIFAR100}[classes](data_dir, download=True)
    except (ImportError, RuntimeError, OSError, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"CIFAR-{classes} could not be fetched to {data_dir}: put torchvision's folder {CIFAR[classes][0]} there "
            f"({_first_line(error)[:200]})"
        ) from error


def _instead(data_dir: Path) -> str:
    """What lies in the folder in another layout, and how it is read or converted; "" where nothing is known."""
    found = {path.suffix.lower(): path.name for path in files_in(data_dir)}
    row = 'Path("train", str(label), f"{i}.png"), with folders train and test, is then data set folder'
    if ".parquet" in found:
        return f". {found['.parquet']} is Hugging Face's: write each row's img or image ['bytes'] to {row}"
    if ".npz" in found:
        return f". {found['.npz']} holds arrays: save each image with PIL's Image.fromarray to {row}"
    if (data_dir / "train").is_dir() and (data_dir / "test").is_dir():
        return ". There are folders train and test: these are read as data set folder"
    if found.keys() & set(IMAGES):
        return ". There are images: sort them into train/<class>/ and test/<class>/, then it is data set folder"
    return ""


def files_in(folder: Path) -> list[Path]:
    """All files below `folder`, folder by folder by name; what systems leave behind (._x, .DS_Store) is passed over."""
    found = []
    for root, _, files in sorted(os.walk(folder, followlinks=True)):
        inside = Path(root).relative_to(folder).parts
        if not any(map(_left_behind, inside)):
            found += [Path(root, name) for name in sorted(files) if not _left_behind(name)]
    return found


def _left_behind(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def folder(name: str, data_dir: Path, cache_dir: Path | None) -> Dataset:
    """train/<class>/<image> and test/<class>/<image>, the same classes in both, all images of one size.

    Classes are in the order of their names; of their numbers where all names are numbers.
    """
    parts, names = [], []
    for part in (data_dir / "train", data_dir / "test"):
        if not part.is_dir():
            raise UserError(
                f"{data_dir} has no folder {part.name}; it wants train/<class>/<image> and test/...{_instead(data_dir)}"
            )
        classes = [path.name for path in part.iterdir() if path.is_dir() and not _left_behind(path.name)]
        numbers = all(name.isdecimal() for name in classes)
        classes.sort(key=lambda name: (int(name) if numbers else 0, name))
        files = {name: [p for p in files_in(part / name) if p.suffix.lower() in IMAGES] for name in classes}
        if not files or not all(files.values()):
            empty = abridged(name for name, paths in files.items() if not paths)
            why = f" (none of {empty})" if files else _instead(part)
            raise UserError(f"{part} does not hold <class>/<image> files{why}")
        parts.append([(path, label) for label, paths in enumerate(files.values()) for path in paths])
        names.append(classes)
    if names[0] != names[1]:
        only = [abridged({*one} - {*other}) or "none" for one, other in (names, names[::-1])]
        raise UserError(f"{data_dir}: classes that only train/ has: {only[0]}; that only test/ has: {only[1]}")
    return from_files(name, data_dir, parts[0], parts[1], names[0], cache_dir)


def from_files(
    name: str, data_dir: Path, train: list[Sample], test: list[Sample], classes: Sequence[str], cache_dir: Path | None
) -> Dataset:
    """The data set of these image files, each part shuffled: its first n images should be of every class."""
    train_split, test_split = (_read_images(samples, cache_dir) for samples in (train, test))
    sizes = [tuple(split.images.shape[2:]) for split in (train_split, test_split)]
    if sizes[0] != sizes[1]:
        raise UserError(f"{data_dir}: the images to train on are {sizes[0]}, those to test on {sizes[1]}")
    train_split, test_split = (split.take(fixed_order(len(split.labels))) for split in (train_split, test_split))
    return Dataset(name, train_split, test_split, tuple(classes), padding=4, flip=True)


def _read_images(samples: list[Sample], cache_dir: Path | None) -> Split:
    """The images, (N, 3, H, W) uint8, decoded once: `cache_dir` keeps them under the files' content, in this order."""
    listing = "".join(file_digest(path) for path, _ in samples) if cache_dir else ""
    cached = cache_dir / f"{hashlib.sha256(listing.encode()).hexdigest()[:32]}.npz" if cache_dir else None
    images = None
    if cached and cached.exists():
        with (
            suppress(Exception),
            zipfile.ZipFile(cached) as kept,
        ):  # damaged in any way, as its CRC-32 tells: made again
            images = np.load(io.BytesIO(kept.read("images.npy")), allow_pickle=False)
    if images is None:
        images = _decode([path for path, _ in samples])
        if cached:
            np.savez(content := io.BytesIO(), images=images)
            with suppress(OSError):  # where the disk is full it is done without
                cached.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(cached, content.getbuffer())
    labels = torch.tensor([label for _, label in samples])
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


def _decode(paths: list[Path]) -> np.ndarray:
    images: list[np.ndarray] = []
    for path in paths:
        images.append(_pixels(path))
        if images[-1].shape != images[0].shape:
            raise UserError(f"{path} is {images[-1].shape[:2]}, the images before it are {images[0].shape[:2]}")
    return np.stack(images)


def _pixels(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) bytes; UserError with its name where that would not be what it shows."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image.convert("RGB"))
            alpha = "A" in mode or "transparency" in image.info
            clear = alpha and np.asarray(image.convert("RGBA"))[..., 3].min() < 255
    except Exception as error:  # Pillow's readers let through what a broken file makes of them
        raise UserError(f"{path} cannot be read as an image ({_first_line(error)[:100]})") from error
    if mode.startswith(("I", "F")):
        raise UserError(f"{path} has more than 8 bits per channel (mode {mode}); save it as 8-bit grey or RGB")
    if clear:
        raise UserError(f"{path} has transparent pixels; save it as RGB on the background that is meant")
    return pixels


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
