"""gaussian_nll in Triton: sums in lanes, one program for each piece of a sample."""

import triton
import triton.language as tl

from ._elementary import scalar, weighted
from ._portable import OPTIONS, accumulation_dtype, load, on_device_of, rounded
from ._samples import (
    PIECE,
    Samples,
    add_parts,
    grid_of,
    is_wide,
    parts_of,
    strides,
    tile_at,
    tile_of,
)

LOG_2_PI = tl.constexpr(1.8378770664093453)
# where the log-variance stands: in an argument, in a tensor of one element, in one of mean's shape
FIXED, ONE, FULL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _log_variance(logvar, fixed, at, live, KIND: tl.constexpr, compute: tl.constexpr):
    """(1, 1), or a tile."""
    if KIND == FIXED:
        return tl.full((1, 1), scalar(fixed, compute), compute)
    elif KIND == ONE:
        one = tl.full((1, 1), 0, tl.int32)
        return load(logvar + one, one == 0).to(compute)
    else:
        return load(logvar + at, live).to(compute)


@triton.jit
def _gaussian_nll_kernel(
    mean, target, logvar, parts, batch, values, fixed: tl.float64, m_b, m_d, y_b, y_d, l_b, l_d,
    KIND: tl.constexpr, WIDE: tl.constexpr, PIECE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = parts.dtype.element_ty
    b, piece, start = tile_at(batch, values, PIECE, WIDE, BLOCK_B)
    end = tl.minimum(start + PIECE, values)
    if KIND != FULL:
        wide = _log_variance(logvar, fixed, b, b < batch, KIND, compute)
        weight = tl.exp(-wide)
    total = tl.zeros((BLOCK_B, BLOCK_D), dtype=compute)
    for first in range(start, end, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)[None, :]
        if WIDE:
            d = d.to(tl.int64)
        live = (b < batch) & (d < values)
        r = load(target + b * y_b + d * y_d, live).to(compute)
        r -= load(mean + b * m_b + d * m_d, live).to(compute)
        if KIND == FULL:
            each = _log_variance(logvar, fixed, b * l_b + d * l_d, live, KIND, compute)
            term = each + weighted(r * r, tl.exp(-each))
        else:
            term = weighted(r * r, weight)
        total += tl.where(live, term, 0.0)
    constant = tl.full((1, 1), LOG_2_PI, compute)
    if KIND != FULL:
        constant += wide
    nll = 0.5 * (tl.sum(total, 1)[:, None] + (end - start).to(compute) * constant)
    everyone = tl.full((1, 1), batch, tl.int64)
    tl.store(parts + piece * everyone + b, nll, mask=b < batch)


@triton.jit
def _gaussian_nll_backward_kernel(
    grad, mean, target, logvar, grad_mean, grad_target, grad_logvar, batch, values,
    fixed: tl.float64, g_b, m_b, m_d, y_b, y_d, l_b, l_d, gm_b, gm_d, gy_b, gy_d, gl_b, gl_d,
    KIND: tl.constexpr, TO_MEAN: tl.constexpr, TO_TARGET: tl.constexpr, TO_LOGVAR: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = tl.float64 if mean.dtype.element_ty == tl.float64 else tl.float32
    b, _, start = tile_at(batch, values, BLOCK_D, WIDE, BLOCK_B)
    d = start + tl.arange(0, BLOCK_D)[None, :]
    if WIDE:
        d = d.to(tl.int64)
    live = (b < batch) & (d < values)
    g = load(grad + b * g_b, b < batch).to(compute)
    r = load(target + b * y_b + d * y_d, live).to(compute)
    r -= load(mean + b * m_b + d * m_d, live).to(compute)
    weight = tl.exp(-_log_variance(logvar, fixed, b * l_b + d * l_d, live, KIND, compute))
    by_target = g * weighted(r, weight)
    if TO_MEAN:
        out = rounded(-by_target, grad_mean.dtype.element_ty)
        tl.store(grad_mean + b * gm_b + d * gm_d, out, mask=live)
    if TO_TARGET:
        out = rounded(by_target, grad_target.dtype.element_ty)
        tl.store(grad_target + b * gy_b + d * gy_d, out, mask=live)
    if TO_LOGVAR:
        by_logvar = 0.5 * g * (1.0 - weighted(r * r, weight))
        if KIND == FULL:
            out = rounded(by_logvar, grad_logvar.dtype.element_ty)
            tl.store(grad_logvar + b * gl_b + d * gl_d, out, mask=live)
        else:  # this tile's share of the sum over everything
            share = tl.sum(tl.sum(tl.where(live, by_logvar, 0.0), 1), 0)
            tl.store(grad_logvar + tl.program_id(0), share)


def _layout(samples, logvar):
    """The kind of a log-variance, and what kernels read it from."""
    if logvar is None:
        return FIXED, None
    if logvar.numel() == 1:
        return ONE, logvar.reshape(1, 1)
    return FULL, samples.rows(logvar)


def gaussian_nll(mean, target, logvar, fixed_logvar):
    """(B,); see fastgen.gaussian_nll."""
    if mean.numel() == 0:
        return mean.new_zeros(len(mean), dtype=accumulation_dtype(mean))
    samples = Samples(mean)
    parts = parts_of(samples, mean)
    ms, ys, (kind, ls) = samples.rows(mean), samples.rows(target), _layout(samples, logvar)
    tile = tile_of(samples.values, mean.dtype)
    with on_device_of(mean):
        _gaussian_nll_kernel[grid_of(*ms.shape, tile, PIECE)](
            ms, ys, ls, parts, *ms.shape, fixed_logvar, *strides(ms), *strides(ys), *strides(ls),
            KIND=kind, WIDE=is_wide(ms, ys, ls), PIECE=PIECE, **tile, **OPTIONS,
        )  # fmt: skip
    return add_parts(parts)


def gaussian_nll_backward(grad_nll, mean, target, logvar, fixed_logvar, needs):
    """Gradients of mean, target and a log-variance that is a tensor; empty where not needed."""
    samples, sums = Samples(mean), None
    is_sum = needs[2] and logvar.numel() == 1
    made = [
        samples.new(like) if need else (mean.new_empty(0), None)
        for like, need in zip(
            (mean, target, logvar), (*needs[:2], needs[2] and not is_sum), strict=True
        )
    ]
    if mean.numel() == 0 or not any(needs):
        return tuple(out for out, _ in made[:2]) + (
            logvar.new_zeros(logvar.shape) if is_sum else made[2][0],
        )
    ms, ys, (kind, ls) = samples.rows(mean), samples.rows(target), _layout(samples, logvar)
    outs = [rows for _, rows in made]
    tile = tile_of(samples.values, mean.dtype)
    grid = grid_of(*ms.shape, tile, tile["BLOCK_D"])
    if is_sum:
        sums = mean.new_empty(grid, dtype=accumulation_dtype(mean))
    with on_device_of(mean):
        _gaussian_nll_backward_kernel[grid](
            grad_nll, ms, ys, ls, *outs[:2], sums if is_sum else outs[2], *ms.shape, fixed_logvar,
            grad_nll.stride(0), *strides(ms), *strides(ys), *strides(ls),
            *(s for out in outs for s in strides(out)), KIND=kind,
            TO_MEAN=needs[0], TO_TARGET=needs[1], TO_LOGVAR=needs[2],
            WIDE=is_wide(ms, ys, ls, *outs), **tile, **OPTIONS,
        )  # fmt: skip
    results = samples.finish_all(made)
    if is_sum:
        results = (*results[:2], add_parts(sums, logvar.dtype).view(logvar.shape))
    return results
