"""vq_quantize in plain PyTorch."""

import torch
from torch import Tensor

from fastgen.reference.vq_nearest import vq_nearest
from fastgen.reference.vq_rows import (
    compute_dtype,
    indices_from_rows,
    rows_of,
    rows_of_indices,
    values_from_rows,
)

_EPS = 1e-6  # least norm that the rotation divides by


def vq_quantize(
    x: Tensor, codebook: Tensor, dim: int, mask: Tensor | None, filter: bool | None = None
):
    heads = codebook.shape[0] if codebook.dim() == 3 else None
    dtype = compute_dtype(x, codebook)
    codes = codebook.to(dtype) if heads is not None else codebook.to(dtype).unsqueeze(0)
    rows = rows_of(x, dim, heads).to(dtype)
    index = rows_of_indices(vq_nearest(x, codebook, dim, False, filter), dim, heads)
    live = torch.ones_like(index, dtype=torch.bool) if mask is None else mask.reshape(1, -1)
    live = live.expand_as(index)
    # a row that is not finite has no nearest code: NaN comes out, and it counts nowhere
    finite = rows.isfinite().all(2)
    # nor has any row where no code is finite
    finite = finite & codes.isfinite().all(2).any(1, keepdim=True)

    quantized = codes.gather(1, index.unsqueeze(2).expand_as(rows))
    quantized = torch.where(finite.unsqueeze(2), quantized, torch.nan)
    commitment = (rows - quantized).square().mean(2)
    quantized = torch.where(live.unsqueeze(2), quantized, 0)
    commitment = torch.where(live, commitment, 0)

    counted = live & ~quantized[..., 0].isnan()
    counts = torch.zeros(codes.shape[:2], dtype=torch.int64, device=x.device)
    sums = torch.zeros(codes.shape, dtype=torch.float64, device=x.device)
    for head, selected in enumerate(counted):
        chosen = index[head][selected]
        counts[head] = torch.bincount(chosen, minlength=codes.shape[1])
        sums[head].index_add_(0, chosen, rows[head][selected].double())

    return (
        values_from_rows(quantized, x, dim, heads).to(x.dtype),
        indices_from_rows(torch.where(live, index, -1), x, dim, heads),
        indices_from_rows(commitment, x, dim, heads).flatten(),
        counts.reshape(codebook.shape[:-1]),
        sums.reshape(codebook.shape),
    )


def vq_quantize_backward(
    grad_quantized: Tensor | None,
    grad_commitment: Tensor | None,
    x: Tensor,
    indices: Tensor,
    codebook: Tensor,
    dim: int,
    rotation: bool,
) -> Tensor:
    """The gradient of x. Rows with index -1 were masked: theirs is 0."""
    heads = codebook.shape[0] if codebook.dim() == 3 else None
    dtype = compute_dtype(x, codebook)
    codes = codebook.to(dtype) if heads is not None else codebook.to(dtype).unsqueeze(0)
    rows = rows_of(x, dim, heads).to(dtype)
    index = rows_of_indices(indices, dim, heads).unsqueeze(2)
    quantized = codes.gather(1, index.clamp(min=0).expand_as(rows))
    grad = torch.zeros_like(rows)
    if grad_quantized is not None:
        grad = rows_of(grad_quantized, dim, heads).to(dtype)
        grad = _rotated_back(grad, rows, quantized) if rotation else grad
    if grad_commitment is not None:
        shape = indices.shape
        weight = rows_of_indices(grad_commitment.reshape(shape), dim, heads).unsqueeze(2)
        grad = grad + (2 / x.shape[dim]) * weight.to(dtype) * (rows - quantized)
    return values_from_rows(torch.where(index >= 0, grad, 0), x, dim, heads).to(x.dtype)


def _rotated_back(grad: Tensor, x: Tensor, q: Tensor) -> Tensor:
    """The transpose of the rotation and scaling that takes x to q, both held constant:
    s (g - 2 (g w) w + 2 (g v) u) with u = x / |x|, v = q / |q|, w = (u + v) / |u + v|,
    s = |q| / |x|."""

    def norm(t):
        return t.norm(dim=2, keepdim=True)

    def dot(a, b):
        return (a * b).sum(2, keepdim=True)

    u, v = x / norm(x).clamp(min=_EPS), q / norm(q).clamp(min=_EPS)
    w = (u + v) / norm(u + v).clamp(min=_EPS)
    scale = norm(q) / norm(x).clamp(min=_EPS)
    return scale * (grad - 2 * dot(grad, w) * w + 2 * dot(grad, v) * u)
