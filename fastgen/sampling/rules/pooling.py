"""Pooling, folding and smooth up-sampling."""

import functools
import math

import numpy as np
import torch

from fastgen.sampling.products import batch_product, windows
from fastgen.sampling.rules.forms import num
from fastgen.sampling.rules.movement import call_by_name
from fastgen.sampling.rules.registry import rule


@rule("avg_pool1d", "avg_pool2d")
def _average_pool(t, a):
    x = t.addresses(a.self)
    if x.ndim != 4 or a.ceil_mode or (any(a.padding) and not a.count_include_pad):
        return _weighted_sums(t, a)
    kernel, stride = pair(a.kernel_size), pair(a.stride or a.kernel_size)
    parts = windows(x, kernel, stride, pair(a.padding), (1, 1))
    divisor = getattr(a, "divisor_override", None) or len(parts)

    def mean(*operands):
        return ("mul", functools.reduce(lambda p, q: ("add", p, q), operands), num(1 / divisor))

    return t.builder.pointwise(mean, *parts)


@rule(
    "_adaptive_avg_pool2d",
    "adaptive_avg_pool1d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_bicubic2d",
)
def _weighted_sums(t, a):
    """Sums of positions with constant weights, the same for all channels."""
    x = t.addresses(a.self)
    spatial = 1 if "1d" in t.func._schema.name else 2
    lead, space = x.shape[:-spatial], x.shape[-spatial:]
    size = math.prod(space)
    one_each = torch.eye(size, dtype=torch.float64, device="cpu").reshape(size, 1, *space)
    out = call_by_name(t.func, {**vars(a), "self": one_each})
    weights = out.reshape(size, -1).T.numpy()
    cells = x.reshape(-1, lead[-1], size).swapaxes(1, 2)
    repeated = np.broadcast_to(weights, (len(cells), *weights.shape))
    found = batch_product(t.builder, np.ascontiguousarray(repeated), cells)
    return found.swapaxes(1, 2).reshape(*lead, *out.shape[2:])


@rule("col2im")
def _fold(t, a):
    x = t.addresses(a.self)
    kernel = list(a.kernel_size)
    padded = [n + 2 * p for n, p in zip(a.output_size, a.padding, strict=True)]
    height, width = (
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(padded, a.dilation, kernel, a.stride, strict=True)
    )
    taps = math.prod(kernel)
    x = x.reshape(-1, x.shape[-2] // taps, taps, height, width)
    parts = []
    for tap in range(taps):
        top, left = (tap // kernel[1]) * a.dilation[0], (tap % kernel[1]) * a.dilation[1]
        plane = np.zeros((*x.shape[:2], *padded), np.int64)
        rows = slice(top, top + (height - 1) * a.stride[0] + 1, a.stride[0])
        columns = slice(left, left + (width - 1) * a.stride[1] + 1, a.stride[1])
        plane[..., rows, columns] = x[:, :, tap]
        parts.append(plane)
    total = t.builder.pointwise(
        lambda *operands: functools.reduce(lambda p, q: ("add", p, q), operands), *parts
    )
    inside = [slice(p, p + n) for n, p in zip(a.output_size, a.padding, strict=True)]
    return total[(..., *inside)].reshape(*a.self.shape[:-2], -1, *a.output_size)


@rule("max_pool2d_with_indices", "max_pool2d")
def _max_pool(t, a):
    x = t.addresses(a.self)
    if a.ceil_mode:
        t.refuse("rounds the pooled size up", "pad the input, and use ceil_mode=False")
    kernel, stride = pair(a.kernel_size), pair(a.stride or a.kernel_size)
    low = int(t.builder.constants(np.float64(-np.inf)))
    parts = windows(x, kernel, stride, pair(a.padding), pair(a.dilation), low)

    def largest(*operands):
        return functools.reduce(lambda p, q: ("maximum", p, q), operands)

    return [t.builder.pointwise(largest, *parts), None]


def pair(value):
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * 2 if len(value) == 1 else value
