"""Elementwise functions: elements become cells, as few and as whole ones as can be.

Elements are taken as rows (positions) of columns (channels). Columns are cut where an operand stops
being a run or one scalar, rows are grouped by the nodes their operands lie in.
"""

import numpy as np

from fastgen.sampling.evaluate import evaluate, operand_numbers, renumbered, simplified
from fastgen.sampling.graph import LEAVES

_MANY_SEGMENTS = 8  # an operand in more pieces than this is gathered into fresh cells
_MANY_GROUPS = 16  # combinations of nodes, beyond which they are read by one node after all


def pointwise(builder, function, *args):
    """Addresses of function(*args), elementwise with broadcasting.

    args: int64 arrays are addresses; float arrays and numbers are values.
    function: leaves to an expression of graph.py.
    """
    shape = np.broadcast_shapes(*(np.shape(arg) for arg in args))
    if 0 in shape:
        return np.zeros(shape, np.int64)
    axis = builder.channel_axis([a for a in args if _is_addresses(a)], shape)
    moved = [shape[i] for i in range(len(shape)) if i != axis]
    q = 1 if axis is None else shape[axis]
    rows = [_as_rows(arg, shape, axis, q) for arg in args]
    out = _pointwise_rows(builder, function, rows, q)
    if axis is None:
        return out.reshape(shape)
    return np.moveaxis(out.reshape(*moved, q), -1, axis)


def _pointwise_rows(builder, function, rows, q):
    """rows: numbers, values (n or 1, q), addresses (n, q)."""
    which = [i for i, row in enumerate(rows) if _is_addresses(row)]
    if not which:
        return builder.constants(evaluate(function(*(_value_leaf(row) for row in rows))))
    n = len(rows[which[0]])
    constants = {}  # values of what is constant among the addresses
    for i in which:
        own = builder.as_runs(rows[i]) if len(which) > 1 else rows[i]
        rows[i], constants[i] = builder.split_constants(own)
    order = _column_order([rows[i] for i in which], q)
    out = np.zeros((n, q), np.int64)
    for columns in builder.regular_columns([rows[i][:, order] for i in which], q):
        columns = order[columns]
        part = [_columns(row, columns) for row in rows]
        held = {i: _columns(values, columns) for i, values in constants.items()}
        segments = builder.segments([part[i] for i in which])
        if len(segments) > _MANY_SEGMENTS:
            for i in which:
                if len(builder.segments([part[i]])) > _MANY_SEGMENTS:
                    part[i] = builder.gathered(part[i])
            segments = builder.segments([part[i] for i in which])
        for start, stop, runs in segments:
            own = slice(start, stop)
            out[:, columns[own]] = _segment(
                builder,
                function,
                [_columns(row, own) for row in part],
                {i: _columns(values, own) for i, values in held.items()},
                dict(zip(which, runs, strict=True)),
                n,
                stop - start,
            )
    return out


def _columns(row, columns):
    return row[:, columns] if isinstance(row, np.ndarray) else row


def _column_order(matrices, q):
    """Columns by the addresses in the fullest row of an operand that differs along them."""
    for matrix in matrices:
        row = matrix[int((matrix != 0).sum(1).argmax())] if (matrix == 0).any() else matrix[0]
        if (row != row[0]).any():
            return np.argsort(row, kind="stable")
    return np.arange(q)


def _segment(builder, function, rows, values, runs, n, q):
    """One node for each combination of nodes the operands lie in; (n, q) addresses."""
    which = list(runs)
    first = {i: np.broadcast_to(rows[i][:, 0], (n,)) for i in which}
    held = {i: None if values[i] is None else np.broadcast_to(values[i], (n, q)) for i in which}
    keys = np.stack([builder.graph.node_index(first[i]) for i in which], 1)
    out = np.zeros((n, q), np.int64)
    for group in _row_groups(builder, function, rows, which, keys):
        every = len(group) == n
        part = []
        for i, row in enumerate(rows):
            if isinstance(row, float):
                part.append(row)
            elif i not in runs:
                part.append(row if len(row) == 1 or every else row[group])
            else:
                own = first[i][group]
                constant = None if held[i] is None else held[i][group]
                if (own == 0).all():
                    part.append(np.zeros((1, q)) if constant is None else constant)
                    continue
                if constant is not None and (constant != 0).any():
                    own = _filled(builder, own, constant if runs[i] else constant[:, :1])
                part.append((own, runs[i]))
        out[group] = _emit(builder, function, part, len(group), q)
    return out


def _filled(builder, first, constant):
    """Cells of constants where there are no others."""
    absent = first == 0
    filled = first.copy()
    filled[absent] = builder.constant_rows(constant[absent])
    return filled


def _row_groups(builder, function, rows, which, keys):
    """Rows by the nodes they read. Rows in which an operand is a constant join those that
    differ in nothing else, unless the result is a constant without it: one node for a padded
    map, not one more for its border."""
    if (keys == keys[:1]).all():
        return [np.arange(len(keys))]
    distinct, group_of = np.unique(keys, axis=0, return_inverse=True)
    group_of = group_of.reshape(-1)
    target = np.arange(len(distinct))
    fixed = (distinct < 0).all(1)  # constants whatever the others are
    for g in np.argsort((distinct >= 0).sum(1), kind="stable"):
        absent = distinct[g] < 0
        if not absent.any() or absent.all():
            continue
        leaves = [("num", r) if isinstance(r, float) else ("op", i, 0) for i, r in enumerate(rows)]
        for i, missing in zip(which, absent, strict=True):
            if missing:
                leaves[i] = ("num", 0.0)
        if not operand_numbers(simplified(function(*leaves))):
            fixed[g] = True
            continue
        fits = (distinct[:, ~absent] == distinct[g, ~absent]).all(1)
        fits &= (distinct >= 0).sum(1) > (~absent).sum()
        if fits.any():
            target[g] = np.flatnonzero(fits)[np.argmax((distinct[fits] >= 0).sum(1))]
    for _ in range(len(which)):
        target = target[target]
    if len(np.unique(target)) > _MANY_GROUPS:
        target = np.where(fixed, target, target[~fixed][0])
    group_of = target[group_of]
    return [np.flatnonzero(group_of == g) for g in np.unique(group_of)]


def _emit(builder, function, part, n, q):
    """part: numbers, values (n or 1, q), or (first addresses (n,), whether a run)."""
    numbers = [i for i, p in enumerate(part) if isinstance(p, tuple)]
    values = {}
    for i, p in enumerate(part):
        if isinstance(p, np.ndarray):
            values[i] = p[:1] if len(p) > 1 and rows_equal(p) else p
    if not numbers:
        leaves = [_value_leaf(values.get(i, p)) for i, p in enumerate(part)]
        return builder.constants(np.broadcast_to(evaluate(function(*leaves)), (n, q)))
    operands, leaves = [], []
    for i, p in enumerate(part):
        if isinstance(p, float):
            leaves.append(("num", p))
            continue
        if i in values and len(values[i]) == 1:
            row = values[i][0]
            alike = (row == row[0]).all()
            leaves.append(("num", float(row[0])) if alike else ("val", np.array(row)))
            continue
        if i in values:
            p = (builder.constant_rows(values[i]), True)
        leaves.append(("op", len(operands), 0))
        operands.append(p)
    expr = simplified(function(*leaves))
    used = operand_numbers(expr)
    if not used:
        return builder.constants(np.broadcast_to(evaluate(expr), (n, q)))
    operands = [operands[i] for i in used]
    expr = renumbered(expr, used)
    if expr[0] == "op":
        first, run = operands[0]
        return np.where(first == 0, 0, first)[:, None] + (
            (first != 0)[:, None] * np.arange(q) if run else np.zeros(q, np.int64)
        )
    keep, inverse = _distinct_rows([first for first, _ in operands])
    operands = [(np.ascontiguousarray(first[keep]), not run and q > 1) for first, run in operands]
    return _map_node(builder, expr, operands, len(keep), q)[inverse]


def _map_node(builder, expr, operands, n, q):
    """Addresses of a map; the same one if it was computed before, as when two layers apply an
    activation to the same tensor."""
    key = (n, q, _hashable(expr), *((hash(first.tobytes()), one) for first, one in operands))
    node = builder.maps.get(key)
    same = node is not None and all(
        np.array_equal(first, other)
        for (first, _), (other, _) in zip(operands, node.operands, strict=True)
    )
    if not same:
        ready = np.max([builder.graph.ready(first) for first, _ in operands], axis=0)
        node = builder.add("map", n, q, ready, operands=operands, expr=expr)
        builder.maps[key] = node
    return builder.graph.addresses(node)


def _is_addresses(arg):
    return isinstance(arg, np.ndarray) and arg.dtype == np.int64


def _as_rows(arg, shape, axis, q):
    """Number, values (n or 1, q), or addresses (n, q)."""
    if not _is_addresses(arg):
        arg = np.asarray(arg, np.float64)
        if arg.size == 1:
            return float(arg.reshape(()))
        padded = arg.reshape((1,) * (len(shape) - arg.ndim) + arg.shape)
        others = [size for i, size in enumerate(padded.shape) if i != axis]
        if axis is not None and all(size == 1 for size in others):
            return np.broadcast_to(padded.reshape(1, -1), (1, q))
    arg = np.broadcast_to(arg, shape)
    return (arg if axis is None else np.moveaxis(arg, axis, -1)).reshape(-1, q)


def _value_leaf(value):
    return ("num", value) if isinstance(value, float) else ("val", value)


def rows_equal(values):
    return bool(((values == values[:1]) | (np.isnan(values) & np.isnan(values[:1]))).all())


def _distinct_rows(firsts):
    """(index of one of each distinct row, in the order of addresses; where each row went)"""
    n = len(firsts[0])
    if n == 1 or any((np.diff(f) > 0).all() for f in firsts):
        return np.arange(n), np.arange(n)
    key = max(firsts, key=lambda f: len(np.unique(f))) if len(firsts) > 1 else firsts[0]
    order = np.lexsort([f for f in firsts if f is not key] + [key])
    differs = np.zeros(n - 1, bool)
    for f in firsts:
        differs |= np.diff(f[order]) != 0
    number = np.concatenate([[0], np.cumsum(differs)])
    inverse = np.empty(n, np.int64)
    inverse[order] = number
    return order[np.concatenate([[True], differs])], inverse


def _hashable(expr):
    if expr[0] == "val":
        return ("val", expr[1].tobytes())
    if expr[0] in LEAVES:
        return expr
    return (expr[0], *(_hashable(argument) for argument in expr[1:]))
