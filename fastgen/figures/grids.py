"""Images as one picture, and PNG files without any library."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgen.checkpoint import write_atomically


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


def interleaved(rows: Sequence[Tensor], columns: int) -> Tensor:
    """Lists of images (N, C, H, W) as one for a grid of `columns`: rows of the first, each above
    its row of the second, and so on."""
    parts = zip(*(images.split(columns) for images in rows), strict=True)
    return torch.cat([row for part in parts for row in part])


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
