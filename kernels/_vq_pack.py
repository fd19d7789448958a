"""A codebook made ready for the scores of the lookup: moved, scaled, rounded, padded to tiles.

Moved by its mean, so that an offset that codes and rows share costs no exactness; scaled by its
extent, so that no square leaves the range of float32. What is not finite is left out.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._portable import OPTIONS, load, needs_int64, rounded

TILE_CODES = 128
# Up to so many (padded) values a tile of rows stays on the chip while the codes pass by.
RESIDENT_VALUES = 256
REGISTERS = 255  # without a bound ptxas spills a little to use fewer
MEAN_CODES, MEAN_VALUES, MEAN_PARTS = 256, 16, 32


class Packed(NamedTuple):
    """What the kernels read of a codebook (G, K, D)."""

    codes: torch.Tensor  # (G, tiles * TILE_CODES, padded values), bfloat16 or float32
    bias: torch.Tensor  # (G, tiles * TILE_CODES): -|c|^2 / 2, or -inf: never chosen
    norms: torch.Tensor  # (G, groups): of the longest code in the group; -1 if it has none
    center: torch.Tensor  # (G, D)
    scale: torch.Tensor  # (G,)
    group: int  # codes in a group
    resident: bool  # all values of a row are multiplied at once


@triton.jit
def _extent_kernel(
    codebook, extent, codes, values, c_g, c_k, c_d,
    WIDE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """extent[head, part of the codes, (sum, number, least, largest), value], of finite values."""
    part, head = tl.program_id(1), tl.program_id(2)
    parts = tl.num_programs(1)
    k, d = part * BLOCK_K + tl.arange(0, BLOCK_K), tl.program_id(0) * BLOCK_D
    d += tl.arange(0, BLOCK_D)
    if WIDE:
        k, head = k.to(tl.int64), head.to(tl.int64)
    live = (k < codes)[:, None] & (d < values)[None, :]
    c = load(codebook + head * c_g + (k * c_k)[:, None] + (d.to(tl.int64) * c_d)[None, :], live).to(
        tl.float64
    )
    live = live & (tl.abs(c) < float("inf"))
    at = extent + (head * parts + part) * 4 * values + d
    tl.store(at, tl.sum(tl.where(live, c, 0.0), 0), mask=d < values)
    tl.store(at + values, tl.sum(live.to(tl.float64), 0), mask=d < values)
    tl.store(at + 2 * values, tl.min(tl.where(live, c, float("inf")), 0), mask=d < values)
    tl.store(at + 3 * values, tl.max(tl.where(live, c, -float("inf")), 0), mask=d < values)


@triton.jit
def _center_of(extent, center, parts, values, d, MEAN_PARTS: tl.constexpr):
    """(mean of the codes at the values d, as stored in `center`; their largest distance from it)"""
    has_d = d < values
    total = tl.zeros_like(d).to(tl.float64)
    number, least, largest = total, total + float("inf"), total - float("inf")
    for start in range(0, parts, MEAN_PARTS):
        part = start + tl.arange(0, MEAN_PARTS)
        live = (part < parts)[:, None] & has_d[None, :]
        at = extent + (part * 4 * values)[:, None] + d[None, :]
        total += tl.sum(tl.load(at, mask=live, other=0.0), 0)
        number += tl.sum(tl.load(at + values, mask=live, other=0.0), 0)
        low = tl.load(at + 2 * values, mask=live, other=float("inf"))
        high = tl.load(at + 3 * values, mask=live, other=-float("inf"))
        least, largest = tl.minimum(least, tl.min(low, 0)), tl.maximum(largest, tl.max(high, 0))
    mean = total / tl.maximum(number, 1.0)
    mean = mean.to(center.dtype.element_ty).to(tl.float64)
    far = tl.where(number > 0, tl.maximum(largest - mean, mean - least), 0.0)
    return mean, far


@triton.jit
def _pack_kernel(
    codebook, extent, packed, bias, norms, center, scale,
    codes, values, parts, c_g, c_k, c_d,
    COSINE: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr,
    MEAN_PARTS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Moves, scales and rounds one tile of codes. By cosine, codes are instead normalised."""
    tile, head = tl.program_id(0), tl.program_id(1)
    tiles = tl.num_programs(0)
    k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    if WIDE:
        k, head = k.to(tl.int64), head.to(tl.int64)
    has_k = k < codes
    factor = 1.0
    if not COSINE:
        extent += head * parts * 4 * values
        far = tl.zeros((BLOCK_D,), dtype=tl.float64)
        for start in range(0, values, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            far = tl.maximum(far, _center_of(extent, center, parts, values, d, MEAN_PARTS)[1])
        far = tl.max(far, 0)
        # a codebook of one point has no extent
        factor = 1.0 / tl.where(far > 0, far, 1.0)
        if scale.dtype.element_ty == tl.float32:
            factor = tl.minimum(tl.maximum(factor, 1e-37), 1e36)
        factor = factor.to(scale.dtype.element_ty).to(tl.float64)
    at = codebook + head * c_g + k * c_k
    squares = tl.zeros((BLOCK_K,), dtype=tl.float64)
    odd = tl.zeros((BLOCK_K,), dtype=tl.int32)
    for start in range(0, values, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        live = has_k[:, None] & (d < values)[None, :]
        c = load(at[:, None] + (d.to(tl.int64) * c_d)[None, :], live).to(tl.float64)
        odd += tl.sum((~(tl.abs(c) < float("inf"))).to(tl.int32), 1)
        if not COSINE:
            mean = _center_of(extent, center, parts, values, d, MEAN_PARTS)[0]
            c = tl.where(live, (c - mean[None, :]) * factor, 0.0)
            if tile == 0:
                tl.store(
                    center + head * values + d, mean.to(center.dtype.element_ty), mask=d < values
                )
        squares += tl.sum(c * c, 1)
    valid = has_k & (odd == 0)
    if COSINE:
        norm = tl.where(squares > 0, 1.0, 0.0).to(tl.float32)
        shrink = tl.where(squares > 0, 1.0 / tl.sqrt(tl.where(squares > 0, squares, 1.0)), 0.0)
    else:
        norm = tl.sqrt(tl.maximum(squares, 1e-36).to(tl.float32))  # not below the true one
        shrink = tl.full((BLOCK_K,), 1.0, dtype=tl.float64)
    if tile == 0:
        tl.store(scale + head, factor)
    for start in range(0, PADDED, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        live = valid[:, None] & (d < values)[None, :]
        c = load(at[:, None] + (d.to(tl.int64) * c_d)[None, :], live).to(tl.float64)
        if not COSINE:
            mean = _center_of(extent, center, parts, values, d, MEAN_PARTS)[0]
            c = (c - mean[None, :]) * factor
        c = tl.where(live, c * shrink[:, None], 0.0).to(tl.float32)
        out = packed + ((head * tiles * BLOCK_K + k) * PADDED)[:, None] + d[None, :]
        tl.store(out, rounded(c, packed.dtype.element_ty), mask=(d < PADDED)[None, :])
    score = tl.zeros_like(squares) if COSINE else -0.5 * squares
    out = head * tiles * BLOCK_K + k
    tl.store(bias + out, tl.where(valid, score, -float("inf")).to(tl.float32))
    norm = tl.where(valid, norm, -1.0)
    group = tile * (BLOCK_K // GROUP) + tl.arange(0, BLOCK_K // GROUP)
    group += head * tiles * (BLOCK_K // GROUP)
    tl.store(norms + group, tl.max(tl.reshape(norm, (BLOCK_K // GROUP, GROUP)), 1))


def group_size(codes):
    """Codes in a group: about 16 groups or more, so that two close codes are rarely in one, and
    kept scores are few beside the products.

    Counted for Gaussian rows and codes, 512 x 64 to 16384 x 8: 1.5 to 3.5 groups a row come near,
    of which 0.02 to 0.1 have more than one near code; for rows beside their codes 1 to 2 and 0.01.
    """
    return min(TILE_CODES, max(16, triton.next_power_of_2(codes) // 16))


def pack(codebook, cosine, dtype, rounds):
    """`Packed` of a codebook (G, K, D): two launches. `dtype` is the computation's; `rounds`
    chooses bfloat16 over float32 products."""
    heads, codes, values = codebook.shape
    tiles, parts = triton.cdiv(codes, TILE_CODES), triton.cdiv(codes, MEAN_CODES)
    padded = triton.next_power_of_2(max(values, 16))
    resident = rounds and padded <= RESIDENT_VALUES
    if not resident:
        block = 64 if rounds else 16
        padded = triton.cdiv(values, block) * block
    group = group_size(codes)
    new = codebook.new_empty
    stored = torch.bfloat16 if rounds else torch.float32
    packed = Packed(
        new(heads, tiles * TILE_CODES, padded, dtype=stored),
        new(heads, tiles * TILE_CODES, dtype=torch.float32),
        new(heads, tiles * TILE_CODES // group, dtype=torch.float32),
        (torch.zeros if cosine else torch.empty)(
            heads, values, dtype=dtype, device=codebook.device
        ),
        new(heads, dtype=dtype),
        group,
        resident,
    )
    wide = needs_int64(codebook, packed.codes)
    extent = None
    if not cosine:
        extent = new(heads, parts, 4, values, dtype=torch.float64)
        _extent_kernel[(triton.cdiv(values, MEAN_VALUES), parts, heads)](
            codebook, extent, codes, values, *codebook.stride(),
            WIDE=wide, BLOCK_K=MEAN_CODES, BLOCK_D=MEAN_VALUES, num_warps=4,
            maxnreg=REGISTERS, **OPTIONS,
        )  # fmt: skip
    _pack_kernel[(tiles, heads)](
        codebook, extent, *packed[:5], codes, values, parts, *codebook.stride(),
        COSINE=cosine, WIDE=wide, GROUP=group, PADDED=padded, MEAN_PARTS=MEAN_PARTS,
        BLOCK_K=TILE_CODES, BLOCK_D=min(64, triton.next_power_of_2(padded)), num_warps=8,
        maxnreg=REGISTERS, **OPTIONS,
    )  # fmt: skip
    return packed
