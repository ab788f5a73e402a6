"""Tiny ImageNet from its official archive, or from one whose val/ has been regrouped into folders by class.

The archive's test images have no labels, so the official val set is the test set, as in the papers.
"""

from collections.abc import Sequence
from pathlib import Path

from lib.data.core import Dataset
from lib.data.sources import Sample, files_in, from_files
from lib.errors import UserError, abridged

FOLDER = "tiny-imagenet-200"


def tiny_imagenet(data_dir: Path, cache_dir: Path | None) -> Dataset:
    """100,000 and 10,000 images of 200 classes, 64x64, in `data_dir`/tiny-imagenet-200 or in `data_dir` itself.

    The classes are the sorted wnids. Both forms of val/ give equal data, image by image.
    """
    root = _root(data_dir)
    wnids = sorted({*_text(root / "wnids.txt").split()})
    if not wnids:
        raise UserError(f"{root / 'wnids.txt'} names no class; it should hold one wnid per line")
    train = _by_class(root / "train", wnids)
    regrouped = any((root / "val" / wnid).is_dir() for wnid in wnids)
    test = _by_class(root / "val", wnids) if regrouped else _by_annotation(root / "val", wnids)
    for samples in (train, test):  # by file name, which is the same wherever a regrouped archive has moved the file
        samples.sort(key=lambda sample: (sample[0].name, sample[1]))
    return from_files("tiny_imagenet", root, train, test, wnids, cache_dir)


def _root(data_dir: Path) -> Path:
    root = data_dir if (data_dir / "wnids.txt").is_file() else data_dir / FOLDER
    missing = [name for name in ("wnids.txt", "train", "val") if not (root / name).exists()]
    if missing:
        raise UserError(
            f"Tiny ImageNet is not in {data_dir}: unpack the official {FOLDER}.zip there, so that there is a folder "
            f"{FOLDER} with wnids.txt, train and val (missing from {root}: {', '.join(missing)})"
        )
    return root


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a text file; take it from the official archive") from error


def _by_class(part: Path, wnids: Sequence[str]) -> list[Sample]:
    """The images below <part>/<wnid>, in an images/ folder or not."""
    found = {wnid: [path for path in files_in(part / wnid) if path.suffix == ".JPEG"] for wnid in wnids}
    empty = [wnid for wnid, paths in found.items() if not paths]
    if empty:
        raise UserError(
            f"{part} has no images of {abridged(empty)}; every class in wnids.txt wants a folder there with .JPEG files"
        )
    return [(path, label) for label, paths in enumerate(found.values()) for path in paths]


def _by_annotation(part: Path, wnids: Sequence[str]) -> list[Sample]:
    """The images in <part>/images with the classes that val_annotations.txt gives: file, tab, wnid, tab, box."""
    listing = part / "val_annotations.txt"
    if not listing.is_file():
        raise UserError(f"{listing} is missing: it says which image is of which class; take it from the archive")
    rows = [line.split("\t") for line in _text(listing).splitlines() if line.strip()]
    class_of = {row[0]: row[1] if len(row) > 1 else "" for row in rows}
    files = {path.name: path for path in files_in(part / "images") if path.suffix == ".JPEG"}
    wrong = (
        ("names files that are not in images/", class_of.keys() - files.keys()),
        ("has no line for", files.keys() - class_of.keys()),
        ("names classes that are not in wnids.txt", {repr(wnid) for wnid in class_of.values()} - set(map(repr, wnids))),
    )
    for problem, names in wrong:
        if names:
            raise UserError(f"{listing} {problem}: {abridged(names)}")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    return [(files[name], label_of[wnid]) for name, wnid in class_of.items()]
