"""vq_nearest in Triton: scores on the tensor cores, then the few codes near the best in float64.

The answer is the float64 one whatever the scores' precision: `filter` decides how many codes are
measured twice, not which one wins. Four launches: two pack the codebook, one scores, one measures.
"""

import torch
import triton
import triton.language as tl

from ._portable import OPTIONS, accumulation_dtype, load, needs_int64, on_device_of
from ._rows import Rows, row_offset, row_strides
from ._vq_pack import REGISTERS, pack
from ._vq_scores import kept_rows, reach, scores, uses_filter

BLOCK_ROWS, BLOCK_GROUPS = 32, 16


@triton.jit
def _costs(
    x_at, code_at, live, values, scale, x_d, c_d, COSINE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """float64 (n,): scaled |x - c|^2, or -x.c / |c|, of n pairs; inf where not `live`."""
    total = tl.zeros_like(x_at.to(tl.int64)).to(tl.float64)
    squares = total
    for start in range(0, values, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        lanes = live[:, None] & (d < values)[None, :]
        v = load(x_at[:, None] + (d.to(tl.int64) * x_d)[None, :], lanes).to(tl.float64)
        c = load(code_at[:, None] + (d.to(tl.int64) * c_d)[None, :], lanes).to(tl.float64)
        if COSINE:
            total -= tl.sum(v * c, 1)
            squares += tl.sum(c * c, 1)
        else:
            # the difference first: exact for neighbours, whatever offset they share
            difference = (v - c) * scale
            total += tl.sum(difference * difference, 1)
    if COSINE:
        total = tl.where(squares > 0, total / tl.sqrt(tl.where(squares > 0, squares, 1.0)), 0.0)
    return tl.where(live, total, float("inf"))


@triton.jit
def _squared_radius(x_at, center, scale, live, values, x_d, BLOCK_D: tl.constexpr):
    """(|x moved and scaled|^2 in float64, whether every value is finite) of rows."""
    squares = tl.zeros_like(x_at.to(tl.int64)).to(tl.float64)
    odd = tl.zeros_like(squares).to(tl.int32)
    for start in range(0, values, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        lanes = live[:, None] & (d < values)[None, :]
        v = load(x_at[:, None] + (d.to(tl.int64) * x_d)[None, :], lanes).to(tl.float64)
        odd += tl.sum((~(tl.abs(v) < float("inf"))).to(tl.int32), 1)
        mean = tl.load(center + d, mask=d < values, other=0.0).to(tl.float64)
        v = tl.where(lanes, (v - mean[None, :]) * scale, 0.0)
        squares += tl.sum(v * v, 1)
    return squares, odd == 0


@triton.jit
def nearest_codes(
    x_at, local, live, head, codebook, center, scale, bias, norms, highest, second,
    values, groups, kept, x_d, c_g, c_k, c_d,
    COSINE: tl.constexpr, ROUNDED: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of rows at x_at, `local` among the kept: (nearest code, or 0; its scaled squared distance, or
    inf; whether it was found). Rows that are not live, or not finite, find none."""
    rows: tl.constexpr = x_at.shape[0]
    NONE: tl.constexpr = 2**31 - 1
    codebook += head * c_g
    center += head * values
    norms += head * groups
    bias += head * groups * GROUP
    highest += head * groups * kept + local
    second += head * groups * kept + local
    scale = tl.load(scale + head)
    squares, finite = _squared_radius(x_at, center, scale, live, values, x_d, BLOCK_D)
    radius = tl.sqrt(squares.to(tl.float32))[:, None]
    live = live & finite

    # the least that the nearest code's score can be, and the first group that has a code
    least = tl.zeros((rows,), dtype=tl.float32) - float("inf")
    first = NONE
    for start in range(0, groups, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        norm = tl.load(norms + t, mask=t < groups, other=-1.0)[None, :]
        lanes = live[:, None] & (norm >= 0)
        best = tl.load(highest[:, None] + (t * kept)[None, :], mask=lanes, other=0.0)
        off = reach(radius, norm, scale, values, COSINE, ROUNDED)
        least = tl.maximum(least, tl.max(tl.where(lanes, best - off, -float("inf")), 1))
        first = tl.minimum(first, tl.min(tl.where(norm >= 0, t[None, :], NONE)))

    cost = tl.zeros((rows,), dtype=tl.float64) + float("inf")
    code = tl.zeros((rows,), dtype=tl.int32) + NONE
    for start in range(0, groups, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        norm = tl.load(norms + t, mask=t < groups, other=-1.0)[None, :]
        lanes = live[:, None] & (norm >= 0)
        at = (t * kept)[None, :]
        best = tl.load(highest[:, None] + at, mask=lanes, other=0.0)
        next_best = tl.load(second[:, None] + at, mask=lanes, other=0.0)
        off = reach(radius, norm, scale, values, COSINE, ROUNDED)
        # so that what is not a number counts as near, not as far
        near = lanes & ~(best + off < least[:, None])
        crowded = near & ~(next_best + off < least[:, None])
        if COSINE:  # a zero row is equally near to every code, so the first group will do
            is_zero = (squares == 0)[:, None]
            near = near & (~is_zero | (t[None, :] == first))
            crowded = near & (crowded | is_zero)
        alone = (near & ~crowded).to(tl.int32)
        place = (best.to(tl.int32, bitcast=True) & (GROUP - 1)) + (t * GROUP)[None, :]

        # groups with one near code: each turn measures one for every row that has some left
        while tl.max(alone) > 0:
            candidate = tl.min(tl.where(alone > 0, place, NONE), 1)
            has = candidate < NONE
            code_at = codebook + tl.where(has, candidate, 0).to(tl.int64) * c_k
            measured = _costs(x_at, code_at, has, values, scale, x_d, c_d, COSINE, BLOCK_D)
            # infinite only beyond the range of float64
            wins = has & ((measured < cost) | ((measured == cost) & (candidate < code)))
            cost, code = tl.where(wins, measured, cost), tl.where(wins, candidate, code)
            alone = tl.where(place == candidate[:, None], 0, alone)

        # groups with several: each turn measures a whole group for one row
        number = tl.arange(0, rows)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
        left = tl.where(crowded, number, NONE)
        turn = tl.min(left)
        while turn < NONE:
            row = turn // BLOCK_T
            k = (start + turn % BLOCK_T) * GROUP + tl.arange(0, GROUP)
            valid = tl.load(bias + k) > -float("inf")
            is_row = tl.arange(0, rows) == row
            row_at = tl.sum(tl.where(is_row, x_at.to(tl.int64), 0), 0)
            row_at = (tl.zeros_like(k).to(tl.int64) + row_at).to(x_at.dtype)
            code_at = codebook + tl.where(valid, k, 0).to(tl.int64) * c_k
            measured = _costs(row_at, code_at, valid, values, scale, x_d, c_d, COSINE, BLOCK_D)
            lowest = tl.min(measured)
            candidate = tl.min(tl.where(valid & (measured == lowest), k, NONE))
            wins = is_row & ((lowest < cost) | ((lowest == cost) & (candidate < code)))
            cost, code = tl.where(wins, lowest, cost), tl.where(wins, candidate, code)
            left = tl.where(number == turn, NONE, left)
            turn = tl.min(left)
    found = code < NONE
    return tl.where(found, code, 0).to(tl.int64), cost, found


@triton.jit
def _nearest_kernel(
    x, codebook, center, scale, bias, norms, highest, second, indices,
    start, rows, kept, inner, values, groups,
    x_g, x_o, x_i, x_d, c_g, c_k, c_d, i_g, i_o, i_i,
    COSINE: tl.constexpr, ROUNDED: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    local = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    head = tl.program_id(1)
    r = start + local
    if WIDE:
        r, head = r.to(tl.int64), head.to(tl.int64)
    live = (r < rows) & (local < kept)
    x_at = x + head * x_g + row_offset(r, inner, x_o, x_i)
    code, _, _ = nearest_codes(
        x_at, local, live, head, codebook, center, scale, bias, norms, highest, second,
        values, groups, kept, x_d, c_g, c_k, c_d, COSINE, ROUNDED, GROUP, BLOCK_T, BLOCK_D,
    )  # fmt: skip
    tl.store(indices + head * i_g + row_offset(r, inner, i_o, i_i), code, mask=live)


def search(x, codebook, rows, cosine, filter, dtype, finish):
    """The lookup, some rows at a time: `finish(packed, highest, second, start, grid, named)`
    launches the kernel that measures and does with the nearest codes what it likes.

    x: (G, outer, inner, D), codebook: (G, K, D), dtype: the computation's.
    """
    heads, codes, values = codebook.shape
    rounds = uses_filter(values, codes) if filter is None else filter
    packed = pack(codebook, cosine, dtype, rounds)
    kept, groups = kept_rows(rows, packed), packed.norms.shape[1]
    highest, second = (
        torch.empty(heads, groups, kept, dtype=torch.float32, device=x.device) for _ in range(2)
    )
    named = {
        "COSINE": cosine,
        "ROUNDED": rounds,
        "GROUP": packed.group,
        "BLOCK_R": BLOCK_ROWS,
        "BLOCK_T": min(BLOCK_GROUPS, triton.next_power_of_2(groups)),
        "BLOCK_D": min(32, max(8, triton.next_power_of_2(values))),
        "num_warps": 8 if packed.group > 64 else 4,  # a whole group is in registers at a time
        "maxnreg": REGISTERS,
        **OPTIONS,
    }
    for start in range(0, rows, kept):
        scores(x, rows, packed, start, highest, second)
        grid = (triton.cdiv(min(kept, rows - start), BLOCK_ROWS), heads)
        finish(packed, highest, second, start, grid, named)


def by_heads(codebook):
    """(G, K, D)."""
    return codebook if codebook.dim() == 3 else codebook.unsqueeze(0)


def compute_dtype(x, codebook):
    return torch.promote_types(accumulation_dtype(x), accumulation_dtype(codebook))


def vq_nearest(x, codebook, dim, cosine, filter=None):
    """x (..., D at `dim`, ...), codebook (K, D) or (G, K, D) -> int64, x's shape without `dim`.

    `filter`: bfloat16 scores first (None: if there are at least 8 values and 64 codes), or float32
    ones.
    """
    shape = list(x.shape)
    del shape[dim]
    indices = torch.empty(shape, dtype=torch.int64, device=x.device)
    if indices.numel() == 0:
        return indices
    rows, codes = Rows(x, dim, codebook.dim() == 3), by_heads(codebook)
    xs, found = rows.values(x), rows.entries(indices)
    strides = *row_strides(xs), *codes.stride(), *row_strides(found)[:3]
    wide = needs_int64(xs, codes, found)

    def finish(packed, highest, second, start, grid, named):
        _nearest_kernel[grid](
            xs, codes, packed.center, packed.scale, packed.bias, packed.norms, highest, second,
            found, start, rows.rows, highest.shape[2], rows.inner, codes.shape[2],
            highest.shape[1], *strides, WIDE=wide, **named,
        )  # fmt: skip

    with on_device_of(x):
        search(xs, codes, rows.rows, cosine, filter, compute_dtype(x, codebook), finish)
    rows.finish(indices, found, has_values=False)
    return indices
