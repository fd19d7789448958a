"""Bare PNG files of what a model makes, without any library: grids of images, and of images of two
values the plane."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from fastgen.figures.grids import interleaved, write_grid
from fastgen.figures.points import COUNT, SHAPE, write_points


def are_points(shape: Sequence[int]) -> bool:
    """Whether images of this shape (C, H, W) are places in the plane rather than pictures."""
    return tuple(shape) == SHAPE


def samples_shown(shape: Sequence[int], images: int) -> int:
    """How many samples a picture wants: `images`, or as many dots as show a density."""
    return COUNT if are_points(shape) else images


def write_samples(
    path: str | os.PathLike,
    images: Tensor,
    *,
    levels: int,
    columns: int | None = None,
    scale: int | None = None,
    real: Tensor | None = None,
) -> None:
    """Writes codes (N, C, H, W) as PNG: points as dots over the real ones, images as a grid."""
    if are_points(images.shape[1:]):
        write_points(path, images, levels=levels, real=real)
    else:
        write_grid(path, images, levels=levels, columns=columns, scale=scale)


def write_comparison(
    path: str | os.PathLike, rows: Sequence[Tensor], *, levels: int, columns: int
) -> None:
    """Writes lists of codes (N, C, H, W) as PNG: rows of the first, each above its row of the
    second, and so on; of points the last over the first."""
    if are_points(rows[0].shape[1:]):
        write_points(path, rows[-1], levels=levels, real=rows[0])
    else:
        write_grid(path, interleaved(rows, columns), levels=levels, columns=columns)
