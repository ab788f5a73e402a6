"""Data sets that another library reads: scikit-learn's digits, CIFAR through torchvision, folders of image files."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.data.core import Dataset, Split, fixed_order
from lib.errors import UserError
from lib.files import disk_errors, file_digest, write_atomically

Sample = tuple[Path, int]  # an image file and its label


def digits(name: str, *, classes: int = 10, test: int = 500, draw: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten 8x8 digits, those below `classes`; `draw` picks the `test` test images."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images, labels = torch.from_numpy(bunch.images).float().div(16)[:, None], torch.from_numpy(bunch.target).long()
    everything = Split(images, labels).take(labels < classes)
    order = fixed_order(len(everything.labels), draw)
    train_split, test_split = everything.take(order[test:]), everything.take(order[:test])
    return Dataset(name, train_split, test_split, tuple("0123456789"[:classes]), padding=0, flip=False)


def cifar(classes: int, data_dir: Path, download: bool) -> Dataset:
    """CIFAR-10 or, with its fine labels, CIFAR-100, as torchvision lays it out in `data_dir`."""
    from torchvision.datasets import CIFAR10, CIFAR100

    source: type[CIFAR10] = {10: CIFAR10, 100: CIFAR100}[classes]
    try:
        train, test = (source(data_dir, train=train, download=download) for train in (True, False))
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"CIFAR-{classes} {'could not be fetched to' if download else 'is not (whole) in'} {data_dir}: put "
            f"torchvision's folder {source.base_folder} there"
            f"{'' if download else ', or pass download=True where a network is'} ({_first_line(error)})"
        ) from error
    train_split, test_split = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    )
    return Dataset(f"cifar{classes}", train_split, test_split, tuple(train.classes), padding=4, flip=True)


def folder(name: str, data_dir: Path, cache_dir: Path | None) -> Dataset:
    """train/<class>/<image> and test/<class>/<image>, the same classes in both, all images of one size."""
    from torchvision.datasets import ImageFolder

    parts = []
    for part in (data_dir / "train", data_dir / "test"):
        if not part.is_dir():
            raise UserError(f"{data_dir} has no folder {part.name}; it wants train/<class>/<image> and test/...")
        try:
            parts.append(ImageFolder(str(part)))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{part} does not hold <class>/<image> files ({_first_line(error)})") from error
    train, test = parts
    if train.classes != test.classes:
        raise UserError(f"{data_dir}: train/ has the classes {train.classes}, test/ has {test.classes}")
    samples, test_samples = ([(Path(path), label) for path, label in part.samples] for part in parts)
    return from_files(name, data_dir, samples, test_samples, train.classes, cache_dir)


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
    cached = cache_dir / f"{hashlib.sha256(listing.encode()).hexdigest()[:16]}.npz" if cache_dir else None
    try:
        images = np.load(cached, allow_pickle=False)["images"] if cached and cached.exists() else None
    except Exception:  # damaged, as its CRC-32 tells, in any way; it is only a copy, so it is made again
        images = None
    if images is None:
        images = _decode([str(path) for path, _ in samples])
        if cached:
            np.savez(content := io.BytesIO(), images=images)
            with disk_errors(cached.parent):
                cached.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(cached, content.getbuffer())
    labels = torch.tensor([label for _, label in samples])
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


def _decode(paths: list[str]) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{path} cannot be read as an image") from error
        if images[-1].shape != images[0].shape:
            raise UserError(f"{path} is {images[-1].shape[:2]}, the images before it are {images[0].shape[:2]}")
    return np.stack(images)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
