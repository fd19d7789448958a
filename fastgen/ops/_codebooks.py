"""What the vector-quantisation ops check alike: rows x of D values against codebooks."""

import torch
from torch import Tensor

from fastgen.ops import _checks


def checked_rows(op: str, x: Tensor, codebook: Tensor, dim: int) -> int:
    """Checks x and the codebook against each other; returns `dim` counted from the front."""
    _checks.float_tensor(op, "x", x)
    _checks.float_tensor(op, "codebook", codebook)
    if codebook.dim() not in (2, 3) or codebook.numel() == 0:
        raise ValueError(
            f"fastgen.{op}: codebook must be (K, D), or (G, K, D) for G heads, with at least one "
            f"code, got shape {tuple(codebook.shape)}"
        )
    if codebook.device != x.device:
        raise ValueError(
            f"fastgen.{op}: codebook must be on x's device {x.device}, got {codebook.device}; "
            f"move it with codebook.to({str(x.device)!r})"
        )
    if x.dim() == 0:
        raise ValueError(
            f"fastgen.{op}: x must have an axis of {codebook.shape[-1]} values, got a scalar; "
            "pass rows (N, D), or one vector (D,)"
        )
    heads = codebook.dim() == 3
    if isinstance(dim, bool) or not isinstance(dim, int) or not -x.dim() <= dim < x.dim():
        raise ValueError(
            f"fastgen.{op}: dim must be an axis of x, -{x.dim()} .. {x.dim() - 1}, got {dim!r}"
        )
    axis = dim % x.dim()
    if heads and axis == 0:
        raise ValueError(
            f"fastgen.{op}: dim must follow the axis of the heads, got dim={dim} of x "
            f"{tuple(x.shape)}; for G heads x is (..., G, D)"
        )
    expected = tuple(codebook.shape[::2]) if heads else tuple(codebook.shape[1:])
    got = tuple(x.shape[axis - 1 : axis + 1]) if heads else (x.shape[axis],)
    if got != expected:
        what = "axes (dim - 1, dim)" if heads else f"axis {dim}"
        raise ValueError(
            f"fastgen.{op}: x must have {what} of size {expected} for a codebook "
            f"{tuple(codebook.shape)}, got {got} in shape {tuple(x.shape)}; choose dim, or build "
            "the codebook for that many values"
        )
    return axis


def index_shape(x: Tensor, dim: int) -> list[int]:
    shape = list(x.shape)
    del shape[dim]
    return shape


def mask_shape(x: Tensor, dim: int, heads: bool) -> list[int]:
    """One entry for each row: without the axes of values and heads."""
    shape = index_shape(x, dim)
    if heads:
        del shape[dim - 1]
    return shape


def example_rows(device):
    """Small x (B, D, H, W) and codebook (K, D) for self-tests; no two codes are close."""
    x = torch.linspace(-3, 3, 2 * 4 * 3 * 5, device=device).reshape(2, 4, 3, 5)
    codebook = torch.linspace(-2, 2, 7 * 4, device=device).reshape(4, 7).t().contiguous()
    return x, codebook
