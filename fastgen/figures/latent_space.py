"""Latent codes as numbers: where classes lie, and what each dimension says."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen.figures.page import COLOURS, INK, MUTED, RULE, Page

# ten that a line of text can be told apart in, on white
CLASS_COLOURS = (*COLOURS, "#c9a227", "#6b5bd2", "#1f9bb3", "#d03b3b", "#7a5238", "#6f7f1f")
ACTIVE_NATS = 0.01


def latent_scatter(
    path: str | os.PathLike,
    z: Tensor,
    labels: Tensor | None = None,
    *,
    class_names: Sequence[str] | None = None,
    title: str = "",
    caption: str = "",
) -> None:
    """Latent codes as points, one colour a class, each class named at its median.

    z: (N, D); beyond two dimensions their first two principal axes. labels: int64 (N,).
    class_names: default the numbers.
    """
    points, names = principal_plane(z)
    page = Page(1240, 1100 + 60 * bool(caption))
    axes = page.axes(132, 110, 1180, 1000, grid="")
    kinds = [None] if labels is None else labels.unique().tolist()
    for kind in kinds:
        mine = points if kind is None else points[labels == kind]
        colour = CLASS_COLOURS[0 if kind is None else kind % len(CLASS_COLOURS)]
        axes.plot(*mine.T.numpy(), "o", color=colour, markersize=3, alpha=0.55, markeredgewidth=0)
    for kind in () if labels is None else kinds:
        x, y = points[labels == kind].median(0).values.tolist()
        name = str(kind) if class_names is None else class_names[kind]
        colour = CLASS_COLOURS[kind % len(CLASS_COLOURS)]
        axes.text(x, y, name, color=colour, fontsize=12, fontweight="bold", ha="center",
                  va="center", path_effects=_halo())  # fmt: skip
    axes.set_xlabel(names[0], color=MUTED, fontsize=9.5, labelpad=8)
    axes.set_ylabel(names[1], color=MUTED, fontsize=9.5, labelpad=8)
    page.heading(132, title)
    page.label(132, page.height - 34, caption)
    page.save(path)


def principal_plane(z: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """(N, D) -> float64 (N, 2) and what the two axes are: the latents themselves, or their first
    two principal axes. A single latent lies on the line y = 0."""
    if z.dim() != 2 or not z.numel():
        raise ValueError(
            f"fastgen.figures.latent_scatter: z must have shape (N, D), got {tuple(z.shape)}; "
            "flatten the latents of an image, and give at least one"
        )
    z = z.detach().cpu().double()
    if z.shape[1] == 1:
        return torch.cat([z, torch.zeros_like(z)], 1), ("latent", "")
    if z.shape[1] == 2:
        return z, ("first latent", "second latent")
    centred = z - z.mean(0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * torch.sign(axes[:2].sum(1, keepdim=True) + 1e-30)  # a sign for every run
    shares = values.square() / values.square().sum().clamp_min(1e-300)
    shares = torch.cat([shares, shares.new_zeros(2)])
    words = ("first", "second")
    names = [f"{w} principal axis ({s:.0%})" for w, s in zip(words, shares, strict=False)]
    points = centred @ axes.T
    missing = 2 - points.shape[1]  # fewer points than axes
    return torch.nn.functional.pad(points, (0, missing)), (names[0], names[1])


def kl_per_dimension(
    path: str | os.PathLike,
    kl: Tensor,
    *,
    active: Tensor | None = None,
    title: str = "",
    caption: str = "",
) -> None:
    """How many nats each latent dimension says about an image, the most telling first.

    kl: (D,), means over images. active: bool (D,), default where kl > 0.01; the others are grey.
    """
    kl = kl.detach().cpu().double().flatten()
    active = kl > ACTIVE_NATS if active is None else active.detach().cpu().flatten()
    order = kl.argsort(descending=True)
    count = len(kl)
    page = Page(max(900, min(1560, 260 + 44 * count)), 720 + 60 * bool(caption))
    axes = page.axes(132, 130, page.width - 60, 600)
    colours = [COLOURS[0] if active[d] else RULE for d in order]
    axes.bar(range(count), kl[order].numpy(), color=colours, width=0.72)
    every = -(-count // 32)
    axes.set_xticks(range(0, count, every), [str(int(d)) for d in order[::every]])
    axes.margins(x=0.02)
    axes.set_ylim(bottom=min(0.0, float(kl.min())))
    axes.set_xlabel("latent dimension", color=MUTED, fontsize=9.5, labelpad=8)
    axes.set_ylabel("KL, nats", color=MUTED, fontsize=9.5, labelpad=8)
    words = f"{int(active.sum())} of {count} active, {float(kl.sum()):.2f} nats in all"
    axes.text(0.985, 0.94, words, transform=axes.transAxes, ha="right", color=INK, fontsize=10)
    page.heading(132, title)
    page.label(132, page.height - 34, caption)
    page.save(path)


def _halo():
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3.5, foreground="white")]
