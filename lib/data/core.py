"""What a data set is, how it is split, and how a batch of it is cropped and flipped."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lib.errors import UserError


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
        """The first `train` training images of one fixed shuffle; 0 keeps all. The test split stays whole."""
        count = len(self.train.labels)
        if not 0 <= train <= count:
            raise UserError(f"asked for {train} train images, the data set has {count}")
        return replace(self, train=self.train.take(fixed_order(count)[:train])) if train else self

    def to(self, device: torch.device) -> "Dataset":
        """The same data on `device`."""
        train, test = (Split(*(tensor.to(device) for tensor in split)) for split in (self.train, self.test))
        return replace(self, train=train, test=test)


def to_float(images: Tensor) -> Tensor:
    """Images in [0, 1] as float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def hold_out(split: Split, count: int) -> tuple[Split, Split]:
    """(the rest, `count` images held out), by one fixed shuffle; neither may be empty."""
    if not 0 < count < len(split.labels):
        raise UserError(
            f"cannot hold out {count} of {len(split.labels)} training images; settings: {{held_out: ...}} says how many"
        )
    order = fixed_order(len(split.labels))
    return split.take(order[count:]), split.take(order[:count])


def crop_and_flip(x: Tensor, *, padding: int, flip: bool, generator: Generator) -> Tensor:
    """A random crop of each zero-padded image of x (N, C, H, W), mirrored half of the time where `flip`."""
    n, _, height, width = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=x.device)
    rows = offsets[0] + torch.arange(height, device=x.device)
    columns = offsets[1] + torch.arange(width, device=x.device)
    if flip:
        mirror = torch.rand((n, 1), generator=generator, device=x.device) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    image = torch.arange(n, device=x.device)[:, None, None]
    return F.pad(x, [padding] * 4)[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def fixed_order(count: int, draw: int = 0) -> Tensor:
    """The numbers below `count`, shuffled the same way every time; splits and subsets come from draw 0."""
    return torch.randperm(count, generator=Generator().manual_seed(draw))
