"""Convolutions, as linear nodes over the cells each position sees."""

import numpy as np
import torch
import torch.nn.functional as F

from fastgen.sampling.products import windows
from fastgen.sampling.rules.registry import rule


@rule("convolution", "_convolution", "convolution_overrideable")
def _convolution_rule(t, a):
    if not t.is_constant(a.weight) or not (a.bias is None or t.is_constant(a.bias)):
        t.refuse("has a weight that depends on codes or condition", "use matmul for such products")
    bias = None if a.bias is None else t.value(a.bias)
    return convolution(
        t,
        t.addresses(a.input),
        t.value(a.weight),
        bias,
        list(a.stride),
        list(a.padding),
        list(a.dilation),
        a.transposed,
        list(a.output_padding),
        a.groups,
    )


def convolution(t, x, weight, bias, stride, padding, dilation, transposed, extra, groups):
    """x: addresses (B, C, *space), or (C, *space); one or two spatial dimensions."""
    space = weight.ndim - 2
    if space not in (1, 2):
        t.refuse("has three spatial dimensions", "fold one into the channels")
    if x.ndim == space + 1:
        settings = (stride, padding, dilation, transposed, extra, groups)
        return convolution(t, x[None], weight, bias, *settings)[0]
    stride, padding, dilation, extra = (
        (list(v) * space)[:space] for v in (stride, padding, dilation, extra)
    )
    if space == 1:
        found = convolution(
            t,
            x[:, :, None],
            weight[:, :, None],
            bias,
            [1, *stride],
            [0, *padding],
            [1, *dilation],
            transposed,
            [0, *extra],
            groups,
        )
        return found[:, :, 0]
    if transposed:
        x = _spread(x, stride, extra)
        cin, per_group, *kernel = weight.shape
        weight = weight.reshape(groups, cin // groups, per_group, *kernel)
        weight = weight.transpose(0, 2, 1, 3, 4)[..., ::-1, ::-1]
        weight = weight.reshape(groups * per_group, cin // groups, *kernel)
        padding = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        x = _cropped(x, padding)
        padding, stride = [max(p, 0) for p in padding], [1, 1]
    outputs = weight.shape[0] // groups
    inputs = x.shape[1] // groups
    if groups > _FEW_GROUPS and inputs == 1:
        return _depthwise(t, x, weight, bias, stride, padding, dilation, outputs)
    found = []
    for first in range(0, groups, -(-groups // _FEW_GROUPS)):
        last = min(groups, first - (-groups // _FEW_GROUPS))
        own = slice(first * outputs, last * outputs)
        found.append(
            _dense_convolution(
                t,
                x[:, first * inputs : last * inputs],
                _block_diagonal(weight[own], last - first),
                None if bias is None else bias[own],
                stride,
                padding,
                dilation,
            )
        )
    return np.concatenate(found, 1)


# a node for each group, but for so many at most: nodes of few channels cost more than zeros do
_FEW_GROUPS = 4


def _block_diagonal(weight, groups):
    """One group's weight for a few of them."""
    outputs, inputs, *kernel = weight.shape
    own = outputs // groups
    whole = np.zeros((outputs, groups * inputs, *kernel))
    for group in range(groups):
        rows = slice(group * own, (group + 1) * own)
        whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return whole


def _depthwise(t, x, weight, bias, stride, padding, dilation, multiplier):
    """A sum of products over the taps, for all channels at once."""
    taps = windows(x, weight.shape[2:], stride, padding, dilation)
    channels, (batch, _, height, width) = x.shape[1], taps[0].shape
    out = np.zeros((batch, channels, multiplier, height, width), np.int64)
    for m in range(multiplier):
        own = weight[m::multiplier].reshape(channels, -1)
        factors = [own[:, i].reshape(1, -1, 1, 1) for i in range(len(taps))]
        read = [i for i in range(len(taps)) if factors[i].any()]
        start = np.zeros(channels) if bias is None else bias[m::multiplier]

        def total(first, *operands):
            found = first
            for value, factor in zip(operands[::2], operands[1::2], strict=True):
                found = ("add", found, ("mul", value, factor))
            return found

        operands = [part for i in read for part in (taps[i], factors[i])]
        shaped = start.reshape(1, -1, 1, 1)
        out[:, :, m] = np.broadcast_to(
            t.builder.pointwise(total, shaped, *operands) if read else t.builder.constants(shaped),
            out[:, :, m].shape,
        )
    return out.reshape(batch, channels * multiplier, height, width)


def _spread(x, stride, extra):
    """Zeros between the positions of x, and behind them."""
    *lead, height, width = x.shape
    size = [(n - 1) * s + 1 + e for n, s, e in zip((height, width), stride, extra, strict=True)]
    out = np.zeros((*lead, *size), np.int64)
    out[..., : size[0] - extra[0] : stride[0], : size[1] - extra[1] : stride[1]] = x
    return out


def _cropped(x, padding):
    """x without the borders that negative padding takes away."""
    top, left = (max(-p, 0) for p in padding)
    return x[..., top : x.shape[-2] - top, left : x.shape[-1] - left]


def _dense_convolution(t, x, weight, bias, stride, padding, dilation):
    batch, channels, *size = x.shape
    outputs, _, kh, kw = weight.shape
    free, constant = t.builder.split_constants(x)
    extra = None
    if constant is not None:
        kernel = torch.from_numpy(weight.copy())
        moved = F.conv2d(torch.from_numpy(constant), kernel, None, stride, padding, dilation)
        extra = moved.numpy().transpose(0, 2, 3, 1).reshape(-1, outputs)
    taps = []
    for first, columns in t.builder.taps(np.moveaxis(free, 1, -1).reshape(-1, channels)):
        plane = first.reshape(batch, *size)
        for i, seen in enumerate(windows(plane, (kh, kw), stride, padding, dilation)):
            taps.append((seen.reshape(-1), columns + i * channels))
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, (kh, kw), stride, strict=True)
    )
    matrix = weight.transpose(2, 3, 1, 0).reshape(kh * kw * channels, outputs)
    out = t.builder.linear_taps(taps, matrix, bias, extra, batch * height * width)
    return np.moveaxis(out.reshape(batch, height, width, outputs), -1, 1)
