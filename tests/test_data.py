"""Data: every source gives the same codes each time, and no header is believed."""

import gzip
import io
import random
import struct
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch

from fastgen import data
from fastgen.data import builtin, rings


def idx(array: np.ndarray) -> bytes:
    types = {"|u1": 8, "|i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
    head = bytes([0, 0, types[array.dtype.str], array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def sample(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def every_image(dataset: data.Dataset) -> list[bytes]:
    both = torch.cat([dataset.train.images, dataset.test.images])
    return sorted(image.numpy().tobytes() for image in both)


@pytest.fixture
def mnist(tmp_path):
    """A folder as MNIST has it, of 20 + 6 images 5x7: one half packed, the other not."""
    images, labels = sample(26, 5, 7), np.arange(26, dtype=np.uint8) % 4
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[:20])))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels[:20]))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images[20:]))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[20:])))
    return tmp_path, images, labels


# what scikit-learn ships


def test_digits_are_all_there_with_each_class_in_both_splits():
    digits = data.load("digits")
    assert (digits.shape, digits.levels, digits.classes) == ((1, 8, 8), 17, 10)
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert digits.train.images.dtype == torch.uint8 and digits.train.labels.dtype == torch.int64
    assert digits.train.images.max() == 16
    share = digits.test.labels.bincount() / (
        digits.test.labels.bincount() + digits.train.labels.bincount()
    )
    assert share.min() > 0.19 and share.max() < 0.21


def test_digits_split_loses_and_repeats_nothing():
    from sklearn.datasets import load_digits

    whole = sorted(i.tobytes() for i in load_digits().images.astype(np.uint8))
    assert every_image(data.load("digits")) == whole


@pytest.mark.parametrize("spec", ["digits", "patches8", "rings"])
def test_seed_decides_the_split(spec):
    first, again, other = (data.load(spec, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.train.images, other.train.images)


@pytest.mark.parametrize(
    "spec, options, shape",
    [
        ("patches", {}, (3, 32, 32)),
        ("patches", {"size": 8}, (3, 8, 8)),
        ("patches8", {"grey": True}, (1, 8, 8)),
        ("patches", {"size": (5, 9), "levels": 16}, (3, 5, 9)),
    ],
)
def test_patches_have_the_size_and_colours_asked_for(spec, options, shape):
    patches = data.load(spec, **options)
    assert patches.shape == shape and patches.classes is None
    assert patches.levels == options.get("levels", 256) > patches.train.images.max().item()
    assert (len(patches.train), len(patches.test)) == builtin.PATCH_COUNTS


def test_no_training_patch_touches_the_test_strip(monkeypatch):
    # photographs whose pixels tell their column and their photograph
    columns = np.arange(200, dtype=np.uint8)
    photographs = [
        np.broadcast_to(np.stack([columns, columns * 0 + n, columns], 1), (60, 200, 3))
        for n in (0, 1)
    ]
    shipped = type("Shipped", (), {"images": photographs})
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: shipped)
    train, test = builtin.patches((32, 32), 0.2, seed=0)
    for n in (0, 1):
        seen = [
            set(np.unique(side.images[side.images[:, 0, 0, 1] == n][..., 0]))
            for side in (train, test)
        ]
        assert max(seen[0]) < 160 <= min(seen[1])
        assert len(seen[0]) == 160 and len(seen[1]) == 40  # all of either side is used


def test_rings_are_eight_gaussians_each_with_its_label():
    dataset = data.load("rings")
    assert (dataset.shape, dataset.levels, dataset.classes) == ((1, 1, 2), 256, 8)
    assert (len(dataset.train), len(dataset.test)) == rings.COUNTS
    for split in (dataset.train, dataset.test):
        assert split.labels.bincount().tolist() == [len(split) // 8] * 8
        places, centres = rings.places(split.images), rings.centres()
        assert torch.equal(torch.cdist(places, centres).argmin(1), split.labels)
        off = places - centres[split.labels]
        assert off.mean(0).abs().max() < 4 * rings.SIGMA / len(split) ** 0.5
        # and the twelfth of a level's square that rounding adds
        expected = (rings.SIGMA**2 + (2 / 255) ** 2 / 12) ** 0.5
        assert off.std(0).sub(expected).abs().max() < 0.05 * rings.SIGMA
    assert rings.centres()[2].allclose(torch.tensor([0, rings.RADIUS], dtype=torch.float64))


def test_patches_are_distinct():
    patches = data.load("patches")
    assert len(set(every_image(patches))) > 0.99 * sum(builtin.PATCH_COUNTS)


# the user's own files


def test_mnist_folder_keeps_its_own_test_images(mnist):
    path, images, labels = mnist
    loaded = data.load(path)
    assert loaded.shape == (1, 5, 7) and loaded.levels == 256 and loaded.classes == 4
    assert np.array_equal(loaded.train.images[:, 0].numpy(), images[:20])
    assert np.array_equal(loaded.test.images[:, 0].numpy(), images[20:])
    assert loaded.train.labels.tolist() == labels[:20].tolist()
    assert loaded.test.labels.tolist() == labels[20:].tolist()


def test_single_idx_file_finds_the_labels_beside_it(mnist):
    path, images, _ = mnist
    loaded = data.load(str(path / "train-images-idx3-ubyte.gz"), test_fraction=0.4)
    assert loaded.classes == 4
    assert loaded.test.labels.bincount().tolist() == [2, 2, 2, 2]
    assert every_image(loaded) == sorted(i.tobytes() for i in images[:20])


@pytest.mark.parametrize("dtype", ["u1", "i1", ">i2", ">i4", ">f4", ">f8"])
def test_idx_reads_every_type_of_the_format(tmp_path, dtype):
    (tmp_path / "a").write_bytes(idx(np.arange(2).astype(dtype).repeat(2).reshape(4, 1, 1)))
    one = 255 if "f" in dtype else 1
    expected = [bytes([v]) for v in (0, 0, one, one)]
    assert every_image(data.load(tmp_path / "a")) == expected


@pytest.mark.parametrize(
    "shape", [(6, 5, 4), (6, 5, 4, 1), (6, 1, 5, 4), (6, 5, 4, 3), (6, 3, 5, 4)]
)
@pytest.mark.parametrize("suffix", ["npy", "npz", "idx", "idx.gz"])
def test_every_layout_becomes_channels_first(tmp_path, shape, suffix):
    array = sample(*shape)
    path = tmp_path / f"images.{suffix}"
    if suffix == "npy":
        np.save(path, np.asfortranarray(array))
    elif suffix == "npz":
        np.savez_compressed(path, array)
    else:
        path.write_bytes(gzip.compress(idx(array)) if suffix == "idx.gz" else idx(array))
    channels = 3 if 3 in shape else 1
    if len(shape) == 3:
        array = array[:, None]
    elif shape[3] == channels:
        array = array.transpose(0, 3, 1, 2)
    loaded = data.load(path)
    assert loaded.shape == (channels, 5, 4)
    assert every_image(loaded) == sorted(np.ascontiguousarray(i).tobytes() for i in array)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_npz_of_keras_and_medmnist_keeps_its_splits(tmp_path, names):
    labels = np.arange(9)[:, None] % 3
    arrays = sample(9, 4, 4), labels, sample(3, 4, 4, seed=1), labels[:3]
    np.savez(tmp_path / "a.npz", **dict(zip(names, arrays, strict=True)))
    loaded = data.load(tmp_path / "a.npz")
    assert loaded.name == "a.npz" and loaded.classes == 3
    assert np.array_equal(loaded.test.images[:, 0].numpy(), arrays[2])
    assert loaded.train.labels.tolist() == labels[:, 0].tolist()


def test_npz_of_sampled_codes_is_read_back(tmp_path):
    codes = np.arange(17).reshape(17, 1, 1, 1).repeat(2, 2).repeat(2, 3)
    np.savez(tmp_path / "a.npz", codes=codes)
    loaded = data.load(tmp_path / "a.npz", levels=17)
    assert loaded.levels == 17 and every_image(loaded) == [bytes([i] * 4) for i in range(17)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_take_back_what_division_made(tmp_path, dtype):
    every = np.arange(256)
    np.save(tmp_path / "a.npy", (every / 255).astype(dtype).reshape(256, 1, 1))
    if dtype is not np.float16:  # whose 11 bits cannot tell all k / 255 apart from below
        assert every_image(data.load(tmp_path / "a.npy")) == [bytes([i]) for i in every]
    np.save(tmp_path / "a.npy", (every / 256).astype(dtype).reshape(256, 1, 1))
    assert every_image(data.load(tmp_path / "a.npy")) == [bytes([i]) for i in every]


@pytest.mark.parametrize("levels", [2, 3, 17, 255])
def test_levels_are_equal_bins_from_darkest_to_brightest(tmp_path, levels):
    np.save(tmp_path / "a.npy", np.arange(256, dtype=np.uint8).reshape(256, 1, 1))
    loaded = data.load(tmp_path / "a.npy", levels=levels)
    counts = np.bincount([image[0] for image in every_image(loaded)])
    assert loaded.levels == len(counts) == levels
    assert counts.max() - counts.min() <= 1


def test_bool_images_have_two_levels(tmp_path):
    np.save(tmp_path / "a.npy", sample(8, 3, 3) > 99)
    assert data.load(tmp_path / "a.npy").levels == 2


def test_grey_weighs_colours_as_pillow_does(tmp_path):
    from PIL import Image

    colours = sample(30, 4, 4, 3)
    np.save(tmp_path / "a.npy", colours)
    expected = [np.asarray(Image.fromarray(i).convert("L")).astype(int) for i in colours]
    loaded = data.load(tmp_path / "a.npy", grey=True, test_fraction=0.01)
    assert loaded.shape == (1, 4, 4)
    totals = np.sort(np.concatenate([loaded.train.images, loaded.test.images]).sum((1, 2, 3)))
    assert np.abs(totals - np.sort(np.sum(expected, (1, 2)))).max() <= 16  # one level a pixel


def test_arrays_are_resized_stretched_or_cut(tmp_path):
    wide = np.zeros((4, 10, 30), np.uint8)
    wide[:, :, 10:20] = 200  # a square in the centre, black beside it
    np.save(tmp_path / "a.npy", wide)
    cut = data.load(tmp_path / "a.npy", size=5, crop=True)
    stretched = data.load(tmp_path / "a.npy", size=(5, 15))
    assert cut.shape == (1, 5, 5) and cut.train.images.min() > 150
    assert stretched.shape == (1, 5, 15) and stretched.train.images[0, 0, :, 0].max() == 0


# folders of images


def picture(path, array, **options):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def test_subfolders_are_classes(tmp_path):
    for label, name in enumerate(["ant", "bee", "cat"]):
        for n in range(5):
            picture(tmp_path / name / "deeper" / f"{n}.png", np.full((6, 4, 3), 10 * label, "u1"))
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    loaded = data.load(tmp_path)
    assert loaded.shape == (3, 6, 4) and loaded.label_names == ("ant", "bee", "cat")
    assert loaded.test.labels.tolist() == [0, 1, 2]
    for split in (loaded.train, loaded.test):
        assert torch.equal(split.images[:, 0, 0, 0].long(), 10 * split.labels)


def test_train_and_test_subfolders_are_the_splits(tmp_path):
    for n, place in enumerate(["train/a/0", "train/b/1", "train/a/2", "test/b/3"]):
        picture(tmp_path / f"{place}.png", np.full((3, 3), n, "u1"))
    loaded = data.load(tmp_path)
    assert loaded.shape == (1, 3, 3) and loaded.label_names == ("a", "b")
    assert loaded.train.images[:, 0, 0, 0].tolist() == [0, 2, 1]
    assert loaded.train.labels.tolist() == [0, 0, 1] and loaded.test.labels.tolist() == [1]
    picture(tmp_path / "test/c/4.png", np.zeros((3, 3), "u1"))
    with pytest.raises(ValueError, match="among those of .*train, got 'c'"):
        data.load(tmp_path)


def test_loose_images_have_no_labels_and_colour_wins(tmp_path):
    picture(tmp_path / "a.png", np.full((3, 3), 7, "u1"))
    picture(tmp_path / "b.png", np.full((3, 3, 3), 9, "u1"))
    assert (data.load(tmp_path).shape, data.load(tmp_path).classes) == ((3, 3, 3), None)
    assert data.load(tmp_path, grey=True).shape == (1, 3, 3)


def test_transparency_sixteen_bits_and_orientation_are_followed(tmp_path):
    from PIL import Image

    clear = np.zeros((2, 4, 4), "u1")
    picture(tmp_path / "clear" / "0.png", clear)
    picture(tmp_path / "deep" / "0.png", np.full((2, 4), 0x9C40, np.uint16))
    turned = Image.fromarray(np.full((4, 2), 30, "u1"))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: shown as 2x4
    (tmp_path / "turned").mkdir()
    turned.save(tmp_path / "turned" / "0.png", exif=exif)
    for n in range(3):
        (tmp_path / "clear" / f"{n}.png").write_bytes((tmp_path / "clear/0.png").read_bytes())
    loaded = data.load(tmp_path, grey=True)
    values = dict(
        zip(loaded.train.labels.tolist(), loaded.train.images[:, 0, 0, 0].tolist(), strict=True)
    )
    assert loaded.shape == (1, 2, 4) and values == {0: 255, 1: 0x9C, 2: 30}


def test_images_of_different_size_name_both_and_the_remedy(tmp_path):
    picture(tmp_path / "a.png", sample(4, 5))
    picture(tmp_path / "b.png", sample(6, 5))
    with pytest.raises(
        ValueError, match=r"4x5 .*a\.png and 6x5 in .*b\.png; give size=.*crop=True"
    ):
        data.load(tmp_path)
    assert data.load(tmp_path, size=(4, 5)).shape == (1, 4, 5)
    assert data.load(tmp_path, size=3, crop=True).shape == (1, 3, 3)


@pytest.mark.parametrize("damage", ["cut", "text", "bomb"])
def test_damaged_image_is_named(tmp_path, damage):
    for name in "ab":
        picture(tmp_path / f"{name}.png", sample(64, 64))
    good = (tmp_path / "b.png").read_bytes()
    bomb = good[:16] + struct.pack(">II", 60_000, 60_000) + good[24:29]
    bomb += struct.pack(">I", zlib.crc32(bomb[12:29])) + good[33:]
    (tmp_path / "b.png").write_bytes({"cut": good[:900], "text": b"hello", "bomb": bomb}[damage])
    with pytest.raises(ValueError, match=r"fastgen\.data: .*b\.png must"):
        data.load(tmp_path)


def test_folder_without_images_says_what_it_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"must hold images \(.*\.png.*IDX.*got 0 other"):
        data.load(tmp_path)
    picture(tmp_path / "a" / "0.png", sample(2, 2))
    picture(tmp_path / "1.png", sample(2, 2))
    with pytest.raises(ValueError, match=r"either images or subfolders.*1\.png and a/"):
        data.load(tmp_path)


# bad input


def test_unknown_path_lists_what_is_known():
    with pytest.raises(
        FileNotFoundError, match="digits, patches, patches8, rings or an existing.*'digit'"
    ):
        data.load("digit")
    with pytest.raises(TypeError, match="spec must be a name or a path, got int"):
        data.load(3)


@pytest.mark.parametrize(
    "spec, options, error, message",
    [
        ("digits", {"levels": 1}, ValueError, r"levels must be in 2\.\.256, got 1"),
        ("digits", {"levels": 18}, ValueError, "levels must be at most 17 for digits, got 18"),
        ("digits", {"levels": 2.5}, TypeError, "levels must be an integer, got 2.5"),
        ("digits", {"size": 16}, ValueError, "size must be 8x8 for digits.*got 16x16; leave"),
        ("digits", {"size": 0}, ValueError, r"size must be .* in 1\.\.8192, got 0"),
        ("digits", {"size": "8"}, TypeError, "size must be a side .*got '8'; give integers"),
        ("digits", {"size": (8, 8, 8)}, ValueError, "size must be"),
        ("digits", {"crop": True}, ValueError, "crop cuts .* got size=None for digits; give size"),
        ("digits", {"test_fraction": 1.0}, ValueError, "test_fraction must be between 0 and 1"),
        ("digits", {"seed": -1}, ValueError, "seed must be in 0"),
        ("patches", {"size": 128, "test_fraction": 0.1}, ValueError, "size must fit into 427x64"),
        ("patches", {"crop": True}, ValueError, "leave crop out"),
        ("rings", {"size": 8}, ValueError, "size must be 1x2 for rings.*leave size out"),
        ("rings", {"levels": 16}, ValueError, "levels must be 256 for rings, got 16; leave"),
        ("rings", {"test_fraction": 0.5}, ValueError, "0.5 for rings, which has 2000; leave"),
    ],
)
def test_impossible_arguments_are_refused(spec, options, error, message):
    with pytest.raises(error, match=rf"fastgen\.data: .*{message}"):
        data.load(spec, **options)


def test_test_fraction_is_refused_where_test_images_exist(mnist):
    with pytest.raises(ValueError, match="without test images, got 0.5 for .*, which has 6"):
        data.load(mnist[0], test_fraction=0.5)


@pytest.mark.parametrize(
    "array, error, message",
    [
        (np.zeros((4, 4), "u1"), ValueError, r"images must be \(N, H, W\).*got \(4, 4\)"),
        (np.zeros((4, 3, 5, 3), "u1"), ValueError, r"got \(4, 3, 5, 3\).*could be both"),
        (np.zeros((4, 5, 5, 2), "u1"), ValueError, r"1 or 3 channels, got \(4, 5, 5, 2\)"),
        (np.zeros((1, 4, 4), "u1"), ValueError, "at least two images"),
        (np.zeros((0, 4, 4), "u1"), ValueError, "at least two images"),
        (np.zeros((2**40, 0, 4), "u1"), ValueError, "at least one pixel"),
        (np.full((4, 2, 2), 300), ValueError, r"codes in 0\.\.255, got 300\.\.300"),
        (np.full((4, 2, 2), -1), ValueError, "got -1"),
        (np.full((4, 2, 2), 1.5), ValueError, r"in \[0, 1\], got 1\.5\.\.1\.5.*rescale"),
        (np.full((4, 2, 2), np.nan), ValueError, r"in \[0, 1\], got nan"),
        (np.full((4, 2, 2), 1j), TypeError, "must hold numbers, got dtype complex128"),
        (np.full((4, 2, 2), "a"), TypeError, "must hold numbers, got dtype <U1"),
        (np.zeros(4, [("a", "u1")]), TypeError, "must hold numbers"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, array, error, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(error, match=rf"(?s)fastgen\.data: .*{message}"):
        data.load(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickled_objects_are_never_loaded(tmp_path, suffix):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    array = np.array([Payload()], dtype=object)
    save = np.save if suffix == "npy" else np.savez
    save(tmp_path / f"a.{suffix}", array)
    with pytest.raises(TypeError, match="never unpickled"):
        data.load(tmp_path / f"a.{suffix}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "labels, error, message",
    [
        (np.zeros(5, int), ValueError, r"one for each of 6 images, got shape \(5,\)"),
        (np.zeros((6, 2), int), ValueError, r"got shape \(6, 2\)"),
        (np.full(6, -1), ValueError, "class numbers 0, 1, ..., got -1"),
        (np.full(6, 70_000), ValueError, r"in 0\.\.65535, got 70000"),
        (np.full(6, 2**63, "u8"), ValueError, "class numbers"),
        (np.zeros(6), TypeError, "labels must be integers, got float64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, error, message):
    np.savez(tmp_path / "a.npz", images=sample(6, 2, 2), labels=labels)
    with pytest.raises(error, match=rf"fastgen\.data: .*{message}"):
        data.load(tmp_path / "a.npz")


def test_splits_that_do_not_fit_are_refused(tmp_path):
    path, images, labels = tmp_path / "a.npz", sample(6, 2, 2), np.arange(6) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels + 1)
    with pytest.raises(ValueError, match=r"test labels must be in 0\.\.1, got 1\.\.2"):
        data.load(path)
    np.savez(path, x_train=images, y_train=labels, x_test=images)
    with pytest.raises(ValueError, match="labels must come with both.*none for the test"):
        data.load(path)
    np.savez(path, x_train=images, x_test=sample(6, 3, 3))
    with pytest.raises(ValueError, match=r"one shape.*\(2, 2, 1\) and \(3, 3, 1\); give size="):
        data.load(path)
    np.savez(path, x_train=images, x_test=images > 9)
    with pytest.raises(ValueError, match="one dtype, got 256 and 2 levels"):
        data.load(path)
    np.savez(path, pictures=images, tags=labels)
    with pytest.raises(ValueError, match="must hold images and labels.*got pictures, tags; rename"):
        data.load(path)


def test_two_idx_sets_in_a_folder_are_named(mnist):
    path = mnist[0]
    (path / "emnist-train-images-idx3-ubyte").write_bytes(idx(sample(3, 2, 2)))
    with pytest.raises(ValueError, match="one file of train images, got emnist-train.* and train-"):
        data.load(path)


def test_dataset_checks_what_it_is_given():
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)

    def build(images=images, labels=labels, levels=2, classes=1):
        split = data.Split(images, labels)
        return data.Dataset("mine", (1, 2, 2), levels, classes, split, split)

    assert build().shape == (1, 2, 2)
    for wrong, error, message in [
        ({"images": images.float()}, TypeError, "must be uint8"),
        ({"images": images[:, 0]}, ValueError, r"shape \(N, 1, 2, 2\), got \(4, 2, 2\)"),
        ({"images": images + 2}, ValueError, r"codes in 0\.\.1, got 2"),
        ({"labels": labels + 1}, ValueError, r"labels must be in 0\.\.0, got 1\.\.1"),
        ({"labels": labels[1:]}, ValueError, "one for each of 4 images"),
        ({"labels": labels.int()}, TypeError, "must be int64"),
        ({"labels": None}, ValueError, "no labels, but classes is 1"),
        ({"levels": 257}, ValueError, "levels must be"),
        ({"images": images[:0], "labels": labels[:0]}, ValueError, "train must hold images"),
    ]:
        with pytest.raises(error, match=rf"fastgen\.data: .*{message}"):
            build(**wrong)


@pytest.mark.parametrize(
    "spec, missing, name", [("digits", "sklearn", "scikit-learn"), ("folder", "PIL", "Pillow")]
)
def test_missing_package_names_the_extra(tmp_path, monkeypatch, spec, missing, name):
    picture(tmp_path / "a.png", sample(2, 2))
    for module in [m for m in sys.modules if m.split(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"needs {name}, .*pip install fastgen\[train\]"):
        data.load("digits" if spec == "digits" else tmp_path)


# files that lie


def lying_files() -> dict[str, bytes]:
    huge = struct.pack(">III", 2**31, 2**15, 2**15)
    whole = npy(sample(4, 8, 8))
    members = io.BytesIO()
    with zipfile.ZipFile(members, "w") as archive:
        archive.writestr("images.npy", npy_header("(2199023255552, 8, 8)"))
    bomb = gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 4, 2, 2) + bytes(64 << 20))
    return {
        "empty": b"",
        "text": b"hello, world",
        "idx without sizes": b"\0\0\x08\x03\0\0",
        "idx cut": idx(sample(4, 8, 8))[:-1],
        "idx longer": idx(sample(4, 8, 8)) + b"x",
        "idx huge": b"\0\0\x08\x03" + huge,
        "idx.gz huge": gzip.compress(b"\0\0\x08\x03" + huge),
        "idx.gz cut": gzip.compress(idx(sample(4, 8, 8)))[:-20],
        "idx.gz short": gzip.compress(idx(sample(4, 8, 8))[:-9]),
        "idx.gz bomb": bomb,
        "idx.gz broken": gzip.compress(idx(sample(4, 8, 8)))[:-8] + bytes(8),
        "npy cut": whole[:-1],
        "npy without header": whole[:9],
        "npy huge": npy_header("(2199023255552, 8, 8)"),
        "npy negative": npy_header("(-4, -8, 8)") + bytes(256),
        "npy deep": npy_header("(" * 5000),
        "npy header of gigabytes": b"\x93NUMPY\x02\0\xff\xff\xff\xff",
        "npy damaged": whole[:40] + b"\xff" + whole[41:],
        "npz huge": members.getvalue(),
        "npz cut": members.getvalue()[:-9],
        "npz text": b"PK\x03\x04 no archive",
    }


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("kind", lying_files())
def test_lying_file_is_refused_before_memory_is_taken(tmp_path, kind):
    path = tmp_path / f"a.{kind.split()[0]}"
    path.write_bytes(lying_files()[kind])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"fastgen\.data: "):
            data.load(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["idx", "idx.gz", "npy", "npz"])
def test_mutated_files_are_read_or_refused(tmp_path, suffix):
    array = sample(4, 6, 5)
    packed = io.BytesIO()
    np.savez_compressed(packed, images=array, labels=np.arange(4))
    good = {
        "idx": idx(array),
        "idx.gz": gzip.compress(idx(array)),
        "npy": npy(array),
        "npz": packed.getvalue(),
    }[suffix]
    path, rng = tmp_path / f"a.{suffix}", random.Random(0)
    for _ in range(200):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            where = rng.randrange(min(len(bad), rng.choice([16, 128, 1 << 20])))
            bad[where] = rng.choice([0, 1, 127, 255, rng.randrange(256)])
        path.write_bytes(bad[: rng.choice([len(bad), rng.randrange(len(bad))])])
        try:
            data.load(path)
        except (ValueError, TypeError) as error:
            assert str(error).startswith("fastgen.data: ")
