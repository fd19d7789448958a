"""The images that scikit-learn ships: handwritten digits, and crops of two photographs."""

import numpy as np

from fastgen.data.pixels import Pixels, require

PATCH_COUNTS = (10_000, 1_000)  # training and test crops, shared evenly by the photographs
_MOST_BYTES = 128 << 20  # large crops are fewer


def digits() -> Pixels:
    """The 1797 digits of load_digits, 8x8, 17 levels, labels 0..9."""
    data = require("sklearn.datasets", "scikit-learn", "digits").load_digits()
    images = data.images.astype(np.uint8)[..., None]
    return Pixels(images, data.target.astype(np.int64), levels=17)


def patches(size: tuple[int, int], fraction: float, seed: int) -> tuple[Pixels, Pixels]:
    """Training and test crops of `size` from the photographs of load_sample_images.

    The rightmost `fraction` of each photograph is the test strip; no training crop reaches it."""
    photographs = require("sklearn.datasets", "scikit-learn", "patches").load_sample_images().images
    counts = (min(count, _MOST_BYTES // (3 * size[0] * size[1])) for count in PATCH_COUNTS)
    for photograph in photographs:
        for train in (True, False):
            start, stop = strip(photograph.shape[1], fraction, train)
            if size[0] > photograph.shape[0] or size[1] > stop - start:
                raise ValueError(
                    f"fastgen.data: size must fit into {photograph.shape[0]}x{stop - start} pixels,"
                    f" a {'training' if train else 'test'} strip of the photographs, got "
                    f"{size[0]}x{size[1]}; take a smaller size or another test_fraction"
                )
    sides = []
    for train, count in zip((True, False), counts, strict=True):
        rng = np.random.RandomState(seed if train else seed ^ 1)
        crops = []
        for photograph in photographs:
            start, stop = strip(photograph.shape[1], fraction, train)
            region = photograph[:, start:stop]
            crops.append(_crops(region, size, count // len(photographs), rng))
        sides.append(Pixels(np.concatenate(crops)))
    return sides[0], sides[1]


def strip(width: int, fraction: float, train: bool) -> tuple[int, int]:
    """The columns [start, stop) that training or test crops are cut from."""
    border = width - round(width * fraction)
    return (0, border) if train else (border, width)


def _crops(region: np.ndarray, size: tuple[int, int], count: int, rng) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(region, size, axis=(0, 1))
    rows, columns = windows.shape[:2]
    # distinct corners: no crop twice
    corners = rng.permutation(rows * columns)[:count]
    crops = windows[corners // columns, corners % columns]
    return np.ascontiguousarray(np.moveaxis(crops, 1, 3))
