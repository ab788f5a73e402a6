import hashlib
import os
import pickle
import re
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from lib.data import Dataset, Split, crop_and_flip, hold_out, load, sources, to_float
from lib.errors import UserError


def make_split(n, shape=(3, 4, 4)):
    """n different uint8 images, each labelled by its first pixel."""
    images = torch.randint(256, (n, *shape), dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(n)
    return Split(images, torch.arange(n))


def make_dataset(train=10, test=6):
    return Dataset("tiny", make_split(train), make_split(test), ("a", "b"), padding=1, flip=True)


# --- digits -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", data_dir=tmp_path_factory.mktemp("empty"))


def test_digits_are_1297_and_500_grey_images_of_ten_classes(digits):
    assert digits.train.images.shape == (1297, 1, 8, 8)
    assert digits.test.images.shape == (500, 1, 8, 8)
    assert digits.channels == 1
    for split in (digits.train, digits.test):
        assert split.images.dtype == torch.float32
        assert split.labels.bincount().shape == (len(digits.classes),)
        assert (split.images.min(), split.images.max()) == (0, 1)


def test_the_two_splits_of_digits_are_scikit_learns_images_each_once_and_with_its_own_label(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    theirs = np.concatenate([source.data / 16, source.target[:, None]], 1)
    assert sorted(rows(digits)) == sorted(map(tuple, theirs.tolist()))


def test_digits_are_split_the_same_way_whatever_the_seed(digits, tmp_path):
    torch.manual_seed(123)
    assert load("digits", data_dir=tmp_path).digest() == digits.digest()


def test_digits_b_are_the_same_images_under_another_split(digits, tmp_path):
    other = load("digits_b", data_dir=tmp_path)
    assert (other.train.images.shape, other.test.images.shape) == ((1297, 1, 8, 8), (500, 1, 8, 8))
    assert sorted(rows(other)) == sorted(rows(digits))
    assert len(set(rows_of(other.test)) & set(rows_of(digits.test))) < 200  # 139 are to be expected in two draws
    assert load("digits_b", data_dir=tmp_path).digest() == other.digest()


def test_digits_five_are_the_images_of_the_digits_0_to_4(digits, tmp_path):
    five = load("digits_five", data_dir=tmp_path)
    assert (five.train.images.shape, five.test.images.shape) == ((651, 1, 8, 8), (250, 1, 8, 8))
    assert five.classes == tuple("01234")
    assert sorted(rows(five)) == sorted(row for row in rows(digits) if row[-1] < 5)
    assert all((split.labels.bincount() >= 40).all() for split in (five.train, five.test))
    assert load("digits_five", data_dir=tmp_path).digest() == five.digest()


def rows(dataset):
    return [*rows_of(dataset.train), *rows_of(dataset.test)]


def rows_of(split):
    """Each image as its 64 pixels and its label."""
    return [tuple(row) for row in torch.cat([split.images.flatten(1), split.labels[:, None]], 1).tolist()]


# --- splits -------------------------------------------------------------------------------------------------------


def test_to_float_maps_bytes_to_the_unit_interval_and_leaves_floats_alone():
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    images = torch.rand(3)
    assert to_float(images) is images


def test_batches_are_in_order_and_the_last_one_is_what_is_left():
    split = make_split(10)
    batches = list(split.batches(4))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert torch.cat([y for _, y in batches]).equal(split.labels)
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), split.images / 255)


def test_hold_out_cuts_a_split_in_two_with_nothing_lost_or_shared():
    split = make_split(10)
    rest, held = hold_out(split, 3)
    assert (len(rest.labels), len(held.labels)) == (7, 3)
    assert sorted([*rest.labels.tolist(), *held.labels.tolist()]) == list(range(10))
    assert held.images[:, 0, 0, 0].equal(held.labels.byte())
    assert sorted(held.labels.tolist()) != [0, 1, 2]  # a shuffle, not a slice
    torch.manual_seed(99)
    assert hold_out(split, 3)[1].labels.equal(held.labels)  # and the same one always


@pytest.mark.parametrize("count", [0, -1, 10, 11])
def test_holding_out_nothing_or_everything_is_refused(count):
    with pytest.raises(UserError, match=f"hold out {count} of 10"):
        hold_out(make_split(10), count)


def test_a_subset_is_part_of_the_training_images_and_a_larger_one_contains_it():
    whole = make_dataset()
    small, large = whole.subset(4), whole.subset(7)
    assert small.train.images[:, 0, 0, 0].equal(small.train.labels.byte())
    assert len(set(small.train.labels.tolist())) == 4
    assert set(small.train.labels.tolist()) < set(large.train.labels.tolist())
    assert small.test is whole.test
    assert whole.subset(0).digest() == whole.digest()


@pytest.mark.parametrize("count", [11, -1])
def test_a_subset_larger_than_the_data_is_refused(count):
    with pytest.raises(UserError, match=f"asked for {count} train images"):
        make_dataset().subset(count)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("field", ["images", "labels"])
def test_the_digest_changes_with_one_pixel_and_with_one_label(part, field):
    whole = make_dataset()
    changed = getattr(getattr(whole, part), field).clone()
    changed.view(-1)[-1] += 1
    other = replace(whole, **{part: getattr(whole, part)._replace(**{field: changed})})
    assert other.digest() != whole.digest()
    assert replace(whole, name="another").digest() == whole.digest()


# --- crop and flip ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_equals_a_loop_over_images_with_the_same_draws(dtype, padding, flip):
    x = torch.randint(1, 256, (9, 3, 4, 5)).to(dtype)
    ours = crop_and_flip(x, padding=padding, flip=flip, generator=Generator().manual_seed(3))
    draws = Generator().manual_seed(3)
    rows, columns = torch.randint(0, 2 * padding + 1, (2, 9), generator=draws).tolist()
    mirrored = (torch.rand(9, generator=draws) < 0.5).tolist() if flip else [False] * 9
    assert ours.dtype == dtype
    for i in range(9):
        padded = torch.zeros(3, 4 + 2 * padding, 5 + 2 * padding, dtype=dtype)
        padded[:, padding : padding + 4, padding : padding + 5] = x[i]
        crop = padded[:, rows[i] : rows[i] + 4, columns[i] : columns[i] + 5]
        assert ours[i].equal(crop.flip(2) if mirrored[i] else crop)


def test_every_image_has_its_own_crop_and_all_crops_and_flips_occur():
    x = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 2, 2).expand(500, 1, 2, 2)
    out = crop_and_flip(x, padding=1, flip=True, generator=Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x[0, 0], [1] * 4)
    crops = [padded[i : i + 2, j : j + 2] for i in range(3) for j in range(3)]
    possible = {tuple(view.flatten().tolist()) for crop in crops for view in (crop, crop.flip(1))}
    assert {tuple(image.flatten().tolist()) for image in out} == possible


def test_the_generator_alone_decides_the_crops():
    x = torch.rand(20, 3, 4, 4)

    def crop(seed):
        return crop_and_flip(x, padding=2, flip=True, generator=Generator().manual_seed(seed))

    first = crop(0)
    torch.rand(1)
    assert crop(0).equal(first)
    assert not crop(1).equal(first)


# --- CIFAR --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "wanted"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_cifar_that_is_not_there_is_refused_with_the_folder_it_was_looked_for_in(tmp_path, name, wanted):
    pytest.importorskip("torchvision")
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}.*{wanted}.*download=True"):
        load(name, data_dir=tmp_path)


@pytest.mark.parametrize(("name", "title"), [("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100")])
def test_cifar_with_a_damaged_file_is_refused(tmp_path, name, title):
    pytest.importorskip("torchvision")
    (write_cifar10 if name == "cifar10" else write_cifar100)(tmp_path)  # torchvision knows the real files' digests
    with pytest.raises(UserError, match=rf"^{title} is not \(whole\) in"):
        load(name, data_dir=tmp_path)


def test_cifar10_images_keep_their_pixels_labels_and_order(tmp_path, monkeypatch):
    rows = write_cifar10(tmp_path)
    take_for_official(tmp_path, monkeypatch)
    loaded = load("cifar10", data_dir=tmp_path)
    assert loaded.train.images.dtype == torch.uint8
    assert loaded.train.images.flatten(1).numpy().tolist() == rows[:5].tolist()
    assert loaded.test.images.flatten(1).numpy().tolist() == rows[5:].tolist()
    assert loaded.train.images.shape == (5, 3, 32, 32)
    assert loaded.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert loaded.test.labels.tolist() == [5]
    assert (loaded.classes, loaded.padding, loaded.flip) == (("cat", "dog"), 4, True)


def test_cifar100_is_loaded_with_its_fine_labels(tmp_path, monkeypatch):
    train, test = write_cifar100(tmp_path)
    take_for_official(tmp_path, monkeypatch)
    loaded = load("cifar100", data_dir=tmp_path)
    assert loaded.train.images.flatten(1).numpy().tolist() == train.tolist()
    assert loaded.test.images.flatten(1).numpy().tolist() == test.tolist()
    assert (loaded.train.labels.tolist(), loaded.test.labels.tolist()) == ([99, 98], [99])
    assert len(loaded.classes) == 100
    assert (loaded.name, loaded.padding, loaded.flip) == ("cifar100", 4, True)


def take_for_official(folder, monkeypatch):
    """The digests of the files written here in place of the official ones, and no torchvision."""
    for classes, (base, *keys, digests) in sources.CIFAR.items():
        own = {
            name: hashlib.md5(file.read_bytes()).hexdigest()
            for name in digests
            if (file := folder / base / name).exists()
        }
        monkeypatch.setitem(sources.CIFAR, classes, (base, *keys, digests | own))
    monkeypatch.setitem(sys.modules, "torchvision", None)


def test_cifars_digests_are_those_that_torchvision_checks():
    cifar = pytest.importorskip("torchvision.datasets.cifar")
    for source, (base, *_, digests) in zip((cifar.CIFAR10, cifar.CIFAR100), sources.CIFAR.values(), strict=True):
        assert base == source.base_folder
        assert digests == dict([*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])])


def test_a_pickle_in_cifars_place_is_not_opened(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setattr(sources.pickle, "loads", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(UserError, match="not the official"):
        load("cifar10", data_dir=tmp_path)


def test_a_fetch_without_torchvision_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(UserError, match=r"CIFAR-10 could not be fetched to .*cifar-10-batches-py there"):
        load("cifar10", data_dir=tmp_path, download=True)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("plain_text/train-00000-of-00001.parquet", r"train-00000-of-00001\.parquet is Hugging Face's: write each row"),
        ("cifar10.npz", r"cifar10\.npz holds arrays: save each image with PIL's"),
        ("1.png", "There are images: sort them into train/<class>/"),
        ("train/frog/1.png", "There are images"),
    ],
)
@pytest.mark.parametrize("name", ["cifar10", "folder"])
def test_another_layout_is_refused_with_how_it_is_converted(tmp_path, name, file, said):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=said) as refused:
        load(name, data_dir=tmp_path)
    assert len(str(refused.value)) <= 500 + len(str(tmp_path))


def test_a_folder_of_cifars_images_is_called_by_the_data_set_that_reads_it(folder):
    with pytest.raises(UserError, match="these are read as data set folder"):
        load("cifar10", data_dir=folder)


def write_cifar100(folder):
    """torchvision's layout with two training images and one test image, fine labels counted down from 99."""
    root = folder / "cifar-100-python"
    root.mkdir()
    parts = [np.random.default_rng(n).integers(256, size=(n, 3072), dtype=np.uint8) for n in (2, 1)]
    for name, part in zip(("train", "test"), parts, strict=True):
        fine = [99 - i for i in range(len(part))]
        entry = {"data": part, "fine_labels": fine, "coarse_labels": [0] * len(part)}
        (root / name).write_bytes(pickle.dumps(entry))
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    return parts


def write_cifar10(folder):
    """torchvision's layout with one image per file; a row is 1,024 reds, greens and blues."""
    rows = np.random.default_rng(0).integers(256, size=(6, 3072), dtype=np.uint8)
    root = folder / "cifar-10-batches-py"
    root.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        (root / name).write_bytes(pickle.dumps({"data": rows[[i]], "labels": [i]}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    return rows


# --- folders ------------------------------------------------------------------------------------------------------


def write_image(path, size=4, mode="RGB"):

    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(zlib.crc32(path.name.encode()))
    pixels = draw.integers(256, size=(size, size, 3) if mode == "RGB" else (size, size), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels)


@pytest.fixture
def folder(tmp_path):
    """train/ with two images of each of two classes, test/ with one of each."""
    root = tmp_path / "pets"
    for part, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            for i in range(count):
                write_image(root / part / name / f"{name}{i}.png")
    return root


def test_a_folder_of_images_is_loaded_with_its_pixels_and_its_folders_as_labels(folder):
    extra = write_image(folder / "test" / "dog" / "z.png")
    loaded = load("folder", data_dir=folder)
    assert loaded.train.images.shape == (4, 3, 4, 4)
    assert sorted(loaded.train.labels.tolist()) == [0, 0, 1, 1]
    assert sorted(loaded.test.labels.tolist()) == [0, 1, 1]
    (found,) = [i for i, image in enumerate(loaded.test.images) if image.permute(1, 2, 0).equal(extra)]
    assert loaded.test.labels[found] == 1
    assert loaded.classes == ("cat", "dog")
    assert "pets" in loaded.name


def test_grey_images_become_three_equal_channels(folder):
    grey = write_image(folder / "test" / "dog" / "z.png", mode="L")
    loaded = load("folder", data_dir=folder)
    assert any(image.equal(grey.expand(3, 4, 4)) for image in loaded.test.images)


def test_the_first_images_of_a_folder_are_not_all_of_one_class(folder):
    for label in ("cat", "dog"):
        for i in range(20):
            write_image(folder / "test" / label / f"more{i}.png")
    assert set(load("folder", data_dir=folder).test.labels[:10].tolist()) == {0, 1}


def test_a_folder_is_decoded_once_and_a_part_again_only_if_a_file_of_it_changed(folder, tmp_path, monkeypatch):
    first = load("folder", data_dir=folder, cache_dir=tmp_path / "cache")
    decode, decoded = sources._decode, []
    monkeypatch.setattr(sources, "_decode", lambda paths: decoded.append(paths) or decode(paths))
    second = load("folder", data_dir=folder, cache_dir=tmp_path / "cache")
    assert not decoded
    assert second.digest() == first.digest()
    pixels = write_image(folder / "test" / "dog" / "new.png")
    (folder / "test" / "dog" / "new.png").replace(folder / "test" / "dog" / "dog0.png")  # other pixels, old name
    third = load("folder", data_dir=folder, cache_dir=tmp_path / "cache")
    assert len(decoded) == 1
    assert third.test.images[-1].permute(1, 2, 0).equal(pixels)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"] * 3


def test_other_images_of_equal_name_size_and_time_are_not_taken_for_the_old_ones(folder, tmp_path):
    path = folder / "test" / "dog" / "dog0.bmp"
    other = write_image(path.with_name("other.bmp"))
    path.with_name("other.bmp").rename(path)
    first, stat = load("folder", data_dir=folder, cache_dir=tmp_path / "cache"), path.stat()
    path.write_bytes(path.read_bytes()[:-16] + bytes(16))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    second = load("folder", data_dir=folder, cache_dir=tmp_path / "cache")
    assert any(image.permute(1, 2, 0).equal(other) for image in first.test.images)
    assert not any(image.permute(1, 2, 0).equal(other) for image in second.test.images)


def test_a_bit_flip_or_a_cut_in_the_cache_is_never_read(folder, tmp_path):
    first, draw = load("folder", data_dir=folder, cache_dir=tmp_path / "cache"), np.random.default_rng(0)
    cached, other = sorted((tmp_path / "cache").iterdir())
    content = cached.read_bytes()
    for place in draw.integers(8 * len(content), size=30).tolist():
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        cached.write_bytes(flipped)
        assert load("folder", data_dir=folder, cache_dir=tmp_path / "cache").digest() == first.digest()
    for length in (0, 31, 100, len(content) - 1):
        cached.write_bytes(content[:length])
        assert load("folder", data_dir=folder, cache_dir=tmp_path / "cache").digest() == first.digest()
    assert cached.read_bytes() == content
    assert other.exists()


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert (
        load("folder", data_dir=folder, cache_dir=tmp_path / "cache").digest()
        == load("folder", data_dir=folder).digest()
    )


def test_folders_that_are_all_numbers_are_in_numeric_order_and_others_in_that_of_text(tmp_path):
    for count, root in ((12, tmp_path / "numbers"), (11, tmp_path / "mixed")):
        names = [*map(str, range(count)), *(["x"] if count == 11 else [])]
        for part, name in ((part, name) for part in ("train", "test") for name in names):
            write_image(root / part / name / f"{name}.png")
    assert load("folder", data_dir=tmp_path / "numbers").classes == tuple(map(str, range(12)))
    assert load("folder", data_dir=tmp_path / "mixed").classes == ("0", "1", "10", *"23456789", "x")


def test_what_systems_leave_behind_is_no_class_and_no_image(folder):
    clean = load("folder", data_dir=folder).digest()
    for part in ("train", "test"):
        for name in ("._dog1.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
            (folder / part / "dog" / name).write_bytes(b"not an image")
            (folder / part / name).write_bytes(b"not an image")
        for place in (folder / part, folder / part / "cat"):
            for name in (".ipynb_checkpoints", "__MACOSX"):
                write_image(place / name / "cat0-checkpoint.png")
    assert load("folder", data_dir=folder).digest() == clean


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_part_is_refused(folder, part):
    (folder / part).rename(folder / "elsewhere")
    with pytest.raises(UserError, match=f"no folder {part}"):
        load("folder", data_dir=folder)


@pytest.mark.parametrize("path", ["train/dog/z.png", "test/dog/z.png", "train/cat/a.png"])
def test_images_of_unequal_sizes_are_refused(folder, path):
    write_image(folder / path, size=5)
    with pytest.raises(UserError, match="5, 5"):
        load("folder", data_dir=folder)


def test_two_parts_with_images_of_unequal_sizes_are_refused(folder):
    for path in (folder / "test").rglob("*.png"):
        write_image(path, size=5)
    with pytest.raises(UserError, match="5"):
        load("folder", data_dir=folder)


def test_two_parts_with_different_classes_are_refused(folder):
    (folder / "test" / "dog").rename(folder / "test" / "fox")
    with pytest.raises(UserError, match=r"dog.*fox"):
        load("folder", data_dir=folder)


@pytest.mark.parametrize("harm", ["text", "half", "empty"])
def test_an_unreadable_image_is_refused_by_its_name(folder, harm):
    path = folder / "train" / "dog" / "dog0.png"
    path.write_bytes({"text": b"woof", "half": path.read_bytes()[:60], "empty": b""}[harm])
    with pytest.raises(UserError, match=r"dog0\.png cannot be read"):
        load("folder", data_dir=folder)


def write_bomb(path):

    Image.new("RGB", (8, 8)).save(path, format="BMP")
    content = bytearray(path.read_bytes())
    content[18:26] = (60000).to_bytes(4, "little") * 2
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("z.png", lambda path: path.symlink_to("nowhere.png")),
        ("z.bmp", write_bomb),
        ("z.ppm", lambda path: path.write_bytes(b"P6\n\xa755 8\n255\n" + b"0" * 192)),
        ("z.jpg", lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))),
        ("z.tif", lambda path: path.write_bytes(b"II*\0" + b"\xff" * 100)),
        ("z.webp", lambda path: path.write_bytes(b"RIFF\x10\0\0\0WEBPVP8 " + bytes(8))),
        ("z.png", lambda path: path.mkdir()),
    ],
    ids=["a dangling link", "too many pixels", "PPM", "JPEG", "TIFF", "WebP", "a folder"],
)
@pytest.mark.parametrize("cached", [False, True])
def test_whatever_an_image_reader_says_is_one_sentence_with_the_file(folder, tmp_path, name, harm, cached):
    harm(folder / "train" / "dog" / name)
    if (folder / "train" / "dog" / name).is_dir():
        assert len(load("folder", data_dir=folder).train.labels) == 4  # a folder holds images, it is none
        return
    with pytest.raises(UserError, match=rf"{re.escape(name)} cannot be read") as refused:
        load("folder", data_dir=folder, cache_dir=tmp_path / "cache" if cached else None)
    assert len(str(refused.value)) <= 500


MODES = {  # mode -> the colour that is written, and the RGB that is to be read
    "RGB": ((200, 10, 30), (200, 10, 30)),
    "RGBA": ((200, 10, 30, 255), (200, 10, 30)),
    "L": (77, (77, 77, 77)),
    "LA": ((77, 255), (77, 77, 77)),
    "1": (1, (255, 255, 255)),
    "CMYK": ((0, 255, 255, 0), (255, 0, 0)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_8_bit_image_shows_its_own_colours(folder, mode):

    colour, wanted = MODES[mode]
    Image.new(mode, (4, 4), colour).save(folder / "test" / "dog" / "z.tif")
    read = load("folder", data_dir=folder).test.images
    assert any(image.equal(torch.tensor(wanted, dtype=torch.uint8)[:, None, None].expand(3, 4, 4)) for image in read)


def test_a_palette_is_looked_up(folder):

    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 200, 10, 30])
    image.save(folder / "test" / "dog" / "z.png")
    read = load("folder", data_dir=folder).test.images
    assert any(image[:, 0, 0].tolist() == [200, 10, 30] for image in read)


@pytest.mark.parametrize(
    ("mode", "colour", "said"),
    [
        ("I;16", 40000, "more than 8 bits per channel"),
        ("I", 40000, "more than 8 bits per channel"),
        ("F", 0.5, "more than 8 bits per channel"),
        ("RGBA", (200, 10, 30, 0), "transparent pixels"),
        ("LA", (77, 100), "transparent pixels"),
    ],
)
def test_an_image_that_is_not_what_its_8_bits_show_is_refused_by_its_name(folder, mode, colour, said):

    Image.new(mode, (4, 4), colour).save(folder / "test" / "dog" / "z.tif")
    with pytest.raises(UserError, match=rf"z\.tif has {said}"):
        load("folder", data_dir=folder)


@pytest.mark.parametrize("leave", ["no classes", "an empty class"])
def test_a_part_without_images_is_refused(folder, leave):
    for path in (folder / "train").rglob("*.png"):
        path.unlink()
    if leave == "no classes":
        for path in (folder / "train").iterdir():
            path.rmdir()
    with pytest.raises(UserError, match="train does not hold"):
        load("folder", data_dir=folder)


# --- Tiny ImageNet ------------------------------------------------------------------------------------------------

WNIDS = ("n02", "n01", "n03")  # not in order, as in the archive


@pytest.fixture
def archive(tmp_path):
    """The official layout with three training and two val images of each of three classes."""
    root = tmp_path / "tiny-imagenet-200"
    rows = []
    for wnid in WNIDS:
        for i in range(3):
            write_jpeg(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("a box\n")
    for i in range(6):
        write_jpeg(root / "val" / "images" / f"val_{i}.JPEG", mode="L" if i == 4 else "RGB")
        rows.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    return root


def write_jpeg(path, mode="RGB"):
    write_image(path.with_suffix(".png"), size=8, mode=mode)
    path.with_suffix(".png").rename(path)  # lossless, so that pixels can be compared; PIL goes by the content


def pixels(path):

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def label_of(split, path):
    """The label of the one image with the pixels in the file."""
    (found,) = [i for i, image in enumerate(split.images) if image.equal(pixels(path))]
    return split.labels[found].item()


def regroup(root, images_folder=""):
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        target = root / "val" / wnid / images_folder
        target.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(target / name)
    (root / "val" / "val_annotations.txt").unlink()


def test_tiny_imagenet_keeps_every_pixel_with_the_label_of_its_sorted_wnid(archive):
    loaded = load("tiny_imagenet", data_dir=archive.parent)
    assert loaded.classes == ("n01", "n02", "n03")
    assert (loaded.train.images.shape, loaded.test.images.shape) == ((9, 3, 8, 8), (6, 3, 8, 8))
    assert loaded.train.images.dtype == torch.uint8
    for path in (archive / "train").rglob("*.JPEG"):
        assert loaded.classes[label_of(loaded.train, path)] == path.name[:3]
    for i, path in enumerate(sorted((archive / "val" / "images").iterdir())):
        assert loaded.classes[label_of(loaded.test, path)] == WNIDS[i % 3]
    assert (loaded.name, loaded.padding, loaded.flip) == ("tiny_imagenet", 4, True)


def test_tiny_imagenets_images_are_decoded_and_need_not_be_lossless(archive):

    for path in archive.rglob("*.JPEG"):
        with Image.open(path) as image:
            image.copy().save(path, format="JPEG")
    loaded = load("tiny_imagenet", data_dir=archive.parent)
    assert label_of(loaded.test, archive / "val" / "images" / "val_0.JPEG") == 1
    grey = pixels(archive / "val" / "images" / "val_4.JPEG")
    assert grey[0].equal(grey[1])
    assert any(image.equal(grey) for image in loaded.test.images)


@pytest.mark.parametrize("images_folder", ["", "images"])
def test_a_regrouped_val_folder_is_the_same_data(archive, images_folder):
    official = load("tiny_imagenet", data_dir=archive)
    regroup(archive, images_folder)  # the emptied val/images stays
    assert load("tiny_imagenet", data_dir=archive).digest() == official.digest()


def test_tiny_imagenet_that_is_not_there_is_refused_with_what_to_put_where(tmp_path):
    where = re.escape(str(tmp_path))
    with pytest.raises(UserError, match=f"not in {where}: unpack the official tiny-imagenet-200.zip there.*wnids.txt"):
        load("tiny_imagenet", data_dir=tmp_path)


@pytest.mark.parametrize("part", ["wnids.txt", "train", "val"])
def test_an_archive_that_lacks_a_part_is_refused_by_its_name(archive, part):
    (archive / part).rename(archive / "elsewhere")
    with pytest.raises(UserError, match=rf"missing from {re.escape(str(archive))}: {part}\)"):
        load("tiny_imagenet", data_dir=archive.parent)


def test_an_archive_without_classes_is_refused(archive):
    (archive / "wnids.txt").write_text("\n")
    with pytest.raises(UserError, match="wnids.txt names no class"):
        load("tiny_imagenet", data_dir=archive)


def test_val_images_without_annotations_are_refused(archive):
    (archive / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match=r"val_annotations\.txt is missing.*archive"):
        load("tiny_imagenet", data_dir=archive)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("val_9.JPEG\tn01\t0\t0\t63\t63", r"names files that are not in images/: val_9\.JPEG"),
        ("val_5.JPEG\tn77\t0\t0\t63\t63", "names classes that are not in wnids.txt: 'n77'"),
        ("val_5.JPEG n01", r"names files that are not in images/: val_5\.JPEG n01"),
        ("val_5.JPEG", "names classes that are not in wnids.txt: ''"),
    ],
)
def test_an_annotation_of_an_unknown_file_or_class_is_refused(archive, line, sentence):
    with (archive / "val" / "val_annotations.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=f"val_annotations.txt {sentence}$"):
        load("tiny_imagenet", data_dir=archive)


@pytest.mark.parametrize("name", ["val/val_annotations.txt", "wnids.txt"])
def test_a_binary_file_in_place_of_a_list_is_refused_by_its_name(archive, name):
    (archive / name).write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=rf"{re.escape(name)} is not a text file; take it from the official archive"):
        load("tiny_imagenet", data_dir=archive)


def test_a_val_image_that_has_no_annotation_is_refused(archive):
    for i in range(6, 11):
        write_jpeg(archive / "val" / "images" / f"val_{i}.JPEG")
    with pytest.raises(UserError, match=r"has no line for: val_10\.JPEG, val_6\.JPEG, val_7\.JPEG and 2 more"):
        load("tiny_imagenet", data_dir=archive)


@pytest.mark.parametrize("leave", ["no folder", "an empty folder"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_without_images_is_refused(archive, part, leave):
    if part == "val":
        regroup(archive)
    for path in (archive / part / "n03").rglob("*.JPEG"):
        path.unlink()
    if leave == "no folder":
        (archive / part / "n03").rename(archive / "n03")
    with pytest.raises(UserError, match=rf"{part} has no images of n03; every class in wnids\.txt wants a folder"):
        load("tiny_imagenet", data_dir=archive)


def test_an_unknown_data_set_is_refused_with_the_valid_ones(tmp_path):
    with pytest.raises(UserError, match=r"'mnist'.*digits, digits_b, .*cifar10, cifar100, tiny_imagenet, folder"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "train", "shape", "classes"),
    [
        ("cifar10", 50_000, (3, 32, 32), 10),
        ("cifar100", 50_000, (3, 32, 32), 100),
        ("tiny_imagenet", 100_000, (3, 64, 64), 200),
    ],
)
def test_a_blank_set_has_its_originals_sizes_and_classes_and_takes_the_memory_of_one_image(
    tmp_path, name, train, shape, classes
):
    blank = load(f"{name}_blank", data_dir=tmp_path)
    assert (blank.train.images.shape, blank.test.images.shape) == ((train, *shape), (10_000, *shape))
    assert len(blank.classes) == len(blank.train.labels.unique()) == len(blank.test.labels.unique()) == classes
    assert blank.train.images.untyped_storage().nbytes() == blank.train.images[0].numel()
    assert not blank.train.images[:3].any()
    assert blank.name == f"{name}_blank"
