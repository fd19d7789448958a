"""Lines over a training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from fastgen.figures.page import COLOURS, MUTED, Page


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
    page = Page(1560, 900)
    axes = page.axes(132.6, 144, 1154.4, 787.5)
    axes.margins(x=0.0, y=0.06)
    names = [(level, f"{name}  {level:.3f}", MUTED) for name, level in (baselines or {}).items()]
    for level, _, _ in names:
        axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    style = {"linewidth": 2, "solid_capstyle": "round", "clip_on": False}
    for i, (name, (x, y)) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(x, y, color=colour, zorder=3 - i / len(curves), **style)  # the first on top
        names.append((y[-1], f"{name}  {y[-1]:.3f}", colour))
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    heights = _spread([(level - low) / (high - low) for level, _, _ in names], apart=0.062)
    for height, (_, words, colour) in zip(heights, names, strict=True):
        axes.text(
            1.02, height, words, transform=axes.transAxes, va="center", fontsize=9.5, color=colour
        )
    axes.set_xlabel(xlabel, color=MUTED, fontsize=9.5, labelpad=8)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=9.5, labelpad=8)
    page.heading(132.6, title, y=67.5)
    page.save(path)


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
