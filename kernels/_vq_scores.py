"""Scores that tell most codes from the nearest one: the first half of the exact lookup.

The nearest code has the largest score s = x.c - |c|^2 / 2, both moved by the mean of the codes and
scaled by their extent. One product on the tensor cores, of values rounded to bfloat16, gives a
score that is off by at most `reach` (below). Of every group of neighbouring codes the kernel keeps
the highest score, the code that has it, and the second highest. `vq_nearest` then measures, in
float64, the codes whose score comes within the reach of the best, and no others.
"""

import torch
import triton
import triton.language as tl

from ._portable import INTERPRETING, OPTIONS, load, needs_int64, rounded
from ._rows import row_offset, row_strides
from ._vq_pack import TILE_CODES

TILE_ROWS = 128
# Fewer programs than this leave multiprocessors idle (132 on an H200, two programs each): then the
# codes of a row go to several programs. A constant, so that the work is the same on every device.
PROGRAMS = 264
# Bytes of kept scores; more rows than fit take turns.
SCRATCH = 64 << 20
LOWEST = tl.constexpr(-3e38)  # below every score; finite, so that low bits can hold an index


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
def _keep_scores(score, highest, second, live, group, stride, GROUP: tl.constexpr):
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
            _keep_scores(score, highest, second, live, group, kept, GROUP)
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
            _keep_scores(score, highest, second, live, group, kept, GROUP)


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
    block = padded if packed.resident else 64 if rounds else 16
    stages = 2 if block == 256 else 3  # three of 64 KiB are more than there is beside the rows
    _scores_kernel[(row_tiles * triton.cdiv(tiles, part), heads)](
        x, packed.center, packed.scale, packed.codes, packed.bias, highest, second,
        start, rows, kept, x.shape[2], x.shape[3], tiles, part, *row_strides(x),
        RESIDENT=packed.resident, WIDE=needs_int64(x, packed.codes), GROUP=packed.group,
        PADDED=padded, BLOCK_R=TILE_ROWS, BLOCK_K=TILE_CODES, BLOCK_D=block,
        num_warps=8, num_stages=stages, **OPTIONS,
    )  # fmt: skip
