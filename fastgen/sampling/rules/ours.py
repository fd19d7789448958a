"""The ops of this library: by what they compute, not by how."""

import numpy as np

from fastgen.sampling.rules.convolution import convolution
from fastgen.sampling.rules.registry import rule


def _masked_weight(t, a):
    """The weight with exact zeros under the mask of a tap plan."""
    weight, taps, partial = (t.value(v) for v in (a.weight, a.taps, a.partial))
    masked = np.zeros_like(weight)
    for ky, kx, p in taps[1 : 1 + int(taps[0, 0])].astype(int):
        mask = True if p < 0 else partial[p] != 0
        masked[:, :, ky, kx] = np.where(mask, weight[:, :, ky, kx], 0)
    return masked


@rule("fastgen::masked_conv2d")
def _masked_conv2d(t, a):
    weight = _masked_weight(t, a)
    dilation = list(a.dilation)
    padding = [d * (k // 2) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    bias = None if a.bias is None else t.value(a.bias)
    x = t.addresses(a.x)
    return convolution(t, x, weight, bias, [1, 1], padding, dilation, False, [0, 0], 1)


@rule("fastgen::gated_activation")
def _gated_activation(t, a):
    return _gate(t, t.addresses(a.x), a.condition)


def _gate(t, x, condition):
    a, b = np.split(x, 2, axis=1)
    if condition is None:
        return t.builder.pointwise(lambda p, q: ("mul", ("tanh", p), ("sigmoid", q)), a, b)
    spread = t.operand(condition)
    spread = spread.reshape(spread.shape + (1,) * (x.ndim - spread.ndim))
    c, d = np.split(spread, 2, axis=1)
    return t.builder.pointwise(
        lambda p, q, r, s: ("mul", ("tanh", ("add", p, r)), ("sigmoid", ("add", q, s))), a, b, c, d
    )


@rule("fastgen::gated_masked_conv2d")
def _gated_masked_conv2d(t, a):
    pre = _masked_conv2d(t, a)
    return [_gate(t, pre, a.condition), pre]
