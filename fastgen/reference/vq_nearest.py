"""vq_nearest in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.reference.vq_rows import compute_dtype, indices_from_rows, rows_of

_SCORES = 1 << 22  # held at a time, of rows x codes


def vq_nearest(
    x: Tensor, codebook: Tensor, dim: int, cosine: bool, filter: bool | None = None
) -> Tensor:
    """`filter` chooses how a kernel searches, never what it finds."""
    heads = codebook.shape[0] if codebook.dim() == 3 else None
    dtype = compute_dtype(x, codebook)
    rows, codes = rows_of(x, dim, heads).to(dtype), codebook.to(dtype)
    codes = codes if heads is not None else codes.unsqueeze(0)
    nearest = torch.stack([_nearest(r, c, cosine) for r, c in zip(rows, codes, strict=True)])
    return indices_from_rows(nearest, x, dim, heads)


def _nearest(rows: Tensor, codes: Tensor, cosine: bool) -> Tensor:
    """(R, D) and (K, D) -> int64 (R,)."""
    valid = codes.isfinite().all(1)
    codes = torch.where(valid[:, None], codes, 0)
    if cosine:
        rows, codes = F.normalize(rows, dim=1), F.normalize(codes, dim=1)
        bias = torch.zeros_like(codes[:, 0])
    else:
        # distances do not change with the origin, but their rounding does
        center = codes.sum(0) / valid.sum().clamp(min=1)
        rows, codes = rows - center, codes - center
        # scale free, too: squares of tiny or huge values would leave the range of the dtype
        scale = torch.where(valid[:, None], codes, 0).abs().amax()
        scale = torch.where(scale > 0, scale, 1)
        rows, codes = rows / scale, codes / scale
        bias = -0.5 * codes.square().sum(1)
    bias = torch.where(valid, bias, -torch.inf)
    # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2): the largest score is the nearest code
    step = max(1, _SCORES // max(1, len(codes)))
    parts = [torch.addmm(bias, part, codes.t()).argmax(1) for part in rows.split(step)]
    nearest = torch.cat(parts) if parts else rows.new_empty(0, dtype=torch.int64)
    return torch.where(rows.isfinite().all(1), nearest, 0)
