"""Image files as a split: decoded once, kept as one array, and put in one fixed shuffled order."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lib.data.core import Dataset, Split, fixed_order
from lib.errors import UserError


def read_images(samples: Sequence[tuple[Path, int]], cache_dir: Path | None) -> Split:
    """The images at (path, label), in order and in RGB, (N, 3, H, W) uint8.

    They are decoded once and kept in `cache_dir` under a digest of names, sizes and times.

    Raises:
        UserError: a file cannot be read as an image, or is not of the same size as those before it.
    """
    stats = [(str(path), path.stat()) for path, _ in samples]
    listing = repr([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
    cached = cache_dir / f"{hashlib.sha256(listing.encode()).hexdigest()[:16]}.npy" if cache_dir else None
    images = _read_cache(cached)
    if images is None:
        images = _decode([path for path, _ in stats])
        if cached:
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, images)
            partial.replace(cached)
    labels = torch.tensor([label for _, label in samples])
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


def shuffled(name: str, where: Path, train: Split, test: Split, classes: tuple[str, ...]) -> Dataset:
    """The data set of two splits read class by class, each shuffled: its first n images should be of every class.

    Raises:
        UserError: training and test images differ in size.
    """
    sides = [tuple(part.images.shape[2:]) for part in (train, test)]
    if sides[0] != sides[1]:
        raise UserError(f"{where}: the images to train on are {sides[0]}, those to test on {sides[1]}")
    train, test = (part.take(fixed_order(len(part.labels))) for part in (train, test))
    return Dataset(name, train, test, classes, padding=4, flip=True)


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
