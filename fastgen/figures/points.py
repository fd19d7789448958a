"""Points of the plane, which are images of two values: each a dot, samples over the real ones."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastgen.figures.grids import write_png
from fastgen.figures.page import MUTED, SAMPLE_INK, Page, rgb, text_width

SHAPE = (1, 1, 2)  # of the images: x and y
COUNT = 1024  # enough of them for a picture
_EDGE = 512  # of the plane, in pixels
_REAL, _PAPER = MUTED, "#ffffff"
_MARGIN, _GAP, _TITLE, _NAME, _CAPTION = 52, 28, 92, 40, 92


def plane(
    samples: Tensor, *, levels: int, real: Tensor | None = None, edge: int = _EDGE
) -> np.ndarray:
    """Codes (N, 1, 1, 2), x and y, as dots of one uint8 picture (edge, edge, 3), y upwards.

    real: points to lie under them, in grey.
    """
    for name, points in (("samples", samples), ("real", real)):
        if points is not None and (points.dim() != 4 or tuple(points.shape[1:]) != SHAPE):
            raise ValueError(
                f"fastgen.figures.plane: {name} must be codes (N, 1, 1, 2), got "
                f"{tuple(points.shape)}; larger images are for a grid"
            )
    pixels = np.empty((edge, edge, 3))
    pixels[:] = rgb(_PAPER)
    layers = [(real, _REAL, 0.12)] if real is not None else []
    for points, colour, alpha in [*layers, (samples, SAMPLE_INK, 0.5)]:
        cover = 1 - (1 - alpha) ** _dots(points, levels, edge)[..., None]
        pixels += cover * (np.array(rgb(colour)) - pixels)
    return pixels.round().astype(np.uint8)


def write_points(
    path: str | os.PathLike, samples: Tensor, *, levels: int, real: Tensor | None = None
) -> None:
    """Writes `plane` as PNG, without any library."""
    write_png(path, plane(samples, levels=levels, real=real))


def points(
    path: str | os.PathLike,
    samples: Mapping[str, Tensor],
    *,
    levels: int,
    real: Tensor | None = None,
    title: str = "",
    caption: str = "",
    columns: int = 4,
) -> None:
    """Sets of points side by side, each named, `columns` a row, the real ones under every set.

    samples: name -> codes (N, 1, 1, 2). real: codes.
    """
    planes = {n: plane(s, levels=levels, real=real) for n, s in samples.items()}
    across = min(columns, len(planes))
    down = -(-len(planes) // across)
    wide, tall = _EDGE + _GAP, _EDGE + _GAP + _NAME
    longest = max(text_width(title, size=14, weight="bold"), text_width(caption, size=9))
    top, bottom = _TITLE if title else 24, _CAPTION if caption else 40
    width = max(across * wide - _GAP, int(longest))
    page = Page(2 * _MARGIN + width, top + down * tall - _GAP + bottom)
    for i, (name, pixels) in enumerate(planes.items()):
        x, y = _MARGIN + i % across * wide, top + i // across * tall + _NAME
        page.picture(x, y, _framed(pixels))
        page.label(x, y - 12, name, fontsize=10.5, va="bottom")
    page.heading(_MARGIN, title, y=46)
    page.label(_MARGIN, page.height - 40, caption)
    page.save(path)


def _dots(points: Tensor, levels: int, edge: int) -> np.ndarray:
    """How many dots cover each pixel."""
    at = (points.detach().cpu().flatten(1).double() / (levels - 1) * (edge - 1)).round().long()
    x, y = at.clamp(0, edge - 1).unbind(1)
    counts = torch.bincount((edge - 1 - y) * edge + x, minlength=edge * edge)
    radius = max(1, edge // 220)
    reach = torch.arange(-radius, radius + 1)
    disc = (reach[:, None] ** 2 + reach**2 <= (radius + 0.3) ** 2).float()
    shape = (1, 1, edge, edge)
    dots = torch.nn.functional.conv2d(counts.view(shape).float(), disc[None, None], padding=radius)
    return dots[0, 0].numpy()


def _framed(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.copy()
    pixels[[0, -1]] = pixels[:, [0, -1]] = 217
    return pixels
