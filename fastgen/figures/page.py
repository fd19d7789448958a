"""What labelled figures share: colours, panels of images, and a white page to put them on."""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgen.checkpoint import write_atomically
from fastgen.figures.grids import to_grid

DPI = 200
INK, SAMPLE_INK, PAPER = "#1f2430", "#1a4bc0", "#f1f3f8"
MUTED, RULE = "#7a8194", "#d9dce3"
COLOURS = ("#2f6fde", "#e0752d", "#2b9a66", "#b0478f")


def panel(images: Tensor, levels: int, scale: int, ink: str | None) -> np.ndarray:
    """Codes (rows, columns, C, H, W) -> RGB, a pixel `scale` wide, a thin white gap between images.

    With `ink`, grey codes shade from paper to ink and images get a pixel of paper around them.
    """
    rows, columns, _, height, width = images.shape
    rim = 0 if ink is None else 1
    pixels = torch.nn.functional.pad(images, (rim,) * 4).flatten(0, 1)
    height, width, gap = height + 2 * rim, width + 2 * rim, max(2, scale // 2)
    grid = to_grid(pixels, levels=levels, columns=columns, margin=0)
    if ink is not None and grid.ndim == 2:
        ends = np.array([rgb(PAPER), rgb(ink)])
        shade = grid[..., None] / 255
        grid = (ends[0] * (1 - shade) + ends[1] * shade).round().astype(np.uint8)
    grid = grid if grid.ndim == 3 else np.stack([grid] * 3, -1)
    grid = grid.repeat(scale, 0).repeat(scale, 1)
    for axis, count, edge in ((0, rows, height * scale), (1, columns, width * scale)):
        at = np.repeat(np.arange(1, count) * edge, gap)
        grid = np.insert(grid, at, 255, axis)
    return grid


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def text_width(words: str, **font) -> float:
    """In device pixels."""
    if not words.strip():
        return 0.0
    font = _matplotlib("font_manager").FontProperties(**font)
    path = _matplotlib("textpath").TextPath((0, 0), words, prop=font)
    return path.get_extents().width * DPI / 72


class Page:
    """A white picture of (width, height) device pixels, apart from pyplot's global state; places
    are device pixels from its upper left corner."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        size = (width / DPI, height / DPI)
        self.figure = _matplotlib("figure").Figure(figsize=size, dpi=DPI, facecolor="white")

    def text(self, x: float, y: float, words: str, **style) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, words, **style)

    def heading(self, x: float, title: str, y: float = 58) -> None:
        self.text(x, y, title, fontsize=14, color=INK, va="center", fontweight="bold")

    def label(self, x: float, y: float, words: str, **style) -> None:
        """Small grey words."""
        style = {"fontsize": 9, "color": MUTED, "va": "center"} | style
        self.text(x, y, words, **style)

    def picture(self, x: int, y: int, pixels: np.ndarray) -> None:
        """uint8 (height, width, 3), pixel for pixel."""
        self.figure.figimage(pixels, x, self.height - y - pixels.shape[0], origin="upper")

    def axes(self, left: float, top: float, right: float, bottom: float, grid: str = "y"):
        """Bare axes whose edges are at these places; grid: "x", "y", "both" or ""."""
        w, h = self.width, self.height
        axes = self.figure.add_axes(
            (left / w, 1 - bottom / h, (right - left) / w, (bottom - top) / h)
        )
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(RULE)
        axes.tick_params(colors=MUTED, length=0, labelsize=9)
        if grid:
            axes.grid(axis=grid, color=RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        return axes

    def save(self, path: str | os.PathLike) -> None:
        png = io.BytesIO()
        self.figure.savefig(png, format="png", dpi=DPI)
        write_atomically(Path(path), png.getvalue())


def _matplotlib(module: str):
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise ImportError(
            f"fastgen.figures: matplotlib is missing ({error}); pip install 'fastgen[train]'"
        ) from error
