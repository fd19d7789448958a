"""The receptive field of an autoregressive model."""

from __future__ import annotations

import os

import numpy as np

from fastgen.figures.page import INK, PAPER, Page, rgb

FIELD = ("#7fa8f5", "#d03b3b", "#f2c14e")  # seen, seen against the order, blind


def receptive_field(
    path: str | os.PathLike,
    kinds: np.ndarray,
    output: tuple[int, int],
    *,
    title: str = "",
    caption: str = "",
) -> None:
    """What one output of an autoregressive model sees, a panel a colour.

    kinds: int (C, H, W): 0 not seen, 1 seen, 2 seen against the order, 3 not seen but might be.
    output: (row, column) of the output, framed.
    """
    channels, height, width = kinds.shape
    names = ("not seen", "seen", "seen, drawn too late", "blind: earlier, not seen")
    shades = np.array([rgb(c) for c in (PAPER, *FIELD)], np.uint8)
    side = max(4, min(48, 560 // max(height, width)))
    gap, left, top, bottom = 48, 60, 150, 150
    size = (max(left * 2 + channels * (width * side + gap) - gap, 1100), 0)
    size = (size[0], top + height * side + bottom)
    page = Page(*size)
    for channel in range(channels):
        pixels = shades[kinds[channel]].repeat(side, 0).repeat(side, 1)
        pixels[::side] = pixels[:, ::side] = 255
        row, column = output[0] * side, output[1] * side
        edge = max(2, side // 8)
        frame = np.ones((side, side), bool)
        frame[edge:-edge, edge:-edge] = False
        pixels[row : row + side, column : column + side][frame] = rgb(INK)
        x = left + channel * (width * side + gap)
        page.picture(x, top, pixels)
        if channels > 1:
            page.label(x, top - 14, f"channel {channel}", va="bottom")
    page.text(left, 52, title, fontsize=13, color=INK, va="center", fontweight="bold")
    page.label(left, 92, caption)
    x, y = left, top + height * side + 70
    for kind, name in enumerate(names):
        if kind in kinds or kind < 2:
            swatch = np.full((22, 22, 3), shades[kind], np.uint8)
            page.picture(x, y - 11, swatch)
            page.label(x + 34, y, name)
            x += 60 + 13 * len(name)
    page.save(path)
