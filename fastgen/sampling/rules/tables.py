"""Looking values up by codes: embeddings, palettes, one-hot vectors."""

import numpy as np
import torch

from fastgen.sampling.rules.movement import move
from fastgen.sampling.rules.registry import rule


def _table(t, value):
    if not t.is_constant(value):
        t.refuse("looks codes up in a table that is not constant", "index a constant table")
    return t.value(value)


@rule("embedding")
def _embedding(t, a):
    return _looked_up(t, _table(t, a.weight), a.indices)


def _looked_up(t, table, index):
    found = t.addresses(index)
    rows = t.builder.lookup(found.reshape(-1), table.reshape(len(table), -1))
    return rows.reshape(*found.shape, *table.shape[1:])


@rule("index")
def _index(t, a):
    traced = [i for i, index in enumerate(a.indices) if index is not None]
    if all(t.is_constant(a.indices[i]) for i in traced):
        return move(t, a)
    if len(traced) != 1:
        t.refuse("indexes by several computed indices", "combine them into one")
    axis = traced[0]
    table = np.moveaxis(_table(t, a.self), axis, 0)
    found = _looked_up(t, table, a.indices[axis])
    dims = a.indices[axis].dim()
    return np.moveaxis(found, range(dims), range(axis, axis + dims))


@rule("index_select")
def _index_select(t, a):
    if t.is_constant(a.index):
        return move(t, a)
    table = np.moveaxis(_table(t, a.self), a.dim, 0)
    return np.moveaxis(_looked_up(t, table, a.index.reshape(-1)), 0, a.dim)


@rule("scatter")
def _scatter(t, a):
    if t.is_constant(a.index):
        return move(t, a)
    base = _table(t, a.self)
    value = t.value(a.src if hasattr(a, "src") else a.value)
    shape = list(a.self.shape)
    shape[a.dim] = 1
    fits = (base == 0).all() and list(a.index.shape) == shape and (value == value.flat[0]).all()
    if not fits or getattr(a, "reduce", None) is not None:
        t.refuse("scatters to places that depend on codes", "only one-hot encodings are supported")
    return one_hot(t, t.addresses(a.index), a.dim, a.self.shape[a.dim], value.flat[0])


def one_hot(t, index, axis, levels, value=1.0):
    """index: addresses with size 1 along axis."""
    lead = np.moveaxis(index, axis, -1)[..., 0]
    found = t.builder.lookup(lead.reshape(-1), np.eye(levels) * value)
    return np.moveaxis(found.reshape(*lead.shape, levels), -1, axis)


@rule("eq")
def _eq(t, a):
    found = _one_hot_by_comparison(t, a.self, a.other)
    if found is None:
        found = t.builder.pointwise(
            lambda x, y: ("eq", x, y), t.operand(a.self), t.operand(a.other)
        )
    return found


def _one_hot_by_comparison(t, codes, levels):
    """codes[..., None] == arange, where the codes are drawn ones: a lookup, which a convolution
    behind it can use; else None."""
    if not isinstance(levels, torch.Tensor) or not isinstance(codes, torch.Tensor):
        return None
    if t.is_constant(codes):
        codes, levels = levels, codes
    if not t.is_constant(levels) or levels.numel() < t.levels or levels.numel() == 1:
        return None
    count = levels.numel()
    wide = [i for i in range(-levels.dim(), 0) if levels.shape[i] > 1]
    if len(wide) != 1 or (t.value(levels).reshape(-1) != np.arange(count)).any():
        return None
    axis = wide[0]
    if codes.dim() < -axis or codes.shape[axis] != 1:
        return None
    addresses = t.addresses(codes)
    if any(node.kind != "code" for node, _, _ in t.builder.graph.decode(addresses)):
        return None
    padded = addresses.reshape((1,) * (levels.dim() - addresses.ndim) + addresses.shape)
    return one_hot(t, padded, axis, count)
