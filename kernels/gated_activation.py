"""gated_activation in Triton: tanh of the first half of the channels times sigmoid of the second.

Every tensor is seen as (batch, channels, pixels) by strides; a channels-last image and a plain one
differ only in which of the last two strides is 1, and the tile is long on that side.
"""

import torch
import triton
import triton.language as tl

from ._portable import (
    OPTIONS,
    accumulation_dtype,
    empty_in_format_of,
    load,
    needs_int64,
    on_device_of,
    rounded,
)

# (long side, short side) of a tile: 2048 elements, for each of 128 threads two 16-byte accesses in
# bfloat16.
SMALL, LARGE = (64, 32), (512, 4)


@triton.jit
def tanh_fraction(a):
    """tanh(a) as a numerator and a denominator, to a few ulp of tanh.

    Below 1/2 the exponential form cancels; there the continued fraction of tanh, cut after seven
    terms, is off by 2e-16.
    """
    z = a * a
    e = tl.exp(-2.0 * tl.abs(a))
    is_small = tl.abs(a) < 0.5
    numerator = tl.where(
        is_small,
        a * (135135.0 + z * (17325.0 + z * (378.0 + z))),
        tl.where(a < 0.0, e - 1.0, 1.0 - e),
    )
    denominator = tl.where(is_small, 135135.0 + z * (62370.0 + z * (3150.0 + z * 28.0)), 1.0 + e)
    return numerator, denominator


@triton.jit
def gate(a, b):
    """tanh(a) * sigmoid(b), with one division."""
    numerator, denominator = tanh_fraction(a)
    return numerator / (denominator * (1.0 + tl.exp(-b)))


@triton.jit
def gate_slopes(a, b):
    """Derivatives of tanh(a) * sigmoid(b) by a and by b, without cancellation in the tails."""
    numerator, denominator = tanh_fraction(a)
    tanh = numerator / denominator
    e = tl.exp(-2.0 * tl.abs(a))
    tanh_slope = tl.where(tl.abs(a) < 0.5, 1.0 - tanh * tanh, 4.0 * e / ((1.0 + e) * (1.0 + e)))
    u = tl.exp(-tl.abs(b))
    shrink = 1.0 / (1.0 + u)
    sigmoid = tl.where(b < 0.0, u * shrink, shrink)
    return tanh_slope * sigmoid, tanh * u * shrink * shrink


@triton.jit
def _tile(channels, pixels, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """This program's (image, tile number in it, channel column, pixel row, live lanes)."""
    tiles_c, tiles_p = tl.cdiv(channels, BLOCK_C), tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    c = (program % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    tile = program // tiles_c
    p = (tile % tiles_p) * BLOCK_P + tl.arange(0, BLOCK_P)
    live = (p < pixels)[:, None] & (c < channels)[None, :]
    return tile // tiles_p, tile % tiles_p, c[None, :], p[:, None], live


@triton.jit
def _gate_inputs(
    x, condition, image, c, p, live, channels,
    x_n, x_c, x_p, q_n, q_c, q_p,
    HAS_CONDITION: tl.constexpr,
):  # fmt: skip
    """Both halves of x + condition, in the dtype of the computation."""
    compute = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    at = x + image * x_n + c * x_c + p * x_p
    a = load(at, live).to(compute)
    b = load(at + channels * x_c, live).to(compute)
    if HAS_CONDITION:
        at = condition + image * q_n + c * q_c + p * q_p
        a += load(at, live).to(compute)
        b += load(at + channels * q_c, live).to(compute)
    return a, b


@triton.jit
def _gated_activation_kernel(
    x, condition, y, channels, pixels,
    x_n, x_c, x_p, q_n, q_c, q_p, y_n, y_c, y_p,
    HAS_CONDITION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image, _, c, p, live = _tile(channels, pixels, WIDE, BLOCK_C, BLOCK_P)
    a, b = _gate_inputs(
        x, condition, image, c, p, live, channels, x_n, x_c, x_p, q_n, q_c, q_p, HAS_CONDITION
    )
    out = rounded(gate(a, b), y.dtype.element_ty)
    tl.store(y + image * y_n + c * y_c + p * y_p, out, mask=live)


@triton.jit
def _gated_activation_backward_kernel(
    grad, extra, x, condition, grad_x, sums, channels, pixels,
    g_n, g_c, g_p, e_n, e_c, e_p, x_n, x_c, x_p, q_n, q_c, q_p, o_n, o_c, o_p,
    HAS_CONDITION: tl.constexpr, HAS_EXTRA: tl.constexpr, HAS_SUMS: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image, tile, c, p, live = _tile(channels, pixels, WIDE, BLOCK_C, BLOCK_P)
    a, b = _gate_inputs(
        x, condition, image, c, p, live, channels, x_n, x_c, x_p, q_n, q_c, q_p, HAS_CONDITION
    )
    by_a, by_b = gate_slopes(a, b)
    g = load(grad + image * g_n + c * g_c + p * g_p, live).to(a.dtype)
    by_a *= g
    by_b *= g
    if HAS_SUMS:  # of this tile, in float32 or float64; the launcher adds the tiles in order
        at = sums + (image * tl.cdiv(pixels, BLOCK_P) + tile) * 2 * channels + c
        # dead lanes hold 0: their g is 0 and their slopes are finite
        tl.store(at, tl.sum(by_a, 0)[None, :], mask=c < channels)
        tl.store(at + channels, tl.sum(by_b, 0)[None, :], mask=c < channels)
    if HAS_EXTRA:
        at = extra + image * e_n + c * e_c + p * e_p
        by_a += load(at, live).to(a.dtype)
        by_b += load(at + channels * e_c, live).to(a.dtype)
    at = grad_x + image * o_n + c * o_c + p * o_p
    tl.store(at, rounded(by_a, grad_x.dtype.element_ty), mask=live)
    tl.store(at + channels * o_c, rounded(by_b, grad_x.dtype.element_ty), mask=live)


def gated_activation(x, condition):
    """x (B, 2C, *spatial), condition None, (B, 2C) or x's shape -> (B, C, *spatial)."""
    batch, channels, *spatial = x.shape
    y = empty_in_format_of(x, (batch, channels // 2, *spatial))
    if y.numel() == 0:
        return y
    xs, qs, ys = _flat(x), _flat(condition), _flat(y)
    grid, tile = _grid(xs)
    with on_device_of(x):
        _gated_activation_kernel[grid](
            xs, qs, ys, *ys.shape[1:], *_strides(xs), *_strides(qs), *_strides(ys),
            HAS_CONDITION=qs is not None, WIDE=needs_int64(xs, qs, ys), **tile, **OPTIONS,
        )  # fmt: skip
    return y


def gated_activation_backward(grad, x, condition, needs_condition, extra=None):
    """Gradients of x and, where needed, of a per-sample condition (B, 2C); else an empty tensor.

    `extra`, of x's shape, joins the gradient of x but not the condition's.
    """
    grad_x = empty_in_format_of(x, x.shape)
    if grad.numel() == 0:
        return grad_x, x.new_zeros(x.shape[:2] if needs_condition else (0,))
    gs, es, xs, qs, outs = map(_flat, (grad, extra, x, condition, grad_x))
    grid, tile = _grid(xs)
    tiles = triton.cdiv(gs.shape[2], tile["BLOCK_P"])
    sums = None
    if needs_condition:
        sums = x.new_empty(x.shape[0], tiles, x.shape[1], dtype=accumulation_dtype(x))
    with on_device_of(x):
        _gated_activation_backward_kernel[grid](
            gs, es, xs, qs, outs, sums, *gs.shape[1:],
            *_strides(gs), *_strides(es), *_strides(xs), *_strides(qs), *_strides(outs),
            HAS_CONDITION=qs is not None, HAS_EXTRA=es is not None, HAS_SUMS=needs_condition,
            WIDE=needs_int64(gs, es, xs, qs, outs, sums), **tile, **OPTIONS,
        )  # fmt: skip
    return grad_x, sums.sum(1).to(x.dtype) if needs_condition else x.new_empty(0)


def _flat(tensor):
    """(B, C, pixels): a view, or a copy where strides forbid one; a (B, C) has one pixel."""
    if tensor is None:
        return None
    return tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(2)


def _strides(tensor):
    """A per-sample condition has pixel stride 0: it is one pixel, seen from everywhere."""
    if tensor is None:
        return (0, 0, 0)
    batch, channel, pixel = tensor.stride()
    return (batch, channel, 0 if tensor.shape[2] == 1 else pixel)


def _grid(x):
    """The launch for x (B, 2C, pixels): its layout decides the tile's."""
    batch, channels, pixels = x.shape[0], x.shape[1] // 2, x.shape[2]
    if x.stride(1) == 1:
        block_c, block_p = LARGE if channels > SMALL[0] else SMALL
    else:
        block_p, block_c = LARGE if pixels > SMALL[0] else SMALL
    programs = batch * triton.cdiv(channels, block_c) * triton.cdiv(pixels, block_p)
    # a float64 takes two registers
    num_warps = 8 if x.dtype == torch.float64 else 4
    return (programs,), {"BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": num_warps}
