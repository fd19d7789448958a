"""gated_masked_conv2d in Triton: the masked convolution's tile, gated while it is in registers.

The two channels of a gate are C apart in the weight. A tile takes its output channels alternately
from both halves, so that each thread holds pairs and the gate moves nothing. `y` is computed from
the accumulators, before `pre` is rounded to the dtype.
"""

import triton
import triton.language as tl

from ._portable import empty_in_format_of, load, needs_int64, on_device_of, rounded, tuned
from .gated_activation import gate, gated_activation_backward
from .masked_conv2d import (
    channels_inner,
    image_row_column,
    program_tile,
    shared_arguments,
    sum_of_taps,
    tiles_of,
)


@triton.jit
def _gated_masked_conv2d_kernel(
    x, weight, bias, condition, pre, y, taps, partial, positions, height, width, inputs, outputs,
    x_n, x_c, x_h, x_w, w_o, w_i, w_h, w_w, m_p, m_o, m_i, r_n, r_c, r_h, r_w, step_h, step_w,
    q_n, q_c, q_h, q_w, y_n, y_c, y_h, y_w,
    KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_CONDITION: tl.constexpr, HAS_PARTIAL: tl.constexpr,
    FEW: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    p, column = program_tile(positions, outputs, WIDE, BLOCK_P, BLOCK_O)
    channels = outputs // 2
    acc = sum_of_taps(
        x, weight, taps, partial, p, column % 2 * channels + column // 2, column < outputs,
        positions, height, width, inputs,
        x_n, x_c, x_h, x_w, w_o, w_i, w_h, w_w, m_p, m_o, m_i, step_h, step_w,
        KH, KW, ROWS, HAS_PARTIAL, FEW, PRECISION, BLOCK_P, BLOCK_O, BLOCK_I,
    )  # fmt: skip
    a, b = tl.split(tl.reshape(acc, (BLOCK_P, BLOCK_O // 2, 2)))
    block = tl.program_id(0) % tl.cdiv(outputs, BLOCK_O)
    c = block * (BLOCK_O // 2) + tl.arange(0, BLOCK_O // 2)
    has_c = c < channels
    live = (p < positions)[:, None] & has_c[None, :]
    if HAS_BIAS:
        a += load(bias + c, has_c).to(acc.dtype)[None, :]
        b += load(bias + channels + c, has_c).to(acc.dtype)[None, :]
    n, h, w = image_row_column(p, height, width)
    at = pre + (n * r_n + h * r_h + w * r_w)[:, None] + (c * r_c)[None, :]
    tl.store(at, rounded(a, pre.dtype.element_ty), mask=live)
    tl.store(at + channels * r_c, rounded(b, pre.dtype.element_ty), mask=live)
    if HAS_CONDITION:
        at = condition + (n * q_n + h * q_h + w * q_w)[:, None] + (c * q_c)[None, :]
        a += load(at, live).to(acc.dtype)
        b += load(at + channels * q_c, live).to(acc.dtype)
    at = y + (n * y_n + h * y_h + w * y_w)[:, None] + (c * y_c)[None, :]
    tl.store(at, rounded(gate(a, b), y.dtype.element_ty), mask=live)


def gated_masked_conv2d(x, weight, bias, condition, taps, partial, dilation):
    """x (B, in, H, W), weight (2C, in, kh, kw), condition None, (B, 2C) or (B, 2C, H, W) ->
    (y (B, C, H, W), pre (B, 2C, H, W)), both in x's memory format."""
    pre = empty_in_format_of(x, (x.shape[0], weight.shape[0], *x.shape[2:]))
    y = empty_in_format_of(pre, (x.shape[0], weight.shape[0] // 2, *x.shape[2:]))
    if y.numel() == 0:
        return y, pre
    weight, bias = channels_inner(weight), None if bias is None else bias.contiguous()
    sizes, named = shared_arguments(x, weight, taps, partial, pre, dilation)
    positions, outputs = sizes[0], weight.shape[0]
    tiles = tiles_of(x, weight, named["HAS_PARTIAL"])

    def grid(tile):
        blocks = triton.cdiv(positions, tile["BLOCK_P"]), triton.cdiv(outputs, tile["BLOCK_O"])
        return (blocks[0] * blocks[1],)

    strides = (0, 0, 0, 0)
    if condition is not None:
        strides = (*condition.stride(), 0, 0) if condition.dim() == 2 else condition.stride()
    kernel = tuned(_gated_masked_conv2d_kernel, tiles, ("positions", "inputs", "outputs"))
    with on_device_of(x):
        kernel[grid](
            x, weight, bias, condition, pre, y, taps, partial, *sizes, *strides, *y.stride(),
            HAS_BIAS=bias is not None, HAS_CONDITION=condition is not None,
            WIDE=needs_int64(x, weight, pre, condition), **named,
        )  # fmt: skip
    return y, pre


def gated_masked_conv2d_backward(grad_y, grad_pre, pre, condition, needs_condition):
    """Gradient of `pre` from both outputs, and of a per-sample condition (B, 2C) where needed."""
    return gated_activation_backward(grad_y, pre, condition, needs_condition, extra=grad_pre)
