"""Normalisation layers."""

import numpy as np

from fastgen.sampling.rules.reductions import row_matrix
from fastgen.sampling.rules.registry import rule


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "batch_norm",
)
def _batch_norm(t, a):
    x = t.addresses(a.input)
    if getattr(a, "training", False) or a.running_mean is None:
        # so does an instance norm say what it wants: one "channel" for each of an image's
        rows = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
        eps = getattr(a, "eps", None) or a.epsilon
        found = _normalised(t, rows, eps)
        moved = np.moveaxis(x, 1, 0).shape
        found = np.moveaxis(found.reshape(moved), 0, 1)
        return [_affine(t, found, a.weight, a.bias), None, None]
    scale = 1 / np.sqrt(t.value(a.running_var) + a.eps)
    if a.weight is not None:
        scale = scale * t.value(a.weight)
    shift = -t.value(a.running_mean) * scale
    if a.bias is not None:
        shift = shift + t.value(a.bias)
    found = t.builder.pointwise(
        lambda v, c, d: ("add", ("mul", v, c), d),
        x,
        _per_channel(scale, x.ndim),
        _per_channel(shift, x.ndim),
    )
    return [found, None, None]


@rule("native_layer_norm")
def _layer_norm(t, a):
    x = t.addresses(a.input)
    axes = list(range(x.ndim - len(a.normalized_shape), x.ndim))
    matrix, _ = row_matrix(x, axes)
    weight, bias = (None if v is None else t.value(v).reshape(-1) for v in (a.weight, a.bias))
    found = t.builder.row(
        "layer_norm", matrix, matrix.shape[1], eps=float(a.eps), weight=weight, bias=bias
    )
    return [found.reshape(x.shape), None, None]


@rule("native_group_norm")
def _group_norm(t, a):
    x = t.addresses(a.input)
    found = _normalised(t, x.reshape(a.N * a.group, -1), a.eps).reshape(x.shape)
    return [_affine(t, found, a.weight, a.bias), None, None]


def _normalised(t, rows, eps):
    """Each row by its own mean and variance; spatial ones have no order to compute them in."""
    ready = t.builder.graph.ready(rows)
    if (ready != ready[:, :1]).any():
        t.refuse(
            "normalises over positions that are drawn at different times",
            "normalise over channels only (LayerNorm), or use BatchNorm in eval mode",
        )
    return t.builder.row("layer_norm", rows, rows.shape[1], eps=float(eps), weight=None, bias=None)


def _affine(t, x, weight, bias):
    if weight is None and bias is None:
        return x
    scale = np.float64(1) if weight is None else _per_channel(t.value(weight), x.ndim)
    shift = np.float64(0) if bias is None else _per_channel(t.value(bias), x.ndim)
    return t.builder.pointwise(lambda v, c, d: ("add", ("mul", v, c), d), x, scale, shift)


def _per_channel(values, dims):
    return np.asarray(values, np.float64).reshape(1, -1, *[1] * (dims - 2))
