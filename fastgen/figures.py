"""Pictures: sample grids as bare PNG files, and labelled figures through matplotlib."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgen.checkpoint import write_atomically

_DPI = 200
_INK, _SAMPLE_INK, _PAPER = "#1f2430", "#1a4bc0", "#f1f3f8"
_MUTED, _RULE = "#7a8194", "#d9dce3"
_FIELD = ("#7fa8f5", "#d03b3b", "#f2c14e")  # seen, seen against the order, blind
_COLOURS = ("#2f6fde", "#e0752d", "#2b9a66", "#b0478f")


def to_grid(
    images: Tensor, *, levels: int, columns: int, margin: int = 1, background: int = 255
) -> np.ndarray:
    """Codes (N, C, H, W), C 1 or 3, 0..levels-1 -> one uint8 picture (height, width[, 3]).

    Images fill row after row, `columns` a row, `margin` pixels of `background` grey between them
    and around.
    """
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(
            f"fastgen.figures: images must have 1 or 3 channels, got {channels}; choose some"
        )
    rows = -(-count // columns)
    pixels = images.detach().cpu().double() * (255 / (levels - 1))
    pixels = pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    tall, wide = height + margin, width + margin
    grid = np.full((rows * tall + margin, columns * wide + margin, channels), background, np.uint8)
    for i, image in enumerate(pixels):
        y, x = i // columns * tall + margin, i % columns * wide + margin
        grid[y : y + height, x : x + width] = image
    return grid[..., 0] if channels == 1 else grid


def write_grid(
    path: str | os.PathLike,
    images: Tensor,
    *,
    levels: int,
    columns: int | None = None,
    scale: int | None = None,
) -> None:
    """Writes a grid of images as PNG, every pixel a crisp square.

    images: codes (N, C, H, W) in 0..levels-1. columns: default the square root of N.
    scale: edge of a pixel's square; default makes an image about 64 wide.
    """
    columns = columns or max(1, round(len(images) ** 0.5))
    scale = scale or max(1, round(64 / images.shape[-1]))
    grid = to_grid(images, levels=levels, columns=columns)
    write_png(path, grid.repeat(scale, 0).repeat(scale, 1))


def paired(first: Tensor, second: Tensor, columns: int) -> Tensor:
    """Two lists of images (N, C, H, W) as one for a grid of `columns`: rows of the first, each
    above its row of the second."""
    pairs = zip(first.split(columns), second.split(columns), strict=True)
    return torch.cat([row for pair in pairs for row in pair])


def write_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Writes uint8 pixels, (height, width) or (height, width, 3), as PNG, without any library."""
    height, width = pixels.shape[:2]
    colour = 2 if pixels.ndim == 3 else 0
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1)  # filter 0: none

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    body = zlib.compress(filtered.tobytes(), 9)
    png = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    write_atomically(Path(path), b"\x89PNG\r\n\x1a\n" + png)


def real_beside_samples(
    path: str | os.PathLike,
    real: Tensor,
    samples: Tensor,
    *,
    levels: int,
    class_names: Sequence[str],
    title: str = "",
    caption: str = "",
    as_ink: bool = False,
) -> None:
    """Real images on the left, samples on the right, one class a row.

    real, samples: codes (classes, per_row, C, H, W) in 0..levels-1, C 1 or 3.
    class_names: a label for each row. as_ink: grey level 0 is paper, the highest is ink.
    """
    scale = max(1, round(64 / real.shape[-1]))  # whole device pixels: no square wider than another
    gap, left, right, top, bottom = 56, 76, 52, 156, 92 if caption else 48
    panels = [
        _panel(images, levels, scale, ink if as_ink else None)
        for images, ink in ((real, _INK), (samples, _SAMPLE_INK))
    ]
    tall = panels[0].shape[0]
    size = (left + sum(p.shape[1] for p in panels) + gap + right, top + tall + bottom)
    figure = _figure(size)

    def text(x: float, y: float, words: str, **style) -> None:
        figure.text(x / size[0], 1 - y / size[1], words, **style)

    x = left
    for panel, name in zip(panels, ("real", "sampled"), strict=True):
        figure.figimage(panel, x, bottom, origin="upper")
        text(x, top - 18, name, fontsize=10.5, color=_MUTED, va="bottom")
        x += panel.shape[1] + gap
    for row, name in enumerate(class_names):
        y = top + tall * (row + 0.5) / len(class_names)
        text(left - 24, y, name, ha="right", va="center_baseline", fontsize=11, color=_MUTED)
    text(left, 58, title, fontsize=14, color=_INK, va="center", fontweight="bold")
    text(left, size[1] - 40, caption, fontsize=9, color=_MUTED, va="center")
    _save(figure, path)


def training_curves(
    path: str | os.PathLike,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    baselines: Mapping[str, float] | None = None,
    xlabel: str = "step",
    ylabel: str = "bits/dim",
    title: str = "",
) -> None:
    """Lines over training, each named with its last value at its end.

    curves: name -> (x, y). baselines: name -> level on the y axis, drawn dashed.
    """
    size = (1560, 900)
    figure = _figure(size)
    axes = figure.add_axes((0.085, 0.125, 0.655, 0.715))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_RULE)
    axes.tick_params(colors=_MUTED, length=0, labelsize=9)
    axes.grid(axis="y", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.0, y=0.06)
    names = [(level, f"{name}  {level:.3f}", _MUTED) for name, level in (baselines or {}).items()]
    for level, _, _ in names:
        axes.axhline(level, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    style = {"linewidth": 2, "solid_capstyle": "round", "clip_on": False}
    for i, (name, (x, y)) in enumerate(curves.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        axes.plot(x, y, color=colour, zorder=3 - i / len(curves), **style)  # the first on top
        names.append((y[-1], f"{name}  {y[-1]:.3f}", colour))
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    heights = _spread([(level - low) / (high - low) for level, _, _ in names], apart=0.062)
    for height, (_, words, colour) in zip(heights, names, strict=True):
        axes.text(
            1.02, height, words, transform=axes.transAxes, va="center", fontsize=9.5, color=colour
        )
    axes.set_xlabel(xlabel, color=_MUTED, fontsize=9.5, labelpad=8)
    axes.set_ylabel(ylabel, color=_MUTED, fontsize=9.5, labelpad=8)
    figure.text(0.085, 0.925, title, fontsize=14, color=_INK, va="center", fontweight="bold")
    _save(figure, path)


def _spread(heights: Sequence[float], apart: float) -> list[float]:
    """Moves heights as little as keeps neighbours `apart`."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    blocks: list[tuple[float, int]] = []  # (centre, members) of labels that touch
    for i in order:
        centre, count = heights[i], 1
        while blocks and centre - blocks[-1][0] < apart * (count + blocks[-1][1]) / 2:
            below, members = blocks.pop()
            centre = (centre * count + below * members) / (count + members)
            count += members
        blocks.append((centre, count))
    spread = [c + apart * (k - (n - 1) / 2) for c, n in blocks for k in range(n)]
    return [spread[order.index(i)] for i in range(len(heights))]


def _panel(images: Tensor, levels: int, scale: int, ink: str | None) -> np.ndarray:
    """Codes (rows, columns, C, H, W) -> RGB, a pixel `scale` wide, a thin white gap between images.

    With `ink`, grey codes shade from paper to ink and images get a pixel of paper around them.
    """
    rows, columns, _, height, width = images.shape
    rim = 0 if ink is None else 1
    pixels = torch.nn.functional.pad(images, (rim,) * 4).flatten(0, 1)
    height, width, gap = height + 2 * rim, width + 2 * rim, max(2, scale // 2)
    grid = to_grid(pixels, levels=levels, columns=columns, margin=0)
    if ink is not None and grid.ndim == 2:
        ends = np.array([_rgb(_PAPER), _rgb(ink)])
        shade = grid[..., None] / 255
        grid = (ends[0] * (1 - shade) + ends[1] * shade).round().astype(np.uint8)
    grid = grid if grid.ndim == 3 else np.stack([grid] * 3, -1)
    grid = grid.repeat(scale, 0).repeat(scale, 1)
    for axis, count, edge in ((0, rows, height * scale), (1, columns, width * scale)):
        at = np.repeat(np.arange(1, count) * edge, gap)
        grid = np.insert(grid, at, 255, axis)
    return grid


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _figure(size: tuple[int, int]):
    """A white matplotlib figure of `size` device pixels, apart from pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"fastgen.figures: matplotlib is missing ({error}); pip install 'fastgen[train]'"
        ) from error
    return Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI, facecolor="white")


def _save(figure, path: str | os.PathLike) -> None:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    write_atomically(Path(path), png.getvalue())


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
    shades = np.array([_rgb(c) for c in (_PAPER, *_FIELD)], np.uint8)
    side = max(4, min(48, 560 // max(height, width)))
    gap, left, top, bottom = 48, 60, 150, 150
    size = (max(left * 2 + channels * (width * side + gap) - gap, 1100), 0)
    size = (size[0], top + height * side + bottom)
    figure = _figure(size)

    def text(x: float, y: float, words: str, **style) -> None:
        figure.text(x / size[0], 1 - y / size[1], words, **style)

    for channel in range(channels):
        pixels = shades[kinds[channel]].repeat(side, 0).repeat(side, 1)
        pixels[::side] = pixels[:, ::side] = 255
        row, column = output[0] * side, output[1] * side
        edge = max(2, side // 8)
        frame = np.ones((side, side), bool)
        frame[edge:-edge, edge:-edge] = False
        pixels[row : row + side, column : column + side][frame] = _rgb(_INK)
        x = left + channel * (width * side + gap)
        figure.figimage(pixels, x, bottom, origin="upper")
        if channels > 1:
            text(x, top - 14, f"channel {channel}", fontsize=9, color=_MUTED, va="bottom")
    text(left, 52, title, fontsize=13, color=_INK, va="center", fontweight="bold")
    text(left, 92, caption, fontsize=9, color=_MUTED, va="center")
    x, y = left, top + height * side + 70
    for kind, name in enumerate(names):
        if kind in kinds or kind < 2:
            swatch = np.full((22, 22, 3), shades[kind], np.uint8)
            figure.figimage(swatch, x, size[1] - y - 11, origin="upper")
            text(x + 34, y, name, fontsize=9, color=_MUTED, va="center")
            x += 60 + 13 * len(name)
    _save(figure, path)
