"""dmol_nll in Triton: a program sees a tile of pixels of one sample.

Where pixels lie side by side it goes through the components one by one, adding to two running
log-sum-exps, and backward goes through them twice. Where the parameters of a pixel lie side by side
up to 16 components are columns of the tile, and backward sees them once.

Distances are in half bins, (levels - 1) (x - mean): x is then an integer, and no digits cancel
before the difference is formed.
"""

import math

import triton
import triton.language as tl

from ._elementary import exp_tail, scalar
from ._portable import (
    OPTIONS,
    accumulation_dtype,
    empty_in_format_of,
    load,
    needs_int64,
    on_device_of,
    rounded,
)
from ._samples import add_parts

MIN_LOG_SCALE = tl.constexpr(-7.0)
TOLERANCE = tl.constexpr(1e-3)  # of a float pixel from its level
LEAST_MASS = tl.constexpr(1e-5)  # below it the code of 2017 takes the density
COLUMNS = 16  # components that are columns of a tile


@triton.jit
def _level(at, live, levels, compute: tl.constexpr):
    """2 k - (levels - 1) of the pixels' level k, and whether they have one."""
    if at.dtype.element_ty.is_floating():
        value = load(at, live)
        value = value.to(tl.float64 if at.dtype.element_ty == tl.float64 else tl.float32)
        last = (levels - 1).to(value.dtype)
        k = tl.floor((value + 1.0) * (0.5 * last) + 0.5)
        fits = tl.abs(value - (k * 2.0 / last - 1.0)) <= scalar(TOLERANCE, value.dtype)
        fits = fits & (k >= 0.0) & (k <= last)
    else:
        k = tl.load(at, mask=live, other=0)
        fits = (k >= 0) & (k < levels)
    return 2.0 * tl.where(fits, k.to(compute), 0.0) - (levels - 1).to(compute), fits


@triton.jit
def _cell(level, shift, mean, raw_log_scale, last, log_bin, EXACT: tl.constexpr):
    """One colour of one component: two summands of the log of a bin's mass, the second a factor
    within 0.1 .. 1 before its logarithm, and the log's derivatives by the distance from the mean
    and by the log-scale.

    The logistic functions at the bin's two edges, one farther from the mean than the other, and the
    width of the bin share two exponentials: exp(-far) = exp(-|near|) exp(-width) outside of the
    bin, exp(-width) = exp(-near) exp(-far) inside.
    """
    log_scale = tl.where(raw_log_scale < MIN_LOG_SCALE, MIN_LOG_SCALE, raw_log_scale)
    inverse = tl.exp(-log_scale)
    half = inverse / last
    distance = level - last * mean - shift
    is_right = distance >= 0.0
    is_lowest, is_highest = level == -last, level == last
    is_edge = is_lowest | is_highest
    lacks_far = (is_right & is_highest) | (is_lowest & (distance < 0.0))
    lacks_near = is_edge & (lacks_far == 0)
    far, near, width = half * (tl.abs(distance) + 1.0), half * (1.0 - tl.abs(distance)), 2.0 * half
    is_outside = near < 0.0
    e = tl.exp(-tl.abs(near))
    other = tl.exp(-tl.where(is_outside, width, far))
    e_far = tl.where(is_outside, e * other, other)
    e_width = tl.where(is_outside, other, e * other)
    # 1 - exp(-width), of a narrow bin without the factor width
    is_wide = width >= 1.0
    mass = tl.where(is_wide, 1.0 - e_width, 1.0 - width * exp_tail(tl.where(is_wide, 0.0, -width)))
    base = tl.where(is_edge | is_wide, 0.0, log_bin - log_scale)
    base += tl.where(lacks_near, 0.0, tl.minimum(near, 0.0))
    d_far, d_near = 1.0 + e_far, 1.0 + e
    reciprocal = 1.0 / (d_far * d_near * mass)
    both = reciprocal * mass
    factor = both * tl.where(lacks_far, d_far, tl.where(lacks_near, d_near, mass))
    slope_far = tl.where(lacks_far, 0.0, both * d_near * e_far)
    slope_near = both * d_far * tl.where(is_outside, 1.0, e)
    slope_near = tl.where(lacks_near, 0.0, slope_near)
    slope_width = tl.where(is_wide, width, 1.0) * e_width * (reciprocal * d_far * d_near)
    slope_width = tl.where(is_edge, 0.0, slope_width)
    by_distance = inverse * (slope_far - slope_near)
    by_log_scale = -far * slope_far - near * slope_near - slope_width
    if not EXACT:
        is_small = (factor * tl.exp(base) <= LEAST_MASS) & (is_edge == 0)
        middle = half * tl.abs(distance)
        e = tl.exp(-middle)
        share = 1.0 / (1.0 + e)
        tanh = (1.0 - e) * share
        base = tl.where(is_small, log_bin - log_scale - middle, base)
        factor = tl.where(is_small, share * share, factor)
        by_distance = tl.where(is_small, -inverse * tanh, by_distance)
        by_log_scale = tl.where(is_small, middle * tanh - 1.0, by_log_scale)
    by_distance = tl.where(is_right, by_distance, -by_distance)
    by_log_scale = tl.where(raw_log_scale < MIN_LOG_SCALE, 0.0, by_log_scale)
    return base, factor, by_distance, by_log_scale


@triton.jit
def _tanh(c):
    """tanh(c) and its derivative."""
    e = tl.exp(-2.0 * tl.abs(c))
    z = c * c
    is_small = tl.abs(c) < 0.5
    # the continued fraction of tanh, cut after seven terms, is off by 2e-16
    numerator = c * (135135.0 + z * (17325.0 + z * (378.0 + z)))
    denominator = 135135.0 + z * (62370.0 + z * (3150.0 + z * 28.0))
    numerator = tl.where(is_small, numerator, tl.where(c < 0.0, e - 1.0, 1.0 - e))
    reciprocal = 1.0 / tl.where(is_small, denominator, 1.0 + e)
    tanh = numerator * reciprocal
    slope = tl.where(is_small, 1.0 - tanh * tanh, 4.0 * e * reciprocal * reciprocal)
    return tanh, slope


@triton.jit
def _wide(stride):
    return tl.full((), stride, tl.int64)


@triton.jit
def _parameter(at, number, stride, live, compute: tl.constexpr):
    return load(at + number * stride, live).to(compute)


@triton.jit
def _logit(at, k, p_k, live, components, compute: tl.constexpr):
    return tl.where(k < components, _parameter(at, k, p_k, live, compute), -float("inf"))


@triton.jit
def _single(
    at, k, p_k, live, components, level, last, log_bin, EXACT: tl.constexpr, compute: tl.constexpr
):
    """Components of one colour: logit, joint log-probability and the two derivatives of it."""
    logit = _logit(at, k, p_k, live, components, compute)
    mean = _parameter(at, components + k, p_k, live, compute)
    log_scale = _parameter(at, 2 * components + k, p_k, live, compute)
    base, factor, by_distance, by_log_scale = _cell(
        level, 0.0, mean, log_scale, last, log_bin, EXACT
    )
    return logit, logit + base + tl.log(factor), by_distance, by_log_scale


@triton.jit
def _coupled(
    at, k, p_k, live, components, level_0, level_1, level_2, last, log_bin,
    EXACT: tl.constexpr, compute: tl.constexpr,
):  # fmt: skip
    """Components of three colours: as `_single`, and the coefficients with their derivatives."""
    logit = _logit(at, k, p_k, live, components, compute)
    first = components + k
    tanh_0, slope_0 = _tanh(_parameter(at, first + 2 * components, p_k, live, compute))
    tanh_1, slope_1 = _tanh(_parameter(at, first + 5 * components, p_k, live, compute))
    tanh_2, slope_2 = _tanh(_parameter(at, first + 8 * components, p_k, live, compute))
    mean = _parameter(at, first, p_k, live, compute)
    log_scale = _parameter(at, first + components, p_k, live, compute)
    base_0, factor_0, d_0, s_0 = _cell(level_0, 0.0, mean, log_scale, last, log_bin, EXACT)
    mean = _parameter(at, first + 3 * components, p_k, live, compute)
    log_scale = _parameter(at, first + 4 * components, p_k, live, compute)
    shift = tanh_0 * level_0
    base_1, factor_1, d_1, s_1 = _cell(level_1, shift, mean, log_scale, last, log_bin, EXACT)
    mean = _parameter(at, first + 6 * components, p_k, live, compute)
    log_scale = _parameter(at, first + 7 * components, p_k, live, compute)
    shift = tanh_1 * level_0 + tanh_2 * level_1
    base_2, factor_2, d_2, s_2 = _cell(level_2, shift, mean, log_scale, last, log_bin, EXACT)
    joint = logit + (base_0 + base_1 + base_2) + tl.log(factor_0 * factor_1 * factor_2)
    scale = 1.0 / last
    c_0, c_1 = d_1 * slope_0 * level_0 * scale, d_2 * slope_1 * level_0 * scale
    c_2 = d_2 * slope_2 * level_1 * scale
    return logit, joint, d_0, s_0, c_0, d_1, s_1, c_1, d_2, s_2, c_2


@triton.jit
def _add_exp(top, total, value):
    """Adds the columns of `value` to a running log-sum-exp, top + log(total), of (pixels, 1)."""
    if value.shape[1] == 1:
        e = tl.where(value == top, 1.0, tl.exp(-tl.abs(value - top)))
        is_new = value > top
        total = tl.where(is_new, total * e + 1.0, total + e)
        return tl.where(is_new, value, top), total
    else:
        new = tl.maximum(top, tl.max(value, 1)[:, None])
        around = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp(top - around) + tl.sum(tl.exp(value - around), 1)[:, None]
        return new, total


@triton.jit
def _single_sums(
    at, p_k, live, components, level, last, log_bin,
    EXACT: tl.constexpr, ONCE: tl.constexpr, compute: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Running log-sum-exps over all components: of the logits and of the joint probabilities."""
    top, total = tl.full((BLOCK_P, 1), -float("inf"), compute), tl.zeros((BLOCK_P, 1), compute)
    joint_top, joint_total = top, total
    for first in range(0, BLOCK_K if ONCE else components, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        logit, joint, _, _ = _single(
            at, k, p_k, live & (k < components), components, level, last, log_bin, EXACT, compute
        )
        top, total = _add_exp(top, total, logit)
        joint_top, joint_total = _add_exp(joint_top, joint_total, joint)
    return top, total, joint_top, joint_total


@triton.jit
def _coupled_sums(
    at, p_k, live, components, level_0, level_1, level_2, last, log_bin,
    EXACT: tl.constexpr, ONCE: tl.constexpr, compute: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As `_single_sums`, for three colours."""
    top, total = tl.full((BLOCK_P, 1), -float("inf"), compute), tl.zeros((BLOCK_P, 1), compute)
    joint_top, joint_total = top, total
    for first in range(0, BLOCK_K if ONCE else components, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        logit, joint, _, _, _, _, _, _, _, _, _ = _coupled(
            at, k, p_k, live & (k < components), components, level_0, level_1, level_2, last,
            log_bin, EXACT, compute,
        )  # fmt: skip
        top, total = _add_exp(top, total, logit)
        joint_top, joint_total = _add_exp(joint_top, joint_total, joint)
    return top, total, joint_top, joint_total


@triton.jit
def _surprise(top, total, joint_top, joint_total):
    return top - joint_top + tl.log(total / joint_total)


@triton.jit
def _tile(pixels, WIDE: tl.constexpr, BLOCK_P: tl.constexpr):
    """This program's sample, its tile of pixels and the pixels (pixels, 1)."""
    tiles = tl.cdiv(pixels, BLOCK_P)
    tile = tl.program_id(0) % tiles
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    if WIDE:
        p = p.to(tl.int64)
    return (tl.program_id(0) // tiles).to(tl.int64), tile, p


@triton.jit
def _dmol_nll_kernel(
    params, x, out, batch, pixels, components, colors, levels, log_bin: tl.float64,
    p_b, p_k, p_c, p_p, x_b, x_c, x_p,
    COUPLED: tl.constexpr, EXACT: tl.constexpr, ONCE: tl.constexpr, WIDE: tl.constexpr,
    PER_PIXEL: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = out.dtype.element_ty
    b, tile, p = _tile(pixels, WIDE, BLOCK_P)
    if WIDE:
        p_k, p_c, x_c = _wide(p_k), _wide(p_c), _wide(x_c)
    live = p < pixels
    last, log_bin = (levels - 1).to(compute), scalar(log_bin, compute)
    at, x_at = params + b * p_b + p * p_p, x + b * x_b + p * x_p
    if COUPLED:
        level_0, fits_0 = _level(x_at, live, levels, compute)
        level_1, fits_1 = _level(x_at + x_c, live, levels, compute)
        level_2, fits_2 = _level(x_at + 2 * x_c, live, levels, compute)
        top, total, joint_top, joint_total = _coupled_sums(
            at, p_k, live, components, level_0, level_1, level_2, last, log_bin, EXACT, ONCE,
            compute, BLOCK_P, BLOCK_K,
        )  # fmt: skip
        nll = _surprise(top, total, joint_top, joint_total)
        nll = tl.where(fits_0 & fits_1 & fits_2, nll, float("nan"))
    else:
        nll = tl.zeros((BLOCK_P, 1), dtype=compute)
        for color in range(colors):
            level, fits = _level(x_at + color * x_c, live, levels, compute)
            top, total, joint_top, joint_total = _single_sums(
                at + color * p_c, p_k, live, components, level, last, log_bin, EXACT, ONCE,
                compute, BLOCK_P, BLOCK_K,
            )  # fmt: skip
            here = _surprise(top, total, joint_top, joint_total)
            nll += tl.where(fits, here, float("nan"))
    if PER_PIXEL:
        tl.store(out + b * pixels + p, nll, mask=live)
    else:
        one = tl.full((), 1, tl.int64)
        tl.store(out + tile * one * batch + b, tl.sum(tl.sum(tl.where(live, nll, 0.0), 1), 0))


@triton.jit
def _put(out, number, stride, value, live):
    tl.store(out + number * stride, rounded(value, out.dtype.element_ty), mask=live)


@triton.jit
def _put_coupled(
    out, k, o_k, live, components, g, top, total, joint_top, joint_total,
    logit, joint, d_0, s_0, c_0, d_1, s_1, c_1, d_2, s_2, c_2,
):  # fmt: skip
    share = g * tl.exp(joint - joint_top) / joint_total
    first = components + k
    _put(out, k, o_k, g * tl.exp(logit - top) / total - share, live)
    _put(out, first, o_k, share * d_0, live)
    _put(out, first + components, o_k, -share * s_0, live)
    _put(out, first + 2 * components, o_k, share * c_0, live)
    _put(out, first + 3 * components, o_k, share * d_1, live)
    _put(out, first + 4 * components, o_k, -share * s_1, live)
    _put(out, first + 5 * components, o_k, share * c_1, live)
    _put(out, first + 6 * components, o_k, share * d_2, live)
    _put(out, first + 7 * components, o_k, -share * s_2, live)
    _put(out, first + 8 * components, o_k, share * c_2, live)


@triton.jit
def _put_single(
    out, k, o_k, live, components, g, top, total, joint_top, joint_total, logit, joint, d, s
):
    share = g * tl.exp(joint - joint_top) / joint_total
    _put(out, k, o_k, g * tl.exp(logit - top) / total - share, live)
    _put(out, components + k, o_k, share * d, live)
    _put(out, 2 * components + k, o_k, -share * s, live)


@triton.jit
def _dmol_nll_backward_kernel(
    grad, params, x, out, pixels, components, colors, levels, log_bin: tl.float64,
    g_b, g_p, p_b, p_k, p_c, p_p, x_b, x_c, x_p, o_b, o_k, o_c, o_p,
    COUPLED: tl.constexpr, EXACT: tl.constexpr, ONCE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = tl.float64 if params.dtype.element_ty == tl.float64 else tl.float32
    b, _, p = _tile(pixels, WIDE, BLOCK_P)
    if WIDE:
        p_k, p_c, x_c, o_k, o_c = _wide(p_k), _wide(p_c), _wide(x_c), _wide(o_k), _wide(o_c)
    live = p < pixels
    last, log_bin = (levels - 1).to(compute), scalar(log_bin, compute)
    at, x_at = params + b * p_b + p * p_p, x + b * x_b + p * x_p
    out += b * o_b + p * o_p
    g = load(grad + b * g_b + p * g_p, live).to(compute)
    empty = tl.full((BLOCK_P, 1), -float("inf"), compute)
    nothing = tl.zeros((BLOCK_P, 1), dtype=compute)
    if COUPLED:
        level_0, fits_0 = _level(x_at, live, levels, compute)
        level_1, fits_1 = _level(x_at + x_c, live, levels, compute)
        level_2, fits_2 = _level(x_at + 2 * x_c, live, levels, compute)
        g = tl.where(fits_0 & fits_1 & fits_2, g, float("nan"))
        if not ONCE:
            top, total, joint_top, joint_total = _coupled_sums(
                at, p_k, live, components, level_0, level_1, level_2, last, log_bin, EXACT,
                False, compute, BLOCK_P, BLOCK_K,
            )  # fmt: skip
        for first in range(0, BLOCK_K if ONCE else components, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)[None, :]
            has_k = live & (k < components)
            logit, joint, d_0, s_0, c_0, d_1, s_1, c_1, d_2, s_2, c_2 = _coupled(
                at, k, p_k, has_k, components, level_0, level_1, level_2, last, log_bin, EXACT,
                compute,
            )  # fmt: skip
            if ONCE:
                top, total = _add_exp(empty, nothing, logit)
                joint_top, joint_total = _add_exp(empty, nothing, joint)
            _put_coupled(
                out, k, o_k, has_k, components, g, top, total, joint_top, joint_total,
                logit, joint, d_0, s_0, c_0, d_1, s_1, c_1, d_2, s_2, c_2,
            )  # fmt: skip
    else:
        for color in range(colors):
            level, fits = _level(x_at + color * x_c, live, levels, compute)
            here = tl.where(fits, g, float("nan"))
            if not ONCE:
                top, total, joint_top, joint_total = _single_sums(
                    at + color * p_c, p_k, live, components, level, last, log_bin, EXACT, False,
                    compute, BLOCK_P, BLOCK_K,
                )  # fmt: skip
            for first in range(0, BLOCK_K if ONCE else components, BLOCK_K):
                k = first + tl.arange(0, BLOCK_K)[None, :]
                has_k = live & (k < components)
                logit, joint, d, s = _single(
                    at + color * p_c, k, p_k, has_k, components, level, last, log_bin, EXACT,
                    compute,
                )  # fmt: skip
                if ONCE:
                    top, total = _add_exp(empty, nothing, logit)
                    joint_top, joint_total = _add_exp(empty, nothing, joint)
                _put_single(
                    out + color * o_c, k, o_k, has_k, components, here,
                    top, total, joint_top, joint_total, logit, joint, d, s,
                )  # fmt: skip


def _spread(params, colors, coupled, channels_last):
    """Parameters as (B, number, colour or 1, H, W)."""
    if channels_last:
        params = params.movedim(-1, 1)
        return params.unsqueeze(2) if coupled else params.unflatten(1, (-1, colors))
    return params.unsqueeze(2) if coupled else params


class _Call:
    """What both kernels are launched with."""

    def __init__(self, params, x, components, coupled, levels, exact, channels_last, backward):
        image = x.movedim(-1, 1) if channels_last else x
        colors = image.shape[1]
        self.spread = lambda t: _spread(t, colors, coupled, channels_last)
        self.params, self.x = self.spread(params).flatten(3), image.flatten(2)
        self.numbers = (components, colors, levels, math.log(2 / (levels - 1)))
        self.flags = {"COUPLED": coupled and colors == 3, "EXACT": exact}
        _, number, _, pixel = self.params.stride()
        is_double = params.dtype.itemsize == 8
        if number < pixel and self.params.shape[3] > 1:
            columns = min(COLUMNS, triton.next_power_of_2(components))
            pixels = (256 if is_double else 512) // columns
            self.tile = {"BLOCK_P": pixels, "BLOCK_K": columns, "num_warps": 8 if is_double else 4}
        else:  # four pixels for each of 32 threads: registers do not suffice for eight halves
            pixels = 32 if is_double and backward else 128
            self.tile = {"BLOCK_P": pixels, "BLOCK_K": 1, "num_warps": 2 if is_double else 1}
            if not (backward and exact):  # else the assembler aims at 96, and spills to get there
                self.tile["maxnreg"] = 255
        self.flags["ONCE"] = self.tile["BLOCK_K"] >= components
        self.batch, self.pixels = self.x.shape[0], self.x.shape[2]
        self.tiles = triton.cdiv(self.pixels, self.tile["BLOCK_P"])
        self.grid = (self.batch * self.tiles,)


def dmol_nll(params, x, components, coupled, levels, exact, channels_last, per_pixel):
    """(B,) or (B, H, W); see fastgen.dmol_nll. A pixel outside the levels makes its sample NaN."""
    spatial = x.shape[1:3] if channels_last else x.shape[2:]
    shape = (len(x), *spatial) if per_pixel else (len(x),)
    dtype = accumulation_dtype(params)
    if params.numel() == 0:
        return params.new_zeros(shape, dtype=dtype)
    call = _Call(params, x, components, coupled, levels, exact, channels_last, False)
    out = params.new_empty(shape if per_pixel else (call.tiles, len(x)), dtype=dtype)
    with on_device_of(params):
        _dmol_nll_kernel[call.grid](
            call.params, call.x, out, call.batch, call.pixels, *call.numbers,
            *call.params.stride(), *call.x.stride(), **call.flags, PER_PIXEL=per_pixel,
            WIDE=needs_int64(call.params[0], call.x[0]), **call.tile, **OPTIONS,
        )  # fmt: skip
    return out if per_pixel else add_parts(out)


def dmol_nll_backward(
    grad_nll, params, x, components, coupled, levels, exact, channels_last, per_pixel
):
    """The gradient of the parameters, in their format."""
    grad_params = empty_in_format_of(params, params.shape)
    if params.numel() == 0:
        return grad_params
    call = _Call(params, x, components, coupled, levels, exact, channels_last, True)
    spread = call.spread(grad_params)
    out = spread.flatten(3)
    grad = grad_nll.reshape(call.batch, -1)
    g_p = grad.stride(1) if per_pixel else 0
    with on_device_of(params):
        _dmol_nll_backward_kernel[call.grid](
            grad, call.params, call.x, out, call.pixels, *call.numbers, grad.stride(0), g_p,
            *call.params.stride(), *call.x.stride(), *out.stride(), **call.flags,
            WIDE=needs_int64(call.params[0], call.x[0], out[0]), **call.tile, **OPTIONS,
        )  # fmt: skip
    try:
        spread.view(out.shape)
    except RuntimeError:  # the strides forbid it, and kernels wrote into a copy
        spread.copy_(out.view(spread.shape))
    return grad_params
