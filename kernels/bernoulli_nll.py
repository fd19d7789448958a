"""bernoulli_nll in Triton: sums in lanes, one program for each piece of a sample."""

import torch
import triton
import triton.language as tl

from ._elementary import log1p_fraction, weighted
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


@triton.jit
def _probability(at, live, compute: tl.constexpr):
    """The target, NaN where it is none."""
    y = load(at, live).to(compute)
    return tl.where((y >= 0.0) & (y <= 1.0), y, float("nan"))


@triton.jit
def _bernoulli_nll_kernel(
    logits, target, parts, batch, values, x_b, x_d, y_b, y_d,
    WIDE: tl.constexpr, PIECE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = parts.dtype.element_ty
    b, piece, start = tile_at(batch, values, PIECE, WIDE, BLOCK_B)
    total = tl.zeros((BLOCK_B, BLOCK_D), dtype=compute)
    for first in range(start, tl.minimum(start + PIECE, values), BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)[None, :]
        if WIDE:
            d = d.to(tl.int64)
        live = (b < batch) & (d < values)
        x = load(logits + b * x_b + d * x_d, live).to(compute)
        y = _probability(target + b * y_b + d * y_d, live, compute)
        smooth = log1p_fraction(tl.exp(-tl.abs(x)))
        nll = weighted(y, tl.maximum(-x, 0.0) + smooth)
        nll += weighted(1.0 - y, tl.maximum(x, 0.0) + smooth)
        total += tl.where(live, nll, 0.0)
    everyone = tl.full((1, 1), batch, tl.int64)
    tl.store(parts + piece * everyone + b, tl.sum(total, 1)[:, None], mask=b < batch)


@triton.jit
def _bernoulli_nll_backward_kernel(
    grad, logits, target, grad_logits, grad_target, batch, values,
    g_b, x_b, x_d, y_b, y_d, gx_b, gx_d, gy_b, gy_d,
    TO_LOGITS: tl.constexpr, TO_TARGET: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    b, _, start = tile_at(batch, values, BLOCK_D, WIDE, BLOCK_B)
    d = start + tl.arange(0, BLOCK_D)[None, :]
    if WIDE:
        d = d.to(tl.int64)
    live = (b < batch) & (d < values)
    g = load(grad + b * g_b, b < batch).to(compute)
    x = load(logits + b * x_b + d * x_d, live).to(compute)
    if TO_LOGITS:  # sigmoid(x) - y, whose digits do not cancel where the answer is right
        y = _probability(target + b * y_b + d * y_d, live, compute)
        e = tl.exp(-tl.abs(x))
        numerator = tl.where(x < 0.0, (1.0 - y) * e - y, (1.0 - y) - y * e)
        out = rounded(g * numerator / (1.0 + e), grad_logits.dtype.element_ty)
        tl.store(grad_logits + b * gx_b + d * gx_d, out, mask=live)
    if TO_TARGET:
        out = rounded(-g * x, grad_target.dtype.element_ty)
        tl.store(grad_target + b * gy_b + d * gy_d, out, mask=live)


def bernoulli_nll(logits, target):
    """(B,); see fastgen.bernoulli_nll. A target outside 0 .. 1 makes its sample NaN."""
    if logits.numel() == 0:
        return logits.new_zeros(len(logits), dtype=accumulation_dtype(logits))
    samples = Samples(logits)
    parts = parts_of(samples, logits)
    xs, ys = samples.rows(logits), samples.rows(as_numbers(target))
    tile = tile_of(samples.values, logits.dtype)
    with on_device_of(logits):
        _bernoulli_nll_kernel[grid_of(*xs.shape, tile, PIECE)](
            xs, ys, parts, *xs.shape, *strides(xs), *strides(ys),
            WIDE=is_wide(xs, ys), PIECE=PIECE, **tile, **OPTIONS,
        )  # fmt: skip
    return add_parts(parts)


def bernoulli_nll_backward(grad_nll, logits, target, needs):
    """Gradients of the logits and of the target; empty where not needed."""
    samples = Samples(logits)
    made = [
        samples.new(like) if need else (logits.new_empty(0), None)
        for like, need in zip((logits, target), needs, strict=True)
    ]
    if logits.numel() == 0 or not any(needs):
        return tuple(out for out, _ in made)
    xs, ys = samples.rows(logits), samples.rows(as_numbers(target))
    outs = [rows for _, rows in made]
    tile = tile_of(samples.values, logits.dtype)
    with on_device_of(logits):
        _bernoulli_nll_backward_kernel[grid_of(*xs.shape, tile, tile["BLOCK_D"])](
            grad_nll, xs, ys, *outs, *xs.shape, grad_nll.stride(0), *strides(xs), *strides(ys),
            *strides(outs[0]), *strides(outs[1]), TO_LOGITS=needs[0], TO_TARGET=needs[1],
            WIDE=is_wide(xs, ys, *outs), **tile, **OPTIONS,
        )  # fmt: skip
    return samples.finish_all(made)


def as_numbers(target):
    return target.view(torch.uint8) if target.dtype == torch.bool else target
