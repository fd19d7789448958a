"""Losses on codes that are not part of the fused step. Both hold a matrix of scores."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.nn.codebook_draw import draw_key, draw_words, shuffled
from fastgen.reference.vq_rows import compute_dtype, rows_of, rows_of_indices

_LEAST = 1e-8  # of a squared distance: its root has no slope at 0


def code_cross_entropy(
    x: Tensor, codebook: Tensor, targets: Tensor, dim: int, *, cosine: bool
) -> Tensor:
    """The mean of -log softmax over the codes of minus the distance (or of the dot product, for
    unit vectors) at the target code. Holds rows x K scores, unlike `vq_quantize`.

    Args:
        x: rows, as in `vq_quantize`.
        codebook: (K, D), or (G, K, D) for G heads; gets a gradient if it requires one.
        targets: int64, x's shape without `dim`; -1 is left out.

    Returns:
        A scalar; 0 if every target is -1.
    """
    heads = len(codebook) if codebook.dim() == 3 else None
    dtype = compute_dtype(x, codebook)
    codes = codebook.to(dtype).reshape(heads or 1, *codebook.shape[-2:])
    rows = rows_of(x, dim, heads).to(dtype)
    if not cosine:
        center = codes.detach().mean(1, keepdim=True)
        rows, codes = rows - center, codes - center
    scores = rows @ codes.mT
    if not cosine:
        squares = rows.square().sum(2, keepdim=True) + codes.square().sum(2).unsqueeze(1)
        scores = -(squares - 2 * scores).clamp(min=_LEAST).sqrt()
    targets = rows_of_indices(targets, dim, heads).flatten()
    total = F.cross_entropy(scores.flatten(0, 1), targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)


def orthogonal_loss(codebook: Tensor, counts: Tensor | None, max_codes: int | None) -> Tensor:
    """The mean over pairs of codes of their squared cosine, less the 1 / n of each with itself; 0
    without any code.

    Args:
        codebook: (G, K, D). Holds G K^2 cosines.
        counts: (G, K): only codes with a count take part; None for all.
        max_codes: with more codes than that, a random choice of them takes part.

    Source: Shin et al., Translation-equivariant Image Quantizer, 2021, eq. 2.
    """
    heads, codes = codebook.shape[:2]
    active = codebook.new_ones(heads, codes, dtype=torch.bool) if counts is None else counts > 0
    if max_codes is not None and codes > max_codes:
        places = torch.arange(codes, device=codebook.device).expand(heads, codes)
        size = torch.full_like(places[:, 0], codes)
        order = shuffled(places, size, draw_words(draw_key(codebook.device), heads, 1)[0])
        # the first max_codes active codes of a random order
        rank = torch.zeros_like(order).scatter(1, order, active.gather(1, order).cumsum(1))
        active = active & (rank <= max_codes)
    unit = F.normalize(codebook, dim=2, eps=1e-6) * active.unsqueeze(2)
    n = active.sum(1).clamp(min=1)
    alone = active.any(1) / n  # the share of a code with itself; none without codes
    return ((unit @ unit.mT).square().sum((1, 2)) / n**2 - alone).mean()
