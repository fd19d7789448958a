"""What latent variables do to images: reconstructions, interpolations, traversals, manifolds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fastgen.figures.page import INK, SAMPLE_INK, Page, panel, text_width

_LEFT, _RIGHT, _TOP, _TITLE, _CAPTION = 76, 52, 64, 92, 44
_GAP = 40  # between panels
_WIDEST = 1600  # device pixels that a row of images takes, where a pixel is not down to one


def reconstructions(
    path: str | os.PathLike,
    images: Mapping[str, Tensor],
    *,
    levels: int,
    columns: int | None = None,
    title: str = "",
    caption: str = "",
    as_ink: bool = False,
) -> None:
    """Rows of images above what a model makes of them, each row named.

    images: name -> codes (N, C, H, W) in 0..levels-1, C 1 or 3, what comes first above: the
        original, perhaps a noisy copy, the reconstruction. The last has the ink of what is made.
    columns: images a row; default N, at most 12. as_ink: grey level 0 is paper, the highest ink.
    """
    first = next(iter(images.values()))
    _check("reconstructions", "images", first, 4)
    for name, shown in images.items():
        if shown.shape != first.shape:
            _refuse("reconstructions", f"images[{name!r}]", tuple(first.shape), shown)
    count = len(first)
    columns = columns or min(count, 12)
    inks = [INK] * (len(images) - 1) + [SAMPLE_INK] if len(images) > 1 else [INK]
    blocks = []
    for start in range(0, count, columns):
        for (name, shown), ink in zip(images.items(), inks, strict=True):
            blocks.append((name, shown[start : start + columns], ink))
    scale = _scale(first.shape, columns)
    rows = [_panel(shown[None], levels, scale, as_ink and ink) for _, shown, ink in blocks]
    gap = max(2, scale // 2)
    left = _left(images)
    between = [gap if i % len(images) else 6 * gap for i in range(len(rows))]
    tall = sum(row.shape[0] for row in rows) + sum(between[1:])
    page, y = _page(left, rows[0].shape[1], tall, title, caption, header=False)
    for (name, _, _), row, space in zip(blocks, rows, [0, *between[1:]], strict=True):
        y += space
        page.picture(left, y, row)
        page.label(left - 24, y + row.shape[0] / 2, name, ha="right", va="center_baseline")
        y += row.shape[0]
    page.save(path)


def interpolation_strips(
    path: str | os.PathLike,
    images: Tensor,
    *,
    levels: int,
    first: Tensor | None = None,
    last: Tensor | None = None,
    title: str = "",
    caption: str = "",
    as_ink: bool = False,
) -> None:
    """Decoded points between two latent codes, a pair a row.

    images: codes (pairs, steps, C, H, W). first, last: the images themselves, (pairs, C, H, W),
        drawn on either side.
    """
    _check("interpolation_strips", "images", images, 5)
    columns = images.shape[1] + 2 * (first is not None)
    scale = _scale(images.shape[1:], columns)
    words = "" if first is None and last is None else "decoded between the two"
    strip = [(words, images, SAMPLE_INK)]
    if first is not None:
        strip.insert(0, ("image", first[:, None], INK))
    if last is not None:
        strip.append(("image", last[:, None], INK))
    panels = [(name, _panel(shown, levels, scale, as_ink and ink)) for name, shown, ink in strip]
    _beside(path, panels, title, caption)


def traversal_grid(
    path: str | os.PathLike,
    images: Tensor,
    *,
    levels: int,
    values: Sequence[float] | Tensor | None = None,
    dim_names: Sequence[str] | None = None,
    title: str = "",
    caption: str = "",
    as_ink: bool = False,
) -> None:
    """One latent dimension a row, moved while the others stay.

    images: codes (dims, steps, C, H, W). values: of the dimension in each column, (steps,).
    dim_names: a label for each row; default z0, z1, ...
    """
    _check("traversal_grid", "images", images, 5)
    dims, steps = images.shape[:2]
    names = [f"z{d}" for d in range(dims)] if dim_names is None else list(dim_names)
    scale = _scale(images.shape[1:], steps)
    pixels = _panel(images, levels, scale, as_ink and SAMPLE_INK)
    left = _left(names)
    page, top = _page(left, pixels.shape[1], pixels.shape[0], title, caption, values is not None)
    page.picture(left, top, pixels)
    tall, wide = pixels.shape[0] / dims, pixels.shape[1] / steps
    for row, name in enumerate(names):
        page.label(left - 24, top + tall * (row + 0.5), name, ha="right", va="center_baseline")
    # a number is about 70 pixels wide
    every = max(1, -(-70 // max(1, int(wide))))
    for column, value in enumerate(() if values is None else values):
        if (column - steps // 2) % every == 0:
            x = left + wide * (column + 0.5)
            words = f"{float(value):+.1f}"
            words = "0" if float(words) == 0 else words
            page.label(x, top - 18, words, ha="center", va="bottom")
    page.save(path)


def latent_manifold(
    path: str | os.PathLike,
    images: Tensor,
    *,
    levels: int,
    title: str = "",
    caption: str = "",
    as_ink: bool = False,
) -> None:
    """What a decoder makes of a grid in two latent dimensions, such as `manifold_points` gives.

    images: codes (rows, columns, C, H, W); the first dimension grows to the right, the second
        upwards.
    """
    _check("latent_manifold", "images", images, 5)
    scale = _scale(images.shape[1:], images.shape[1], most=48)
    pixels = _panel(images, levels, scale, as_ink and SAMPLE_INK)
    tall, wide = pixels.shape[:2]
    page, top = _page(_LEFT, wide, tall + 40, title, caption, header=False)
    page.picture(_LEFT, top, pixels)
    page.label(_LEFT + wide / 2, top + tall + 28, "first latent \N{RIGHTWARDS ARROW}", ha="center")
    words = "second latent \N{RIGHTWARDS ARROW}"
    page.label(_LEFT - 28, top + tall / 2, words, ha="center", rotation=90)
    page.save(path)


def manifold_points(steps: int) -> Tensor:
    """Latents (steps * steps, 2) on a grid that a standard normal fills evenly: its quantiles at
    (i + 1/2) / steps. Row by row; within a row the first latent grows, from row to row the second
    falls, so that `latent_manifold` has it upwards."""
    at = torch.special.ndtri((torch.arange(steps, dtype=torch.float64) + 0.5) / steps).float()
    second, first = torch.meshgrid(at.flip(0), at, indexing="ij")
    return torch.stack([first, second], -1).flatten(0, 1)


def latent_arithmetic(
    path: str | os.PathLike,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    result: Tensor,
    *,
    levels: int,
    names: Sequence[str] = ("a", "b", "c", ""),
    title: str = "",
    caption: str = "",
    as_ink: bool = False,
) -> None:
    """a - b + c = result, an equation a row; each codes (N, C, H, W)."""
    for name, shown in (("a", a), ("b", b), ("c", c), ("result", result)):
        _check("latent_arithmetic", name, shown, 4)
    scale = _scale(a.shape, 4)
    panels = []
    for name, shown in zip(names, (a, b, c, result), strict=True):
        ink = as_ink and (SAMPLE_INK if shown is result else INK)
        panels.append((name, _panel(shown[:, None], levels, scale, ink)))
    _beside(path, panels, title, caption, len(a), signs=("\N{MINUS SIGN}", "+", "="))


def _beside(path, panels: list[tuple[str, np.ndarray]], title, caption, rows=1, signs=()):
    """Named panels of one height side by side, perhaps with signs between their rows."""
    gap, header = _GAP + 24 * bool(signs), any(name for name, _ in panels)
    wide = sum(pixels.shape[1] for _, pixels in panels) + gap * (len(panels) - 1)
    tall = panels[0][1].shape[0]
    page, top = _page(_RIGHT, wide, tall, title, caption, header=header)
    x, row = _RIGHT, tall / rows
    for i, (name, pixels) in enumerate(panels):
        page.picture(x, top, pixels)
        page.label(x + pixels.shape[1] / 2, top - 18, name, ha="center", va="bottom")
        x += pixels.shape[1] + gap
        for k in range(rows if i < len(signs) else 0):
            page.label(x - gap / 2, top + row * (k + 0.5), signs[i], ha="center", fontsize=13)
    page.save(path)


def _page(left, wide, tall, title, caption, header: bool) -> tuple[Page, int]:
    """A page for pictures of this size, with its title and caption, and where their top is."""
    # a small grid must not cut its own title
    longest = max(text_width(title, size=14, weight="bold"), text_width(caption, size=9))
    top = (_TITLE if title else 24) + 44 * header
    bottom = 92 if caption else 40
    page = Page(int(left + max(wide, longest) + _RIGHT), top + tall + bottom)
    page.heading(left, title, y=46)
    page.label(left, page.height - 40, caption)
    return page, top


def _left(names) -> int:
    return max(_LEFT, 40 + 15 * max(len(name) for name in names))


def _scale(shape, columns: int, most: int = 64) -> int:
    """Edge of a pixel: an image about `most` wide, a row not wider than the page, whole pixels
    alone."""
    wide = shape[-1]
    return max(1, min(round(most / wide), _WIDEST // (columns * wide)))


def _panel(images: Tensor, levels: int, scale: int, ink) -> np.ndarray:
    return panel(images, levels, scale, ink or None)


def _check(figure: str, argument: str, images: Tensor, dims: int) -> None:
    expected = "(N, C, H, W)" if dims == 4 else "(rows, columns, C, H, W)"
    if not isinstance(images, Tensor) or images.dim() != dims or not images.numel():
        _refuse(figure, argument, expected, images)


def _refuse(figure: str, argument: str, expected, got) -> None:
    got = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
    raise ValueError(
        f"fastgen.figures.{figure}: {argument} must have shape {expected}, got {got}; "
        "give codes, at least one image"
    )
