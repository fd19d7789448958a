"""Real images beside sampled ones."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from fastgen.figures.page import INK, SAMPLE_INK, Page, panel


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
        panel(images, levels, scale, ink if as_ink else None)
        for images, ink in ((real, INK), (samples, SAMPLE_INK))
    ]
    tall = panels[0].shape[0]
    size = (left + sum(p.shape[1] for p in panels) + gap + right, top + tall + bottom)
    page = Page(*size)
    x = left
    for pixels, name in zip(panels, ("real", "sampled"), strict=True):
        page.picture(x, top, pixels)
        page.label(x, top - 18, name, fontsize=10.5, va="bottom")
        x += pixels.shape[1] + gap
    for row, name in enumerate(class_names):
        y = top + tall * (row + 0.5) / len(class_names)
        page.label(left - 24, y, name, ha="right", va="center_baseline", fontsize=11)
    page.heading(left, title)
    page.label(left, size[1] - 40, caption)
    page.save(path)
