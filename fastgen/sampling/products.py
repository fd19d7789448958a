"""Products of two computed matrices, running sums, and windows, as addresses."""

import numpy as np

_FEW_SEGMENTS = 4  # a dot product over more pieces is taken of gathered cells


def batch_product(builder, a, b):
    """Addresses (N, I, J) of a @ b for a (N, I, K) and b (N, K, J), addresses or values."""
    if a.dtype == np.float64 and b.dtype == np.float64:
        return builder.constants(a @ b)
    if b.dtype == np.float64:
        return _by_constant(builder, a, b)
    if a.dtype == np.float64:
        if builder.run_fraction(b, -1) > builder.run_fraction(b, -2):
            return _mixed(builder, builder.constants(a), b)
        return _by_constant(builder, b.swapaxes(1, 2), a.swapaxes(1, 2)).swapaxes(1, 2)
    along_k = min(builder.run_fraction(a, -1), builder.run_fraction(b, -2))
    if a.shape[2] == 1:
        return builder.pointwise(lambda x, y: ("mul", x, y), a, b)
    if along_k < 0.5:
        if builder.run_fraction(b, -1) >= 0.5:
            return _mixed(builder, a, b)
        if builder.run_fraction(a, -2) >= 0.5:
            return _mixed(builder, b.swapaxes(1, 2), a.swapaxes(1, 2)).swapaxes(1, 2)
        # a gathered dot product would wait for cells whose weight is zero
        if (a == 0).any():
            return _mixed(builder, a, b)
        if (b == 0).any():
            return _mixed(builder, b.swapaxes(1, 2), a.swapaxes(1, 2)).swapaxes(1, 2)
    return _dots(builder, a, b)


def _by_constant(builder, a, b):
    n, i, k = a.shape
    if (b == b[:1]).all():
        return builder.linear(a.reshape(n * i, k), b[0]).reshape(n, i, -1)
    return np.stack([builder.linear(a[m], b[m]) for m in range(n)])


def _dots(builder, a, b):
    """Every entry by itself: a scalar product of two cells."""
    n, i, k = a.shape
    j = b.shape[2]
    left = _whole_cells(builder, a.reshape(n * i, k))
    right = _whole_cells(builder, b.swapaxes(1, 2).reshape(n * j, k))
    segments = builder.segments([left, right], scalars=False)
    if len(segments) > _FEW_SEGMENTS:
        left, right = (
            m if len(builder.runs(m)) == 1 else builder.gathered(m) for m in (left, right)
        )
        segments = [(0, k, None)]
    parts = []
    for start, stop, _ in segments:
        first = np.repeat(left[:, start].reshape(n, i, 1), j, 2).reshape(-1)
        second = np.repeat(right[:, start].reshape(n, 1, j), i, 1).reshape(-1)
        present = np.flatnonzero((first != 0) & (second != 0))
        out = np.zeros(n * i * j, np.int64)
        if len(present):
            first, second = first[present], second[present]
            ready = np.maximum(builder.graph.ready(first), builder.graph.ready(second))
            node = builder.add("dot", len(present), 1, ready, a=first, b=second, width=stop - start)
            out[present] = builder.graph.addresses(node)[:, 0]
        parts.append(out.reshape(n, i, j))
    total = parts[0]
    for part in parts[1:]:
        total = builder.pointwise(lambda x, y: ("add", x, y), total, part)
    return total


def _whole_cells(builder, matrix):
    """Rows with constants in them become cells of their own."""
    free, values = builder.split_constants(matrix)
    if values is None:
        return matrix
    matrix = matrix.copy()
    constant = (free == 0).all(1)
    first = builder.constant_rows(values[constant])
    run = first[:, None] + np.where(first[:, None] != 0, np.arange(matrix.shape[1]), 0)
    matrix[constant] = run
    mixed = (values != 0).any(1) & ~constant
    if mixed.any():
        matrix[mixed] = builder.gathered(matrix[mixed])
    return matrix


def _mixed(builder, weights, cells):
    """weights (N, I, K) @ cells (N, K, J), addresses, where rows of `cells` are runs: sums of whole
    cells. An entry whose weight is the zero address takes no part."""
    n, i, k = weights.shape
    j = cells.shape[2]
    rows = _whole_cells(builder, cells.reshape(n * k, j))
    flat = weights.reshape(n * i, k)
    is_constant, value = builder.graph.constant(flat)
    hopeless = (is_constant & np.isnan(value)).any(1)  # NaN whatever the cells are
    flat = np.where(hopeless[:, None], 0, flat)
    parts = []  # (columns, first addresses (n * k,))
    for columns in builder.regular_columns([rows], j):
        own = rows[:, columns]
        segments = builder.segments([own], scalars=False)
        if len(segments) > _FEW_SEGMENTS:
            own, segments = builder.gathered(own), [(0, len(columns), None)]
        parts.extend((columns[start:stop], own[:, start]) for start, stop, _ in segments)
    out = np.zeros((n * i, j), np.int64)
    weight_ready = builder.graph.ready(flat)
    for columns, first in parts:
        first = np.repeat(first.reshape(n, 1, k), i, 1).reshape(n * i, k)
        used = (flat != 0) & (first != 0)
        some = np.flatnonzero(used.any(1))
        if not len(some):
            continue
        read, taken = np.where(used, first, 0)[some], np.where(used, flat, 0)[some]
        ready = np.where(used[some], np.maximum(weight_ready[some], builder.graph.ready(read)), 0)
        most = used[some].sum(1).max()
        if most <= k // 2:
            order = np.argsort(~used[some], axis=1, kind="stable")[:, :most]
            read, taken = (np.take_along_axis(v, order, 1) for v in (read, taken))
        node = builder.add(
            "mix",
            len(some),
            len(columns),
            ready.max(1),
            weights=taken,
            cells=read,
        )
        out[np.ix_(some, columns)] = builder.graph.addresses(node)
    if hopeless.any():
        out[hopeless] = builder.constants(np.float64(np.nan))
    return out.reshape(n, i, j)


def cumulative_sum(builder, x, axis):
    channels = builder.channel_axis([x], x.shape)
    length = x.shape[axis]
    if channels is None or channels == axis:
        moved = np.moveaxis(x, axis, -1)
        found = builder.linear(moved.reshape(-1, length), np.triu(np.ones((length, length))))
        return np.moveaxis(found.reshape(moved.shape), -1, axis)
    moved = np.moveaxis(x, (axis, channels), (-2, -1))
    below = np.tril(np.ones((1, length, length)))
    flat = moved.reshape(-1, *moved.shape[-2:])
    weights = np.broadcast_to(builder.constants(below), (len(flat), length, length))
    found = _mixed(builder, weights, flat)
    return np.moveaxis(found.reshape(moved.shape), (-2, -1), (axis, channels))


def windows(x, kernel, stride, padding, dilation, fill=0):
    """For addresses (..., H, W), what each tap of a sliding window sees, in raster order of the
    taps: arrays (..., H', W')."""
    pads = [(0, 0)] * (x.ndim - 2) + [(p, p) for p in padding]
    x = np.pad(x, pads, constant_values=fill)
    height, width = (
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(x.shape[-2:], dilation, kernel, stride, strict=True)
    )
    return [
        x[
            ...,
            ky * dilation[0] : ky * dilation[0] + (height - 1) * stride[0] + 1 : stride[0],
            kx * dilation[1] : kx * dilation[1] + (width - 1) * stride[1] + 1 : stride[1],
        ]
        for ky in range(kernel[0])
        for kx in range(kernel[1])
    ]
