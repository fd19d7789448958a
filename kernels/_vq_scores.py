"""Scores that tell most codes from the nearest one: the first half of the exact lookup.

The nearest code has the largest score s = x.c - |c|^2 / 2, both moved by the mean of the codes and
scaled by their extent. One product on the tensor cores, of values rounded to bfloat16, gives a
score that is off by at most `reach` (below). Of every group of neighbouring codes the kernel keeps
the highest score, the code that has it, and the second highest. `vq_nearest` then measures, in
float64, the codes whose score comes within the reach of the best, and no others.

The codebook is packed first: rounded, padded to whole tiles, with -|c|^2 / 2 beside it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._portable import INTERPRETING, OPTIONS, load, needs_int64, rounded
from ._rows import row_offset, row_strides

TILE_ROWS, TILE_CODES = 128, 128
# Fewer programs than this leave multiprocessors idle (132 on an H200, two programs each): then the
# codes of a row go to several programs. A constant, so that the work is the same on every device.
PROGRAMS = 264
# Up to so many (padded) values a tile of rows stays on the chip while the codes pass by.
RESIDENT_VALUES = 256
# Bytes of kept scores; more rows than fit take turns.
SCRATCH = 64 << 20
REGISTERS = 255  # without a bound ptxas spills a little to use fewer
MEAN_CODES, MEAN_VALUES, MEAN_PARTS = 256, 16, 32
LOWEST = tl.constexpr(-3e38)  # below every score; finite, so that low bits can hold an index


class Packed(NamedTuple):
    """A codebook made ready for the filter."""

    codes: torch.Tensor  # (G, tiles * TILE_CODES, padded values), bfloat16 or float32
    bias: torch.Tensor  # (G, tiles * TILE_CODES): -|c|^2 / 2, or -inf: never chosen
    norms: torch.Tensor  # (G, groups): of the longest code in the group; -1 if it has none
    center: torch.Tensor  # (G, D)
    scale: torch.Tensor  # (G,)
    group: int  # codes in a group


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


@triton.jit
def _operand(value, dtype: tl.constexpr):
    """`value` rounded to `dtype` for a product; the interpreter cannot multiply a bfloat16."""
    if INTERPRETING:
        return rounded(value, dtype).to(tl.float32)
    else:
        return value.to(dtype)


@triton.jit
def _codes(at):
    """Packed codes, which need no mask."""
    value = tl.load(at)
    return value.to(tl.float32) if INTERPRETING else value


@triton.jit
def _row_values(x_at, center, scale, live, d, values, x_d, dtype: tl.constexpr):
    """(rows, d): x moved and scaled as the codes were; 0 in the padding."""
    live = live[:, None] & (d < values)[None, :]
    mean = tl.load(center + d, mask=d < values, other=0.0)
    v = load(x_at[:, None] + (d.to(tl.int64) * x_d)[None, :], live).to(mean.dtype)
    v = tl.where(live, (v - mean[None, :]) * scale, 0.0).to(tl.float32)
    return _operand(v, dtype)


@triton.jit
def _keep_scores(score, highest, second, live, groups, group, stride, GROUP: tl.constexpr):
    """Of each group of codes: the highest score, its lowest bits the code's place in the group, and
    the second highest."""
    rows: tl.constexpr = score.shape[0]
    codes: tl.constexpr = score.shape[1]
    place = tl.arange(0, codes) % GROUP
    bits = tl.maximum(score, LOWEST).to(tl.int32, bitcast=True)
    key = ((bits & -GROUP) | place[None, :]).to(tl.float32, bitcast=True)
    key = tl.reshape(key, (rows, codes // GROUP, GROUP))
    best = tl.max(key, 2)
    next_best = tl.max(tl.where(key == best[:, :, None], LOWEST, key), 2)
    column = group + tl.arange(0, codes // GROUP)
    at = (column * stride)[None, :]
    tl.store(highest[:, None] + at, best, mask=live[:, None])
    tl.store(second[:, None] + at, next_best, mask=live[:, None])


@triton.jit
def _scores_kernel(
    x, center, scale, packed, bias, highest, second,
    start, rows, kept, inner, values, tiles, part, x_g, x_o, x_i, x_d,
    RESIDENT: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of rows, from `start` on, with `part` tiles of codes."""
    program, head = tl.program_id(0), tl.program_id(1)
    parts = tl.cdiv(tiles, part)
    local = program // parts * BLOCK_R + tl.arange(0, BLOCK_R)
    first = program % parts * part
    r = start + local
    live = (r < rows) & (local < kept)
    if WIDE:
        r, head, local = r.to(tl.int64), head.to(tl.int64), local.to(tl.int64)
    x_at = x + head * x_g + row_offset(r, inner, x_o, x_i)
    packed += head * tiles * BLOCK_K * PADDED
    bias += head * tiles * BLOCK_K
    groups = tiles * (BLOCK_K // GROUP)
    highest += head * groups * kept + local
    second += head * groups * kept + local
    center += head * values
    factor = tl.load(scale + head)
    dtype: tl.constexpr = packed.dtype.element_ty
    if RESIDENT:
        d = tl.arange(0, PADDED)
        v = _row_values(x_at, center, factor, live, d, values, x_d, dtype)
        for tile in range(first, tl.minimum(first + part, tiles)):
            k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
            if WIDE:
                k = k.to(tl.int64)
            c = _codes(packed + (k * PADDED)[None, :] + d[:, None])
            score = tl.dot(v, c) + tl.load(bias + k)[None, :]
            group = tile * (BLOCK_K // GROUP)
            _keep_scores(score, highest, second, live, groups, group, kept, GROUP)
    else:
        for tile in range(first, tl.minimum(first + part, tiles)):
            k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
            if WIDE:
                k = k.to(tl.int64)
            score = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.float32)
            for d_start in range(0, PADDED, BLOCK_D):
                d = d_start + tl.arange(0, BLOCK_D)
                v = _row_values(x_at, center, factor, live, d, values, x_d, dtype)
                c = _codes(packed + (k * PADDED)[None, :] + d[:, None])
                score = tl.dot(v, c, score, input_precision="ieee")
            score += tl.load(bias + k)[None, :]
            group = tile * (BLOCK_K // GROUP)
            _keep_scores(score, highest, second, live, groups, group, kept, GROUP)


@triton.jit
def reach(radius, norm, scale, values, COSINE: tl.constexpr, ROUNDED: tl.constexpr):
    """How far the score of a code of at most this norm may be off, for a row of this radius (both
    moved and scaled): inf where float32 may have overflowed or underflowed.

    With u = 2^-8 (bfloat16, to nearest) and v = 2^-24 (float32):
    rounding x and c: |x.c - x'.c'| <= (2 u + u^2 + 4 v) |x||c|, by Cauchy-Schwarz;
    summing D products in float32 in any order, even truncated: (D + 8) 2^-22 |x||c|;
    -|c|^2 / 2 and adding it: 2^-22 (|x||c| + |c|^2);
    the place of a code in its group, in up to 7 of the lowest bits: 2^-16 (|x||c| + |c|^2).
    The constants are a little larger than these.
    """
    product = radius * norm
    off = (product + norm * norm) * (1.1 * 2.0**-16 + (values + 16) * 2.0**-22) + 2.0**-60
    if ROUNDED:
        off += 1.01 * 2.0**-7 * product
    in_range = radius < 1e18
    if scale.dtype == tl.float32:  # x was moved in float32, too
        in_range = in_range & (radius < 1e37 * scale)
    if COSINE:  # x is not normalised
        in_range = in_range & (radius > 1e-15)
    return tl.where(in_range, off, float("inf"))


def uses_filter(values, codes):
    """Whether bfloat16 scores are the better start: tensor cores multiply 16 values at a time, and
    among few codes most would be measured again."""
    return values >= 8 and codes >= 64


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
    if padded > RESIDENT_VALUES or not rounds:
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


def kept_rows(rows, packed):
    """How many rows' scores are kept at a time."""
    bytes_of_row = 8 * packed.norms.numel()
    fit = max(1, SCRATCH // (bytes_of_row * TILE_ROWS)) * TILE_ROWS
    return min(triton.cdiv(rows, TILE_ROWS) * TILE_ROWS, fit)


def scores(x, rows, packed, start, highest, second):
    """Fills `highest` and `second` (G, groups, kept rows) for the rows from `start` on. x is
    (G, outer, inner, D)."""
    heads, padded_codes, padded = packed.codes.shape
    kept, tiles = highest.shape[2], padded_codes // TILE_CODES
    row_tiles = triton.cdiv(min(kept, rows - start), TILE_ROWS)
    parts = min(tiles, triton.cdiv(PROGRAMS, row_tiles * heads))
    part = triton.cdiv(tiles, parts)
    rounds = packed.codes.dtype == torch.bfloat16
    resident = rounds and padded <= RESIDENT_VALUES
    block = padded if resident else 64 if rounds else 16
    _scores_kernel[(row_tiles * triton.cdiv(tiles, part), heads)](
        x, packed.center, packed.scale, packed.codes, packed.bias, highest, second,
        start, rows, kept, x.shape[2], x.shape[3], tiles, part, *row_strides(x),
        RESIDENT=resident, WIDE=needs_int64(x, packed.codes), GROUP=packed.group, PADDED=padded,
        BLOCK_R=TILE_ROWS, BLOCK_K=TILE_CODES, BLOCK_D=block,
        num_warps=8, num_stages=2 if padded == 256 else 3, **OPTIONS,
    )  # fmt: skip
