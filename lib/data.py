"""Data sets as tensors: images stay on the device, and are cropped and flipped there, each image by its own draw."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lib.errors import UserError, choose

SPLIT_SEED = 0  # the one fixed draw that splits and subsets come from


class Split(NamedTuple):
    """images (N, C, H, W), uint8 in 0..255 or float32 in [0, 1]; labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor | slice) -> "Split":
        """The images at `index`, with their labels."""
        return Split(self.images[index], self.labels[index])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) in order, x float32 in [0, 1]; the last batch may be smaller."""
        for i in range(0, len(self.labels), size):
            yield to_float(self.images[i : i + size]), self.labels[i : i + size]


@dataclass(frozen=True)
class Dataset:
    """A named data set: two splits, the class names, and the augmentation its training uses."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    padding: int  # pixels of zero padding for the random crop
    flip: bool

    @property
    def channels(self) -> int:
        """Channels per image."""
        return self.train.images.shape[1]

    def digest(self) -> str:
        """SHA-256 over every pixel and label: equal data, equal runs, wherever the files lie."""
        sha = hashlib.sha256()
        for tensor in (*self.train, *self.test):
            sha.update(repr((tensor.dtype, tensor.shape)).encode() + tensor.cpu().numpy().tobytes())
        return sha.hexdigest()

    def subset(self, train: int) -> "Dataset":
        """The first `train` training images of one fixed shuffle; 0 keeps all. The test split stays whole.

        Raises:
            UserError: more images are asked for than there are.
        """
        count = len(self.train.labels)
        if not 0 <= train <= count:
            raise UserError(f"asked for {train} train images, the data set has {count}")
        return replace(self, train=self.train.take(_fixed_order(count)[:train])) if train else self

    def to(self, device: torch.device) -> "Dataset":
        """The same data on `device`."""
        train, test = (Split(*(tensor.to(device) for tensor in split)) for split in (self.train, self.test))
        return replace(self, train=train, test=test)


def load(name: str, *, data_dir: Path, download: bool = False, cache_dir: Path | None = None) -> Dataset:
    """The data set called `name`: digits (embedded), cifar10 (torchvision's layout) or folder (train/ and test/).

    Raises:
        UserError: no such data set, or its files are not there or damaged; the sentence says what to do.
    """
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": _digits,
        "cifar10": lambda: _cifar10(data_dir, download),
        "folder": lambda: _folder(data_dir, cache_dir),
    }
    return choose("data set", name, loaders)()


def to_float(images: Tensor) -> Tensor:
    """Images in [0, 1] as float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def hold_out(split: Split, count: int) -> tuple[Split, Split]:
    """(the rest, `count` images held out), by one fixed shuffle.

    Raises:
        UserError: the split has no more than `count` images.
    """
    if not 0 < count < len(split.labels):
        raise UserError(f"cannot hold out {count} of {len(split.labels)} training images")
    order = _fixed_order(len(split.labels))
    return split.take(order[count:]), split.take(order[:count])


def crop_and_flip(x: Tensor, *, padding: int, flip: bool, generator: Generator) -> Tensor:
    """A random crop of each zero-padded image, mirrored with probability 1/2 where `flip`; one draw per image.

    Shapes: x (N, C, H, W) of any dtype; returns the same shape and dtype, on the same device.
    """
    n, _, height, width = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=x.device)
    rows = offsets[0] + torch.arange(height, device=x.device)
    columns = offsets[1] + torch.arange(width, device=x.device)
    if flip:
        mirror = torch.rand((n, 1), generator=generator, device=x.device) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    image = torch.arange(n, device=x.device)[:, None, None]
    return F.pad(x, [padding] * 4)[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _fixed_order(count: int) -> Tensor:
    return torch.randperm(count, generator=Generator().manual_seed(SPLIT_SEED))


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8, split once into 1,297 and 500."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16)[:, None]
    everything, order = Split(images, torch.from_numpy(bunch.target).long()), _fixed_order(len(images))
    return Dataset(
        "digits", everything.take(order[500:]), everything.take(order[:500]), tuple("0123456789"), padding=0, flip=False
    )


def _cifar10(data_dir: Path, download: bool) -> Dataset:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(data_dir, train=train, download=download) for train in (True, False))
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"CIFAR-10 {'could not be fetched to' if download else 'is not (whole) in'} {data_dir}: put torchvision's "
            f"folder cifar-10-batches-py there{'' if download else ', or pass download=True where a network is'} "
            f"({_first_line(error)})"
        ) from error
    train_split, test_split = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    )
    return Dataset("cifar10", train_split, test_split, tuple(train.classes), padding=4, flip=True)


def _folder(data_dir: Path, cache_dir: Path | None) -> Dataset:
    """train/<class>/<image> and test/<class>/<image>, all images of one size; put in one fixed shuffled order.

    ImageFolder lists class by class; the first n test images should be of every class.
    """
    missing = [part for part in ("train", "test") if not (data_dir / part).is_dir()]
    if missing:
        raise UserError(f"{data_dir} has no folder {' and no folder '.join(missing)}; it wants train/<class>/<image>")
    (train, classes), (test, test_classes) = (_read_folder(data_dir / part, cache_dir) for part in ("train", "test"))
    if classes != test_classes:
        raise UserError(f"{data_dir}: train/ has the classes {classes}, test/ has {test_classes}")
    sides = [tuple(part.images.shape[2:]) for part in (train, test)]
    if sides[0] != sides[1]:
        raise UserError(f"{data_dir}: the images in train/ are {sides[0]}, those in test/ {sides[1]}")
    train, test = (part.take(_fixed_order(len(part.labels))) for part in (train, test))
    return Dataset(f"folder {data_dir.name}", train, test, classes, padding=4, flip=True)


def _read_folder(folder: Path, cache_dir: Path | None) -> tuple[Split, tuple[str, ...]]:
    """The folder's images; decoded once and kept in `cache_dir` under a digest of names, sizes and times."""
    from torchvision.datasets import ImageFolder

    try:
        source = ImageFolder(str(folder))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder} does not hold <class>/<image> files ({_first_line(error)})") from error
    stats = [(path, Path(path).stat()) for path, _ in source.samples]
    listing = repr([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
    cached = cache_dir / f"{hashlib.sha256(listing.encode()).hexdigest()[:16]}.npy" if cache_dir else None
    images = _read_cache(cached)
    if images is None:
        images = _decode([path for path, _ in source.samples])
        if cached:
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, images)
            partial.replace(cached)
    labels = torch.tensor([label for _, label in source.samples])
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels), tuple(source.classes)


def _read_cache(cached: Path | None) -> np.ndarray | None:
    if cached is None or not cached.exists():
        return None
    try:
        return np.load(cached, allow_pickle=False)
    except (ValueError, EOFError):  # cut short; it is only a copy, so it is made again
        return None


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
