"""How the vector-quantisation ops see a tensor: rows of D values, one list of rows for each head.

`dim` is the axis of the D values, counted from the front; with heads the axis before it counts
them. The other axes, in their order, enumerate the rows.
"""

import torch
from torch import Tensor


def compute_dtype(x: Tensor, codebook: Tensor) -> torch.dtype:
    """float64 if either is float64, else float32."""
    return torch.promote_types(torch.float32, torch.promote_types(x.dtype, codebook.dtype))


def rows_of(x: Tensor, dim: int, heads: int | None) -> Tensor:
    """x as (G, rows, D); without heads (None) G is 1."""
    if heads is None:
        return x.movedim(dim, -1).reshape(1, -1, x.shape[dim])
    return x.movedim((dim - 1, dim), (0, -1)).reshape(heads, -1, x.shape[dim])


def values_from_rows(rows: Tensor, like: Tensor, dim: int, heads: int | None) -> Tensor:
    """The inverse of `rows_of`, in the layout of `like` if that is dense."""
    shape = list(like.shape)
    del shape[dim]
    if heads is None:
        moved = rows.reshape(*shape, rows.shape[-1]).movedim(-1, dim)
    else:
        del shape[dim - 1]
        moved = rows.reshape(heads, *shape, rows.shape[-1]).movedim((0, -1), (dim - 1, dim))
    return torch.empty_like(like, dtype=rows.dtype).copy_(moved)


def indices_from_rows(rows: Tensor, x: Tensor, dim: int, heads: int | None) -> Tensor:
    """(G, rows) as x's shape without `dim`."""
    shape = list(x.shape)
    del shape[dim]
    if heads is None:
        return rows.reshape(shape).contiguous()
    del shape[dim - 1]
    return rows.reshape(heads, *shape).movedim(0, dim - 1).contiguous()


def rows_of_indices(indices: Tensor, dim: int, heads: int | None) -> Tensor:
    """The inverse of `indices_from_rows`: (G, rows)."""
    if heads is None:
        return indices.reshape(1, -1)
    return indices.movedim(dim - 1, 0).reshape(heads, -1)
