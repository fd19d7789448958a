"""masked_conv2d in Triton: an implicit GEMM over the unmasked taps.

Forward: rows are positions (image, row, column), columns are output channels, and the sum runs over
(tap, block of input channels) in one loop whose length the kernel reads from the tap plan, so the
host never waits for the device. The input gradient is the same kernel with input and output
channels exchanged and the taps mirrored. The weight gradient sums over positions: a fixed number of
parts, chosen from sizes alone, then the parts in order; no atomics, the same bits on every run.

Float32 products are exact ("ieee") unless PyTorch is told to use TF32 for matrix products
(`torch.set_float32_matmul_precision`, `torch.backends.cuda.matmul.fp32_precision`). Halves
accumulate in float32. Any strides are read in place; channels-last is what loads widely.
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
    tuned,
)

# Inputs with fewer channels share each step of the sum between taps: 32 (tap, channel) pairs.
FEW_CHANNELS, FEW_COLUMNS = 16, 32
# Parts of the weight gradient's sum: enough for this many programs, each of at least these
# positions. Constants, so that the same sum has the same order on every device.
GRADIENT_PROGRAMS, GRADIENT_POSITIONS = 1024, 512
# Input channels of one step at a partial tap: its masks and tests need the registers.
PARTIAL_BLOCK = tl.constexpr(16)


def _tiles(*rows):
    return tuple(
        triton.Config(
            {"BLOCK_P": p, "BLOCK_O": o, "BLOCK_I": i},
            num_warps=w,
            num_stages=s,
            maxnreg=registers[0] if registers else None,
        )
        for p, o, i, w, s, *registers in rows
    )


# By element size: (positions, output channels, input channels, warps, stages) of a tile, and a
# bound on registers where ptxas would rather spill a little than use more. Not yet measured on
# hardware; chosen to fill the registers and not spill (tests/triton_kernels/resources.json).
TILES = {
    2: _tiles(
        (128, 128, 64, 8, 3),
        (64, 128, 64, 8, 3),
        (128, 64, 64, 4, 4),
        (128, 64, 64, 8, 4),
        (64, 64, 64, 4, 4),
        (128, 64, 32, 8, 4),
        (64, 64, 32, 4, 4),
        (128, 32, 32, 4, 4),
    ),
    4: _tiles((64, 64, 16, 8, 3), (64, 32, 16, 4, 3)),
    8: _tiles((16, 16, 16, 4, 2)),
}
# With partial taps: their masks take the place of accumulators.
PARTIAL_TILES = {
    2: _tiles(
        (64, 128, 64, 8, 3),
        (128, 64, 64, 8, 4),
        (64, 64, 64, 4, 4),
        (128, 64, 32, 8, 4),
        (64, 64, 32, 4, 4),
        (64, 32, 32, 4, 4, 255),
    ),
    4: _tiles((64, 64, 16, 8, 3, 255), (64, 32, 16, 4, 3, 255)),
    8: _tiles((16, 16, 16, 4, 2)),
}
# (positions of one step, output channels, input channels, ...). The step is the same for all tiles
# of one dtype, because it shapes the sum.
GRADIENT_TILES = {
    2: _tiles(
        (64, 128, 128, 8, 3),
        (64, 128, 64, 4, 3),
        (64, 64, 64, 8, 4),
        (64, 64, 32, 4, 4),
        (64, 32, 32, 4, 4),
    ),
    4: _tiles((32, 64, 64, 8, 3), (32, 32, 32, 4, 3)),
    8: _tiles((16, 16, 16, 4, 2)),
}


@triton.jit
def multiply_add(a, b, acc, PRECISION: tl.constexpr):
    """a (M, K) @ b (K, N) + acc (M, N), accumulated in acc's dtype."""
    if acc.dtype == tl.float64:  # Triton 3.6 cannot compile a float64 dot
        return acc + tl.sum(a[:, :, None] * b[None, :, :], 1)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def is_finite(value):
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    return tl.abs(value) < float("inf")


@triton.jit
def image_row_column(p, height, width):
    """Of the linear positions p."""
    pixel = p % (height * width)
    return p // (height * width), pixel // width, pixel % width


@triton.jit
def is_inside(h, w, height, width):
    return (h >= 0) & (h < height) & (w >= 0) & (w < width)


@triton.jit
def leading_full_taps(taps, ROWS: tl.constexpr):
    """How many taps come before the first partial one: all, or all but the centre, as a rule."""
    row = tl.arange(0, ROWS)
    # behind the last tap 0, which reads as partial
    index = tl.load(taps + 3 * row + 5, mask=row < tl.load(taps), other=0)
    return tl.min(tl.where(index < 0, ROWS, row), 0)


@triton.jit
def program_tile(
    positions, outputs, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr
):
    """This program's positions and output channels. Neighbours share positions, so that x is read
    from memory once and from the L2 cache afterwards."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    blocks = tl.cdiv(outputs, BLOCK_O)
    p = (program // blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    return p, (program % blocks) * BLOCK_O + tl.arange(0, BLOCK_O)


@triton.jit
def sum_of_taps(
    x, weight, taps, partial, p, o, has_o, positions, height, width, inputs,
    x_n, x_c, x_h, x_w, w_o, w_i, w_h, w_w, m_p, m_o, m_i, step_h, step_w,
    KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr,
    HAS_PARTIAL: tl.constexpr, FEW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """(BLOCK_P, BLOCK_O): the convolution at positions p, output channels o, before the bias."""
    acc_dtype = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros((BLOCK_P, BLOCK_O), dtype=acc_dtype)
    n, h, w = image_row_column(p, height, width)
    x += n * x_n + h * x_h + w * x_w
    weight += o * w_o
    h = tl.where(p < positions, h, -(2**30))  # dead rows: outside the image at every tap
    total = tl.load(taps)
    full = leading_full_taps(taps, ROWS)

    if FEW:
        for start in range(0, full * inputs, BLOCK_I):
            k = start + tl.arange(0, BLOCK_I).to(p.dtype)
            has_k = k < full * inputs
            tap = taps + 3 * (k // inputs) + 3
            ky = tl.load(tap, mask=has_k, other=0)
            kx = tl.load(tap + 1, mask=has_k, other=0)
            i, dh, dw = k % inputs, (ky - KH // 2) * step_h, (kx - KW // 2) * step_w
            inside = is_inside(h[:, None] + dh[None, :], w[:, None] + dw[None, :], height, width)
            at = i * x_c + dh * x_h + dw * x_w
            a = load(x[:, None] + at[None, :], inside & has_k[None, :])
            at = i * w_i + ky * w_h + kx * w_w
            b = load(weight[None, :] + at[:, None], has_k[:, None] & has_o[None, :])
            acc = multiply_add(a, b, acc, PRECISION)
    else:
        blocks = tl.cdiv(inputs, BLOCK_I)
        ky, kx = tl.load(taps + 3), tl.load(taps + 4)
        for step in range(0, full * blocks):
            i = (step % blocks) * BLOCK_I + tl.arange(0, BLOCK_I).to(p.dtype)
            dh, dw = (ky - KH // 2) * step_h, (kx - KW // 2) * step_w
            inside = is_inside(h + dh, w + dw, height, width)
            at = i * x_c + dh * x_h + dw * x_w
            a = load(x[:, None] + at[None, :], inside[:, None] & (i < inputs)[None, :])
            at = i * w_i + ky * w_h + kx * w_w
            b = load(weight[None, :] + at[:, None], (i < inputs)[:, None] & has_o[None, :])
            acc = multiply_add(a, b, acc, PRECISION)
            # The next step's tap. Loaded where it is used, it would count as an indirection and
            # cost the tiles half of their stages.
            tap = taps + 3 * tl.minimum((step + 1) // blocks, full - 1) + 3
            ky, kx = tl.load(tap), tl.load(tap + 1)

    # From the first partial tap on. A product takes every pair of the tile, so masked weights
    # become 0, and what is not finite is left out and added pair by pair: 0 * nan is nan.
    for t in range(full, total if HAS_PARTIAL else full):
        tap = taps + 3 * t + 3
        ky, kx, index = tl.load(tap), tl.load(tap + 1), tl.load(tap + 2)
        dh, dw = (ky - KH // 2) * step_h, (kx - KW // 2) * step_w
        inside = is_inside(h + dh, w + dw, height, width)
        at_x = x + dh * x_h + dw * x_w
        at_w = weight + ky * w_h + kx * w_w
        at_m = partial + tl.maximum(index, 0) * m_p + o * m_o
        # a vector, because the interpreter cannot combine a scalar condition with a tile's
        reads_mask = has_o & (index + tl.zeros_like(o) >= 0)
        for start in range(0, inputs, PARTIAL_BLOCK):
            i = start + tl.arange(0, PARTIAL_BLOCK).to(p.dtype)
            has_i = i < inputs
            pair = has_i[:, None] & has_o[None, :]
            lanes = has_i[:, None] & reads_mask[None, :]
            allowed = tl.load(at_m[None, :] + (i * m_i)[:, None], mask=lanes, other=1) != 0
            a = load(at_x[:, None] + (i * x_c)[None, :], inside[:, None] & has_i[None, :])
            b = load(at_w[None, :] + (i * w_i)[:, None], pair & allowed)
            a_is_finite, b_is_finite = is_finite(a), is_finite(b)
            acc = multiply_add(
                tl.where(a_is_finite, a, 0.0).to(a.dtype),
                tl.where(b_is_finite, b, 0.0).to(b.dtype),
                acc,
                PRECISION,
            )
            bad = tl.max(tl.max((~a_is_finite).to(tl.int32), 1), 0)
            bad += tl.max(tl.max((~b_is_finite).to(tl.int32), 1), 0)
            if bad > 0:
                for k in range(0, PARTIAL_BLOCK):
                    is_k = tl.arange(0, PARTIAL_BLOCK) == k
                    a_k = tl.sum(tl.where(is_k[None, :], a.to(acc_dtype), 0.0), 1)[:, None]
                    b_k = tl.sum(tl.where(is_k[:, None], b.to(acc_dtype), 0.0), 0)[None, :]
                    allowed_k = tl.max((allowed & is_k[:, None]).to(tl.int32), 0)[None, :] > 0
                    product = a_k * b_k
                    acc += tl.where(allowed_k & ~is_finite(product), product, 0.0)
    return acc


@triton.jit
def _masked_conv2d_kernel(
    x, weight, bias, y, taps, partial, positions, height, width, inputs, outputs,
    x_n, x_c, x_h, x_w, w_o, w_i, w_h, w_w, m_p, m_o, m_i, y_n, y_c, y_h, y_w, step_h, step_w,
    KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_PARTIAL: tl.constexpr,
    FEW: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    p, o = program_tile(positions, outputs, WIDE, BLOCK_P, BLOCK_O)
    has_o = o < outputs
    acc = sum_of_taps(
        x, weight, taps, partial, p, o, has_o, positions, height, width, inputs,
        x_n, x_c, x_h, x_w, w_o, w_i, w_h, w_w, m_p, m_o, m_i, step_h, step_w,
        KH, KW, ROWS, HAS_PARTIAL, FEW, PRECISION, BLOCK_P, BLOCK_O, BLOCK_I,
    )  # fmt: skip
    if HAS_BIAS:
        acc += load(bias + o, has_o).to(acc.dtype)[None, :]
    n, h, w = image_row_column(p, height, width)
    at = y + (n * y_n + h * y_h + w * y_w)[:, None] + (o * y_c)[None, :]
    live = (p < positions)[:, None] & has_o[None, :]
    tl.store(at, rounded(acc, y.dtype.element_ty), mask=live)


@triton.jit
def _weight_gradient_kernel(
    grad, x, sums, taps, positions, height, width, inputs, outputs, part,
    g_n, g_c, g_h, g_w, x_n, x_c, x_h, x_w, step_h, step_w,
    KH: tl.constexpr, KW: tl.constexpr,
    FEW: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """sums[part, out, tap of the plan, in]: the gradient of one part of the positions."""
    total = tl.load(taps)
    program, slot = tl.program_id(0), tl.program_id(1)
    if WIDE:
        program, slot = program.to(tl.int64), slot.to(tl.int64)
    o_blocks = tl.cdiv(outputs, BLOCK_O)
    o = (program % o_blocks) * BLOCK_O + tl.arange(0, BLOCK_O)
    block = program // o_blocks
    if FEW:  # columns are (tap, in)
        column = block * BLOCK_I + tl.arange(0, BLOCK_I)
        if block * BLOCK_I >= total * inputs:
            return
        has_column = column < total * inputs
        i, tap = column % inputs, taps + 3 * (column // inputs) + 3
        ky = tl.load(tap, mask=has_column, other=0)[None, :]
        kx = tl.load(tap + 1, mask=has_column, other=0)[None, :]
    else:  # columns are in, all of one tap
        i_blocks = tl.cdiv(inputs, BLOCK_I)
        t = block // i_blocks
        if t >= total:
            return
        i = (block % i_blocks) * BLOCK_I + tl.arange(0, BLOCK_I)
        has_column, column = i < inputs, t * inputs + i
        ky, kx = tl.load(taps + 3 * t + 3), tl.load(taps + 3 * t + 4)
    has_o = o < outputs
    dh, dw = (ky - KH // 2) * step_h, (kx - KW // 2) * step_w
    at_x = x + (i * x_c)[None, :] + dh * x_h + dw * x_w
    at_g = grad + (o * g_c)[None, :]
    acc_dtype = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros((BLOCK_O, BLOCK_I), dtype=acc_dtype)
    for start in range(slot * part, min(slot * part + part, positions), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        live = (p < positions)[:, None]
        n, h, w = image_row_column(p, height, width)
        g = load(at_g + (n * g_n + h * g_h + w * g_w)[:, None], live & has_o[None, :])
        inside = live & is_inside(h[:, None] + dh, w[:, None] + dw, height, width)
        a = load(at_x + (n * x_n + h * x_h + w * x_w)[:, None], inside & has_column[None, :])
        acc = multiply_add(tl.trans(g), a, acc, PRECISION)
    columns = KH * KW * inputs
    at = sums + slot * outputs * columns + o[:, None] * columns + column[None, :]
    tl.store(at, acc, mask=has_o[:, None] & has_column[None, :])


@triton.jit
def _sum_parts_kernel(
    sums, grad_weight, taps, partial, inputs, outputs,
    slots, parts, w_o, w_i, w_h, w_w, m_p, m_o, m_i,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the parts in order and writes the unmasked weights; the others stay 0."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    size = outputs * slots * inputs
    i, t, o = at % inputs, (at // inputs) % slots, at // (inputs * slots)
    live = (at < size) & (t < tl.load(taps))
    tap = taps + 3 * t + 3
    ky = tl.load(tap, mask=live, other=0)
    kx = tl.load(tap + 1, mask=live, other=0)
    index = tl.load(tap + 2, mask=live, other=-1)
    allowed = partial + index * m_p + o * m_o + i * m_i
    live = live & (tl.load(allowed, mask=live & (index >= 0), other=1) != 0)
    acc = tl.zeros((BLOCK,), dtype=sums.dtype.element_ty)
    for _ in range(0, parts):
        acc += tl.load(sums + at, mask=live, other=0.0)
        sums += size
    at = grad_weight + o * w_o + i * w_i + ky * w_h + kx * w_w
    tl.store(at, rounded(acc, grad_weight.dtype.element_ty), mask=live)


def masked_conv2d(x, weight, bias, taps, partial, dilation):
    """x (B, in, H, W), weight (out, in, kh, kw) -> (B, out, H, W) in x's memory format."""
    y = empty_in_format_of(x, (x.shape[0], weight.shape[0], *x.shape[2:]))
    if y.numel() > 0:
        _convolve(x, weight, bias, y, taps, partial, dilation)
    return y


def masked_conv2d_backward(grad, x, weight, taps, partial, dilation, needs):
    """Gradients of x, weight and bias; an empty tensor for each that is not needed."""
    grad_x, grad_weight, grad_bias = (x.new_empty(0) for _ in range(3))
    if needs[0]:
        grad_x = empty_in_format_of(x, x.shape)
        if grad_x.numel() > 0:
            # the mirrored convolution: output channels are summed, each tap steps the other way
            mirrored = [-step for step in dilation]
            transposed = weight.transpose(0, 1), None, grad_x, taps, partial.transpose(1, 2)
            _convolve(grad, *transposed, mirrored)
    if needs[1]:
        grad_weight = _weight_gradient(grad, x, weight, taps, partial, dilation)
    if needs[2]:
        grad_bias = grad.sum((0, 2, 3), dtype=accumulation_dtype(grad)).to(grad.dtype)
    return grad_x, grad_weight, grad_bias


def precision():
    """Of float32 products: PyTorch's own setting for matrix products."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def channels_inner(weight):
    """The weight with its input channels (or output channels, if transposed) side by side in
    memory: a copy unless it is channels-last or 1x1. Spaced by taps, no load would be wide."""
    if 1 in weight.stride()[:2]:
        return weight
    return weight.contiguous(memory_format=torch.channels_last)


def fitting(tiles, outputs, inputs):
    """Of one dtype's tiles those of the largest channel blocks that are not mostly padding."""
    outputs, inputs = (triton.next_power_of_2(max(n, 1)) for n in (outputs, inputs))

    def channels(tile):
        return tile.kwargs["BLOCK_O"], tile.kwargs["BLOCK_I"]

    fit = [t for t in tiles if channels(t)[0] <= outputs and channels(t)[1] <= inputs]
    best = max(map(channels, fit), key=lambda c: (c[0] * c[1], c), default=channels(tiles[-1]))
    return tuple(t for t in tiles if channels(t) == best)


def shared_arguments(x, weight, taps, partial, y, dilation):
    """What the kernels of the convolution and of the gated convolution are told alike."""
    batch, inputs, height, width = x.shape
    kernel = weight.shape[2:]
    positional = (
        batch * height * width, height, width, inputs, weight.shape[0],
        *x.stride(), *weight.stride(), *partial.stride(), *y.stride(), *dilation,
    )  # fmt: skip
    named = {
        "KH": kernel[0],
        "KW": kernel[1],
        "ROWS": triton.next_power_of_2(kernel[0] * kernel[1]),
        # the plan's own bound: how many taps really are partial only the device knows
        "HAS_PARTIAL": partial.shape[0] > 0,
        "FEW": inputs < FEW_CHANNELS,
        "PRECISION": precision(),
        **OPTIONS,
    }
    return positional, named


def tiles_of(x, weight, has_partial):
    """The tiles to choose from for a convolution of x."""
    outputs, inputs = weight.shape[:2]
    tiles = (PARTIAL_TILES if has_partial else TILES)[x.element_size()]
    return fitting(tiles, outputs, FEW_COLUMNS if inputs < FEW_CHANNELS else inputs)


def _convolve(x, weight, bias, y, taps, partial, dilation):
    weight, bias = channels_inner(weight), None if bias is None else bias.contiguous()
    sizes, named = shared_arguments(x, weight, taps, partial, y, dilation)
    positions, outputs = sizes[0], weight.shape[0]
    tiles = tiles_of(x, weight, named["HAS_PARTIAL"])

    def grid(tile):
        blocks = triton.cdiv(positions, tile["BLOCK_P"]), triton.cdiv(outputs, tile["BLOCK_O"])
        return (blocks[0] * blocks[1],)

    kernel = tuned(_masked_conv2d_kernel, tiles, ("positions", "inputs", "outputs"))
    with on_device_of(x):
        kernel[grid](
            x, weight, bias, y, taps, partial, *sizes,
            HAS_BIAS=bias is not None, WIDE=needs_int64(x, weight, y), **named,
        )  # fmt: skip


def _weight_gradient(grad, x, weight, taps, partial, dilation):
    grad_weight = empty_in_format_of(weight, weight.shape).zero_()
    batch, inputs, height, width = x.shape
    positions, outputs, slots = batch * height * width, weight.shape[0], weight.shape[2:].numel()
    if positions == 0 or grad_weight.numel() == 0:
        return grad_weight
    few = inputs < FEW_CHANNELS
    parts, part = _parts(positions, outputs, inputs, slots)
    sums = x.new_empty(parts, outputs, slots, inputs, dtype=accumulation_dtype(x))
    tiles = fitting(GRADIENT_TILES[x.element_size()], outputs, FEW_COLUMNS if few else inputs)

    def grid(tile):
        o_blocks = triton.cdiv(outputs, tile["BLOCK_O"])
        if few:
            return (o_blocks * triton.cdiv(slots * inputs, tile["BLOCK_I"]), parts)
        return (o_blocks * slots * triton.cdiv(inputs, tile["BLOCK_I"]), parts)

    wide = needs_int64(grad, x, sums)
    kernel = tuned(_weight_gradient_kernel, tiles, ("positions", "inputs", "outputs"))
    with on_device_of(x):
        kernel[grid](
            grad, x, sums, taps, positions, height, width, inputs, outputs, part,
            *grad.stride(), *x.stride(), *dilation, KH=weight.shape[2], KW=weight.shape[3],
            FEW=few, WIDE=wide, PRECISION=precision(), **OPTIONS,
        )  # fmt: skip
        _sum_parts_kernel[(triton.cdiv(sums[0].numel(), 1024),)](
            sums, grad_weight, taps, partial, inputs, outputs, slots, parts,
            *grad_weight.stride(), *partial.stride(), WIDE=wide, BLOCK=1024, **OPTIONS,
        )  # fmt: skip
    return grad_weight


def _parts(positions, outputs, inputs, slots):
    """(number of parts, positions of each) of the weight gradient's sum."""
    tiles = slots * triton.cdiv(outputs, 64) * triton.cdiv(inputs, 64)
    wanted = max(1, min(GRADIENT_PROGRAMS // tiles, triton.cdiv(positions, GRADIENT_POSITIONS)))
    part = triton.cdiv(triton.cdiv(positions, wanted), 64) * 64
    return triton.cdiv(positions, part), part
