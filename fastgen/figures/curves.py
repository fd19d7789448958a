"""Lines over a training."""

from __future__ import annotations

import math
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
    _name_ends(axes, names, apart=0.062)
    axes.set_xlabel(xlabel, color=MUTED, fontsize=9.5, labelpad=8)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=9.5, labelpad=8)
    page.heading(132.6, title, y=67.5)
    page.save(path)


def curve_panels(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    xlabel: str = "step",
    title: str = "",
    caption: str = "",
) -> None:
    """Several quantities over one training, a panel each below the other.

    panels: what a panel's y axis says -> name -> (x, y), each line named at its end; nan is left
        out.
    """
    tall, gap, left, right, top = 300, 60, 172, 1154.4, 130
    page = Page(1560, top + len(panels) * (tall + gap) + 60 + 40 * bool(caption))
    last = max(x[-1] for curves in panels.values() for x, _ in curves.values())
    for i, (ylabel, curves) in enumerate(panels.items()):
        y = top + i * (tall + gap)
        axes = page.axes(left, y, right, y + tall)
        axes.margins(x=0.0, y=0.1)
        ends = []
        for k, (name, (xs, ys)) in enumerate(curves.items()):
            known = [(a, b) for a, b in zip(xs, ys, strict=True) if math.isfinite(b)]
            colour = COLOURS[k % len(COLOURS)]
            if known:
                axes.plot(*zip(*known, strict=True), color=colour, linewidth=1.6, clip_on=False)
                ends.append((known[-1][1], f"{name}  {known[-1][1]:.3g}", colour))
        axes.set_xlim(0, last)
        _name_ends(axes, ends, apart=0.19)
        axes.set_ylabel(ylabel, color=MUTED, fontsize=9.5, labelpad=8)
    axes.set_xlabel(xlabel, color=MUTED, fontsize=9.5, labelpad=8)
    page.heading(left, title, y=67.5)
    page.label(left, page.height - 34, caption)
    page.save(path)


def _name_ends(axes, ends: Sequence[tuple[float, str, str]], apart: float) -> None:
    """Writes each (level, words, colour) beside its level, or as near as keeps them apart."""
    low, high = axes.get_ylim()
    heights = _spread([(level - low) / (high - low) for level, _, _ in ends], apart)
    for height, (_, words, colour) in zip(heights, ends, strict=True):
        axes.text(
            1.02, height, words, transform=axes.transAxes, va="center", fontsize=9.5, color=colour
        )


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
