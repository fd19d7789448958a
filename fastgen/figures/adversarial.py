"""What adversarial training is about: a generator's gradients, and a critic's weights."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from fastgen.figures.page import COLOURS, INK, MUTED, Page

LOSSES = {  # of the generator, as drawn by default
    "minimax": "minimax: log(1 \N{MINUS SIGN} D)",
    "non_saturating": "non-saturating: \N{MINUS SIGN}log D",
}
_STEPS = 401
_BINS = 80


def generator_gradient(loss: str, d: Tensor) -> Tensor:
    """|d loss / d logit| of the generator's `loss` of fastgen.models.GAN, where the discriminator
    gives a sample the probability d in (0, 1) of being real: what an image hears back through the
    discriminator's logit. float64, d's shape."""
    from fastgen.models.gan_losses import LOSSES as losses

    _, generator_loss = losses[loss]
    logits = torch.logit(d.double()).requires_grad_()
    each = [generator_loss(logit[None]) for logit in logits.flatten()]
    (gradient,) = torch.autograd.grad(torch.stack(each).sum(), logits)
    return gradient.abs()


def generator_gradients(
    path: str | os.PathLike,
    *,
    losses: Mapping[str, str] = LOSSES,
    title: str = "",
    caption: str = "",
) -> None:
    """How strongly each of the generator's losses pulls at a sample, against D(G(z)).

    losses: name in fastgen.models.GAN -> what its line is called.
    """
    page = Page(1480, 900 + 40 * bool(caption))
    axes = page.axes(132, 130, 1000, 760)
    d = torch.linspace(0, 1, _STEPS, dtype=torch.float64)[1:-1]
    for (loss, name), colour in zip(losses.items(), COLOURS, strict=False):
        gradient = generator_gradient(loss, d)
        axes.plot(d.numpy(), gradient.numpy(), color=colour, linewidth=2, clip_on=False)
        axes.text(1.02, float(gradient[-1]), name, color=colour, fontsize=9.5, va="center")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("D(G(z)): how real the sample looks", color=MUTED, fontsize=9.5, labelpad=8)
    axes.set_ylabel("|gradient| at the logit", color=MUTED, fontsize=9.5, labelpad=8)
    page.heading(132, title)
    page.label(132, page.height - 34, caption)
    page.save(path)


def weight_histograms(
    path: str | os.PathLike,
    weights: Mapping[str, Tensor],
    *,
    bounds: Mapping[str, float] | None = None,
    title: str = "",
    caption: str = "",
) -> None:
    """How the weights of networks are distributed, one histogram beside the other.

    weights: name -> all of a network's weights. bounds: name -> c of those held in [-c, c]; how
        many are at the bound is said.
    """
    bounds = bounds or {}
    wide, gap, left = 620, 150, 172
    page = Page(left + len(weights) * (wide + gap) - gap + 60, 760 + 40 * bool(caption))
    for i, (name, values) in enumerate(weights.items()):
        values = values.detach().cpu().flatten()
        x = left + i * (wide + gap)
        axes = page.axes(x, 180, x + wide, 620)
        bound = bounds.get(name)
        reach = 1.06 * (bound or float(values.abs().max()) or 1.0)
        counts = torch.histc(values.double(), _BINS, -reach, reach) / max(len(values), 1)
        edges = torch.linspace(-reach, reach, _BINS + 1, dtype=torch.float64)
        axes.stairs(counts.numpy(), edges.numpy(), fill=True, color=COLOURS[i % len(COLOURS)])
        axes.set_xlim(-reach, reach)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("weight", color=MUTED, fontsize=9.5, labelpad=8)
        if bound is not None:
            share = (values.abs() >= torch.tensor(bound, dtype=values.dtype)).double().mean()
            words = f"{share:.0%} at \N{PLUS-MINUS SIGN}{bound:g}"
            axes.text(
                0.5, 0.9, words, transform=axes.transAxes, ha="center", color=INK, fontsize=10
            )
        page.label(x, 140, name, fontsize=10.5)
        if i == 0:
            axes.set_ylabel("share of the weights", color=MUTED, fontsize=9.5, labelpad=8)
    page.heading(left, title)
    page.label(left, page.height - 34, caption)
    page.save(path)
