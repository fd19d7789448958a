"""Reductions, running sums and softmax."""

import math

import numpy as np

from fastgen.sampling.build import LOW
from fastgen.sampling.products import cumulative_sum
from fastgen.sampling.rules.arithmetic import BINARY
from fastgen.sampling.rules.forms import truth
from fastgen.sampling.rules.registry import DECOMPOSE, rule


def _axes(dims, ndim):
    if dims is None or (isinstance(dims, (list, tuple)) and not len(dims)):
        return list(range(ndim))
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    return [d % ndim for d in dims] if ndim else []


def row_matrix(x, axes):
    """(rows, L): the reduced axes last, and the shape of the others."""
    kept = [i for i in range(x.ndim) if i not in axes]
    moved = x.transpose(kept + axes)
    shape = moved.shape[: len(kept)]
    return moved.reshape(math.prod(shape), -1), shape


def reduced(t, a, function, x=None, axes=None, keepdim=None, **args):
    x = t.addresses(a.self) if x is None else x
    axes = _axes(getattr(a, "dim", None), x.ndim) if axes is None else axes
    keepdim = getattr(a, "keepdim", False) if keepdim is None else keepdim
    matrix, shape = row_matrix(x, axes)
    found = t.builder.reduction(function, matrix, **args)
    if keepdim:
        shape = [1 if i in axes else size for i, size in enumerate(x.shape)]
    return found.reshape(shape)


@rule("sum", "mean", "amax", "amin", "prod")
def _reduction(t, a):
    return reduced(t, a, t.func._schema.name.split("::")[1])


@rule("max", "min")
def _maximum(t, a):
    name = t.func._schema.name.split("::")[1]
    if getattr(a, "other", None) is not None:
        whole = {"max": "maximum", "min": "minimum"}[name]
        return t.builder.pointwise(BINARY[whole], t.operand(a.self), t.operand(a.other))
    found = reduced(t, a, f"a{name}")
    return [found, None] if hasattr(a, "dim") else found


@rule("aminmax")
def _aminmax(t, a):
    return [reduced(t, a, "amin"), reduced(t, a, "amax")]


@rule("any", "all")
def _any(t, a):
    holds = t.builder.pointwise(truth, t.addresses(a.self))
    return reduced(t, a, "amax" if "any" in t.func._schema.name else "amin", holds)


@rule("var", "std", "var_mean", "std_mean")
def _variance(t, a):
    name = t.func._schema.name.split("::")[1]
    correction = getattr(a, "correction", None)
    if correction is None:
        correction = 0 if getattr(a, "unbiased", None) is False else 1
    found = reduced(t, a, "variance", correction=float(correction))
    if name.startswith("std"):
        found = t.builder.pointwise(lambda x: ("sqrt", x), found)
    return [found, reduced(t, a, "mean")] if name.endswith("mean") else found


@rule("linalg_vector_norm", "norm")
def _norm(t, a):
    order = getattr(a, "ord", getattr(a, "p", 2))
    order = 2 if order is None else order
    x = t.addresses(a.self)
    if order in (math.inf, 1):
        magnitude = t.builder.pointwise(lambda v: ("abs", v), x)
        return reduced(t, a, "sum" if order == 1 else "amax", magnitude)
    if order != 2:
        return DECOMPOSE
    total = reduced(t, a, "sum", t.builder.pointwise(lambda v: ("mul", v, v), x))
    return t.builder.pointwise(lambda v: ("sqrt", v), total)


@rule("logsumexp")
def _logsumexp(t, a):
    x = t.addresses(a.self)
    axes = _axes(a.dim, x.ndim)
    high = reduced(t, a, "amax", x, axes, True)
    powers = t.builder.pointwise(lambda v, m: ("exp", ("sub", v, m)), x, high)
    total = reduced(t, a, "sum", powers, axes, True)
    found = t.builder.pointwise(lambda v, m: ("add", ("log", v), m), total, high)
    return found if a.keepdim else found.squeeze(tuple(axes))


@rule("cumsum")
def _cumsum(t, a):
    x = t.addresses(a.self)
    return cumulative_sum(t.builder, x, a.dim % x.ndim)


@rule("_softmax", "softmax", "_safe_softmax")
def _softmax(t, a):
    safe = "_safe" in t.func._schema.name
    return along(t, t.addresses(a.self), a.dim, lambda rows: _softmax_rows(t, rows, safe))


@rule("_log_softmax", "log_softmax")
def _log_softmax(t, a):
    def rows(matrix):
        return t.builder.row("log_softmax", matrix, matrix.shape[1])

    return along(t, t.addresses(a.self), a.dim, rows)


def along(t, x, axis, function):
    moved = np.moveaxis(x, axis, -1)
    out = function(moved.reshape(-1, moved.shape[-1]))
    return np.moveaxis(out.reshape(moved.shape), -1, axis)


def _softmax_rows(t, rows, safe):
    """Entries filled with very little get exactly 0, as long as their row has another."""
    builder = t.builder
    is_constant, value = builder.graph.constant(rows)
    low = is_constant & (value <= LOW)
    low |= builder.fills(rows) <= LOW
    live = ~low
    out = np.zeros(rows.shape, np.int64)
    fixed = is_constant.all(1)
    if fixed.any():
        with np.errstate(all="ignore"):
            powers = np.exp(value[fixed] - value[fixed].max(1, keepdims=True))
            found = powers / powers.sum(1, keepdims=True)
        if safe:
            found = np.nan_to_num(found)
        out[fixed] = builder.constants(found)
    rest = ~fixed
    if rest.any():
        dropped = low[rest] & live[rest].any(1)[:, None]
        sources = np.where(dropped, -1, rows[rest])
        alone = (sources >= 0).sum(1) == 1  # gets 1, whatever it is
        found = np.where(sources >= 0, builder.constants(np.float64(1)), 0)
        if not alone.all():
            found[~alone] = builder.row("softmax", sources[~alone], rows.shape[1])
        out[rest] = np.where(dropped, 0, found)
    return out
