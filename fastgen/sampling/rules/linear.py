"""Matrix products."""

import numpy as np

from fastgen.sampling.products import batch_product
from fastgen.sampling.rules.forms import num
from fastgen.sampling.rules.registry import DECOMPOSE, rule


@rule("addmm", "addmv", "addbmm", "baddbmm")
def _addmm(t, a):
    left = getattr(a, "mat1", getattr(a, "batch1", None))
    right = getattr(a, "mat2", getattr(a, "batch2", None))
    if left is None or t.func._schema.name.startswith("aten::addbmm"):
        return DECOMPOSE
    beta = 1 if a.beta is None else a.beta
    alpha = 1 if a.alpha is None else a.alpha
    x, y = t.operand(left), t.operand(right)
    if y.dtype == np.float64:
        y = y * alpha
    elif x.dtype == np.float64:
        x = x * alpha
    elif alpha != 1:
        x = t.builder.pointwise(lambda v: ("mul", v, num(alpha)), x)
    bias = t.operand(a.self) if beta != 0 else np.float64(0)
    one_bias = bias.dtype == np.float64 and (bias.ndim == 1 or 1 in bias.shape[-2:-1])
    if y.ndim == 2 and y.dtype == np.float64 and one_bias:
        row = np.broadcast_to(bias * beta, (1, y.shape[1]))[0]
        return t.builder.linear(x, y, row)
    found = matmul(t, x, y)
    if beta == 0:
        return found
    return _sum(t, found, t.builder.pointwise(lambda v: ("mul", v, num(beta)), bias))


def _sum(t, x, y):
    return t.builder.pointwise(lambda p, q: ("add", p, q), x, y)


def matmul(t, x, y):
    """(..., I, K) by (..., K, J), both with the same leading dimensions."""
    lead = x.shape[:-2]
    found = batch_product(t.builder, x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:]))
    return found.reshape(*lead, *found.shape[1:])


@rule("mm", "bmm")
def _mm(t, a):
    return matmul(t, t.operand(a.self), t.operand(a.mat2))


@rule("mv")
def _mv(t, a):
    return matmul(t, t.operand(a.self), t.operand(a.vec)[:, None])[:, 0]


@rule("dot")
def _dot(t, a):
    return matmul(t, t.operand(a.self)[None], t.operand(a.tensor)[:, None])[0, 0]


@rule("linear")
def _linear(t, a):
    x = t.addresses(a.input)
    bias = None if a.bias is None else t.value(a.bias)
    found = t.builder.linear(x.reshape(-1, x.shape[-1]), t.value(a.weight).T, bias)
    return found.reshape(*x.shape[:-1], -1)
