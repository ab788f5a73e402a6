"""The data sets that another library reads: scikit-learn's digits, and CIFAR and folders through torchvision."""

from pathlib import Path
from typing import Any

import torch

from lib.data.core import SPLIT_SEED, Dataset, Split, fixed_order
from lib.data.images import read_images, shuffled
from lib.errors import UserError


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8, split once into 1,297 and 500."""
    return _split_digits("digits", classes=10, test=500, seed=SPLIT_SEED)


def digits_b() -> Dataset:
    """The same 1,797 digits, split once into another 1,297 and 500."""
    return _split_digits("digits_b (the ten digits, a second split)", classes=10, test=500, seed=SPLIT_SEED + 1)


def digits_five() -> Dataset:
    """The 901 images of the digits 0 to 4, split once into 651 and 250."""
    return _split_digits("digits_five (the digits 0 to 4)", classes=5, test=250, seed=SPLIT_SEED)


def cifar(classes: int, data_dir: Path, download: bool) -> Dataset:
    """CIFAR-10 or, with its fine labels, CIFAR-100, as torchvision lays it out in `data_dir`.

    Raises:
        UserError: the files are not there or not whole, or could not be fetched.
    """
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


def folder(data_dir: Path, cache_dir: Path | None) -> Dataset:
    """train/<class>/<image> and test/<class>/<image>, all images of one size; put in one fixed shuffled order.

    Raises:
        UserError: a part is missing or empty, the parts differ in classes or sizes, or an image cannot be read.
    """
    missing = [part for part in ("train", "test") if not (data_dir / part).is_dir()]
    if missing:
        raise UserError(f"{data_dir} has no folder {' and no folder '.join(missing)}; it wants train/<class>/<image>")
    (train, classes), (test, test_classes) = (_read_folder(data_dir / part, cache_dir) for part in ("train", "test"))
    if classes != test_classes:
        raise UserError(f"{data_dir}: train/ has the classes {classes}, test/ has {test_classes}")
    return shuffled(f"folder {data_dir.name}", data_dir, train, test, classes)


def _split_digits(name: str, *, classes: int, test: int, seed: int) -> Dataset:
    """The digits below `classes`, `test` of them held for testing by the draw of `seed`."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images, labels = torch.from_numpy(bunch.images).float().div(16)[:, None], torch.from_numpy(bunch.target).long()
    everything = Split(images, labels).take(labels < classes)
    order = fixed_order(len(everything.labels), seed)
    train_split, test_split = everything.take(order[test:]), everything.take(order[:test])
    return Dataset(name, train_split, test_split, tuple("0123456789"[:classes]), padding=0, flip=False)


def _read_folder(part: Path, cache_dir: Path | None) -> tuple[Split, tuple[str, ...]]:
    """The images of <class>/<image>, with the class names."""
    from torchvision.datasets import ImageFolder

    try:
        source = ImageFolder(str(part))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{part} does not hold <class>/<image> files ({_first_line(error)})") from error
    return read_images([(Path(path), label) for path, label in source.samples], cache_dir), tuple(source.classes)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
