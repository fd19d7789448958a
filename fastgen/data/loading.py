"""load: from a name or a path to a Dataset."""

import os
from pathlib import Path

import numpy as np
import torch

from fastgen.data import builtin, files, folder, rings
from fastgen.data.dataset import MOST_CLASSES, Dataset, Split
from fastgen.data.pixels import Pixels, to_grey, to_levels, to_size

_PATCHES = {"patches": 32, "patches8": 8}
_NAMES = ("digits", *_PATCHES, "rings")
_TEST_FRACTION = 0.2
_MOST_SIDE = 8192


def load(
    spec: str | os.PathLike,
    *,
    size: int | tuple[int, int] | None = None,
    crop: bool = False,
    grey: bool = False,
    levels: int | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
) -> Dataset:
    """Reads images as codes, with a held-out test split. The same arguments give the same data.

    spec: "digits" (1797 handwritten digits, 8x8, 17 levels), "patches" (32x32 colour crops of
        the photographs scikit-learn ships), "patches8" (8x8 crops), "rings" (points of eight
        Gaussians on a ring, as images of two values, 256 levels of [-1, 1]; labels count the
        Gaussians), or a path: a folder or file of IDX (.gz) as MNIST has it, .npz with images
        and labels (x_train, y_train, x_test, y_test; train_images, ...; images, labels), .npy,
        or a folder of images (labels from its subfolders, splits from train/ and test/). Write
        "./digits" for a file of such a name.
    size: side or (height, width) of the images; patches are cut in this size, others resized.
    crop: cut the centre to the wanted shape before resizing, where it would be stretched.
    grey: turn colours into grey (ITU-R BT.601).
    levels: quantise 256 levels (17 of digits) to fewer, in equal bins. uint8 images have 256;
        floats in [0, 1] are taken as floor(256 v); other integers are codes already, in
        0..levels - 1.
    test_fraction: share of each class held out for the test (default 0.2; of patches, the share
        of each photograph's width). Only for data that has no test images of its own.
    seed: of the split, of the patches' places and of the rings' points, 0..2**32 - 1.

    Raises FileNotFoundError for an unknown spec, ValueError or TypeError for arguments and files
    that do not fit (truncated, lying about their size, of several image sizes, labels that do
    not match), ImportError where scikit-learn or Pillow is needed and missing.
    """
    size = _checked_size(size)
    _check_numbers(levels, test_fraction, seed)
    if crop and (size is None or spec in _PATCHES):
        raise ValueError(
            f"fastgen.data: crop cuts images to a given size, got size={size} for {spec}; "
            + ("leave crop out" if spec in _PATCHES else "give size too")
        )
    name, label_names, test = str(spec), None, None
    if spec == "digits":
        train = builtin.digits()
    elif spec in _PATCHES:
        side = _PATCHES[spec]
        size = size or (side, side)
        train, test = builtin.patches(size, test_fraction or _TEST_FRACTION, seed)
    elif spec == "rings":
        train, test = rings.rings(seed)
    else:
        path = _checked_path(spec)
        name = path.resolve().name
        if path.is_dir() and not files.has_idx(path):
            train, test, label_names = folder.read(path, size, crop, grey)
        else:
            train, test = files.read(path, levels)
    if test is not None and test_fraction is not None and spec not in _PATCHES:
        raise ValueError(
            f"fastgen.data: test_fraction is for data without test images, got "
            f"{test_fraction} for {spec}, which has {len(test.images)}; leave it out"
        )
    given = [side for side in (train, test) if side is not None]
    sides = [_prepared(side, size, crop, grey, levels, name) for side in given]
    if len(sides) == 1:
        sides = _held_out(sides[0], test_fraction or _TEST_FRACTION, seed, name)
    return _dataset(name, *sides, label_names)


def _prepared(pixels: Pixels, size, crop: bool, grey: bool, levels, where: str) -> Pixels:
    if grey:
        pixels = to_grey(pixels, where)
    if size is not None:
        pixels = to_size(pixels, size, crop, where)
    return to_levels(pixels, levels or pixels.levels, where)


def _held_out(pixels: Pixels, fraction: float, seed: int, where: str) -> list[Pixels]:
    """Splits off `fraction` of each class, at least one image of a class that has two."""
    count = len(pixels.images)
    groups = np.zeros(count, np.int64) if pixels.labels is None else pixels.labels
    rng = np.random.RandomState(seed)  # its stream is frozen: the same split under any NumPy
    is_test = np.zeros(count, bool)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        share = max(round(fraction * len(members)), 1)
        is_test[members[: min(share, len(members) - 1)]] = True
    if not is_test.any():
        raise ValueError(
            f"fastgen.data: {where} must hold at least two images (of one class) to keep one for "
            f"the test, got {count}; give more images, or test images of their own"
        )
    return [_chosen(pixels, ~is_test), _chosen(pixels, is_test)]


def _chosen(pixels: Pixels, chosen: np.ndarray) -> Pixels:
    labels = None if pixels.labels is None else pixels.labels[chosen]
    return Pixels(pixels.images[chosen], labels, pixels.levels)


def _dataset(name: str, train: Pixels, test: Pixels, label_names) -> Dataset:
    if (train.labels is None) != (test.labels is None):
        lacking = "training" if train.labels is None else "test"
        raise ValueError(
            f"fastgen.data: labels must come with both splits, got none for the {lacking} images "
            f"of {name}; add them, or take the others away"
        )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"fastgen.data: training and test images of {name} must have one shape, got (H, W, C) "
            f"{train.images.shape[1:]} and {test.images.shape[1:]}; give size= or grey="
        )
    if train.levels != test.levels:
        raise ValueError(
            f"fastgen.data: training and test images of {name} must have one dtype, got "
            f"{train.levels} and {test.levels} levels; save both as uint8"
        )
    classes = None
    if train.labels is not None:
        classes = len(label_names) if label_names else int(train.labels.max(initial=0)) + 1
        if classes > MOST_CLASSES:
            raise ValueError(
                f"fastgen.data: labels must be in 0..{MOST_CLASSES - 1}, got {classes - 1} in "
                f"{name}; number the classes from 0 without gaps"
            )
    height, width, channels = train.images.shape[1:]
    shape = (channels, height, width)
    splits = [_split(side) for side in (train, test)]
    return Dataset(name, shape, train.levels, classes, *splits, label_names=label_names)


def _split(pixels: Pixels) -> Split:
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels.images, 3, 1)))
    return Split(images, None if pixels.labels is None else torch.from_numpy(pixels.labels))


def _checked_path(spec: str | os.PathLike) -> Path:
    if not isinstance(spec, str | os.PathLike):
        raise TypeError(
            f"fastgen.data: spec must be a name or a path, got {type(spec).__name__}; "
            f"known names: {', '.join(_NAMES)}"
        )
    path = Path(spec).expanduser()
    if not str(spec) or not (path.is_dir() or path.is_file()):
        raise FileNotFoundError(
            f"fastgen.data: spec must be one of {', '.join(_NAMES)} or an existing path, got "
            f"{str(spec)!r}; give a folder or file of IDX (.gz), .npz, .npy or images"
        )
    return path


def _checked_size(size) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = size if isinstance(size, tuple | list) else (size, size)
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise TypeError(
            f"fastgen.data: size must be a side or (height, width) in pixels, got {size!r}; "
            "give integers"
        )
    if len(sides) != 2 or not all(1 <= side <= _MOST_SIDE for side in sides):
        raise ValueError(
            f"fastgen.data: size must be a side or (height, width) in 1..{_MOST_SIDE}, "
            f"got {size!r}; leave it out to keep the images' own"
        )
    return tuple(sides)


def _check_numbers(levels, test_fraction, seed) -> None:
    for name, value in (("levels", levels), ("seed", seed)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"fastgen.data: {name} must be an integer, got {value!r}; round it")
    if levels is not None and not 2 <= levels <= 256:
        raise ValueError(
            f"fastgen.data: levels must be in 2..256, got {levels}; leave it out for all levels"
        )
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ValueError(
            f"fastgen.data: test_fraction must be between 0 and 1, got {test_fraction}; "
            f"leave it out for {_TEST_FRACTION}"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(
            f"fastgen.data: seed must be in 0..2**32 - 1, got {seed}; take its remainder"
        )
