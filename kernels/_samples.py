"""Tensors (B, ...) seen as samples of D values each, and sums over a sample in a fixed order.

A sum is over tiles and pieces that depend on D alone, and pieces are added in their order: a sample
has the same bits in any batch.
"""

import torch
import triton
import triton.language as tl

from ._portable import (
    OPTIONS,
    accumulation_dtype,
    empty_in_format_of,
    needs_int64,
    on_device_of,
    rounded,
)

TILE = 1024  # elements: for each of 128 threads 8
PIECE = 4096  # values of a sample that one program adds


class Samples:
    """One order of a sample's values for all tensors of a call.

    Args:
        like: its order in memory is taken; of a channels-last image, channels come last.
        row_major: take the row-major order instead, that random numbers are counted in.
    """

    def __init__(self, like, row_major=False):
        axes = range(1, like.dim())
        self.order = list(axes) if row_major else sorted(axes, key=lambda i: -like.stride(i))
        self.batch, self.values = like.shape[0], like.shape[1:].numel()

    def rows(self, tensor):
        """(B, D): a view, or a copy where strides forbid one."""
        return self._spread(tensor).reshape(self.batch, self.values)

    def new(self, like):
        """An output in the format of `like`, and as the rows a kernel writes; see `finish`."""
        out = empty_in_format_of(like, like.shape)
        return out, self.rows(out)

    def finish(self, out, rows):
        """Brings the rows to `out`, where they are no view of it."""
        spread = self._spread(out)
        try:
            spread.view(rows.shape)
        except RuntimeError:  # the strides forbid it
            spread.copy_(rows.view(spread.shape))

    def finish_all(self, made):
        """The outputs of what `new` made, (out, rows or None) each."""
        for out, rows in made:
            if rows is not None:
                self.finish(out, rows)
        return tuple(out for out, _ in made)

    def _spread(self, tensor):
        return tensor.permute(0, *self.order)


def strides(rows):
    """(of samples, of values)"""
    return (0, 0) if rows is None else rows.stride()


def is_wide(*rows):
    """Whether 32 bits are too few within a sample; samples themselves are counted in 64."""
    return needs_int64(*(t[(0,) * (t.dim() - 1)] for t in rows if t is not None))


def tile_of(values, dtype):
    """The launch options of a tile of samples by values."""
    is_double = dtype.itemsize == 8
    tile = TILE // 2 if is_double else TILE  # a float64 takes two registers
    block = min(tile, max(4, triton.next_power_of_2(values)))
    return {"BLOCK_B": tile // block, "BLOCK_D": block, "num_warps": 8 if is_double else 4}


@triton.jit
def tile_at(
    batch, values, PER_PROGRAM: tl.constexpr, WIDE: tl.constexpr, BLOCK_B: tl.constexpr
):  # fmt: skip
    """This program's samples (rows, 1), the piece of them and the first value of that."""
    pieces = tl.cdiv(values, PER_PROGRAM)
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    b = (program // pieces).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    piece = program % pieces
    return b[:, None], piece, piece * PER_PROGRAM


def grid_of(batch, values, tile, per_program):
    return (triton.cdiv(batch, tile["BLOCK_B"]) * triton.cdiv(values, per_program),)


def parts_of(samples, like):
    """What a kernel writes its sums into: (pieces, B) in the dtype that sums are in."""
    pieces = triton.cdiv(samples.values, PIECE)
    return like.new_empty(pieces, samples.batch, dtype=accumulation_dtype(like))


@triton.jit
def _add_parts_kernel(
    parts, out, count, columns, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    column = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_column = (column < columns)[None, :]
    total = tl.zeros((BLOCK_C,), dtype=tl.float64)
    for first in range(0, count, BLOCK_N):
        n = (first + tl.arange(0, BLOCK_N))[:, None].to(tl.int64)
        part = tl.load(parts + n * columns + column, mask=has_column & (n < count), other=0.0)
        total += tl.sum(part.to(tl.float64), 0)
    tl.store(out + column, rounded(total, out.dtype.element_ty), mask=column < columns)


def add_parts(parts, dtype=None):
    """(n, ...) -> (...), added in order in float64; one part is the sum already."""
    dtype = dtype or parts.dtype
    if len(parts) == 1:
        return parts[0].to(dtype)
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    columns = out.numel()
    block_n, block_c = (1024, 1) if columns == 1 and parts.dim() == 1 else (64, 16)
    with on_device_of(parts):
        _add_parts_kernel[(triton.cdiv(columns, block_c),)](
            parts, out, len(parts), columns, BLOCK_N=block_n, BLOCK_C=block_c, **OPTIONS
        )
    return out
