"""Linear nodes: which cells are read as whole runs, and which outputs belong together."""

import numpy as np

from fastgen.sampling.pointwise import rows_equal

_HOLE = 8  # so many unread channels in a row end a tap; fewer are read with weight zero
_ABSENT = 0.4  # fraction of absent taps from which positions are split by what they read


def linear(builder, matrix, weight, bias=None):
    """Addresses (P, M) of matrix @ weight + bias: addresses (P, K), float64 (K, M), (M,)."""
    matrix, constant = builder.split_constants(matrix)
    extra = None if constant is None else constant @ weight
    return linear_taps(builder, taps(builder, matrix), weight, bias, extra, len(matrix))


def taps(builder, matrix):
    """Columns of addresses (P, K) as [(addresses (P,), columns)]: runs of cells."""
    if not matrix.size:
        return []
    columns = np.flatnonzero((matrix != 0).any(0))
    if not len(columns):
        return []
    matrix = matrix[:, columns]
    fullest = int((matrix != 0).sum(1).argmax())
    row = matrix[fullest]
    if (np.diff(row) < 0).any():
        order = np.argsort(row, kind="stable")
        matrix, columns = matrix[:, order], columns[order]
    return [(np.ascontiguousarray(matrix[:, a]), columns[a:b]) for a, b in builder.runs(matrix)]


def linear_taps(builder, taps, weight, bias, extra, npos):
    """Addresses (P, M): one node for each class of outputs that become ready together, and of
    positions that read alike.

    taps: [(addresses (P,), rows of `weight` (K, M) for the run there)]. extra: (P, M) to add, or
    None.
    """
    outputs = weight.shape[1]
    out = np.zeros((npos, outputs), np.int64)
    bias = np.zeros(outputs) if bias is None else np.asarray(bias, np.float64)
    reads = np.zeros((outputs, len(taps)), bool)
    for t, (_, columns) in enumerate(taps):
        reads[:, t] = (weight[columns] != 0).any(0)
    ready = [builder.graph.ready(addresses) for addresses, _ in taps]
    for channels in _classes(reads, ready):
        own = _read_parts(taps, weight[:, channels])
        own_extra = None if extra is None else extra[:, channels]
        for positions in _position_classes(own, npos):
            out[np.ix_(positions, channels)] = _linear_node(
                builder,
                [(addresses[positions], rows) for addresses, rows in own],
                bias[channels],
                None if own_extra is None else own_extra[positions],
                len(positions),
            )
    return out


def _linear_node(builder, taps, bias, extra, npos):
    taps = [(addresses, rows) for addresses, rows in taps if (addresses != 0).any()]
    if extra is not None and rows_equal(extra):
        bias, extra = bias + extra[0], None
    if not taps:
        values = np.broadcast_to(bias, (npos, len(bias)))
        return builder.constants(values if extra is None else values + extra)
    ready = np.max([builder.graph.ready(addresses) for addresses, _ in taps], axis=0)
    node = builder.add(
        "linear",
        npos,
        len(bias),
        ready,
        taps=[(np.ascontiguousarray(addresses), len(rows)) for addresses, rows in taps],
        weight=np.concatenate([rows for _, rows in taps]),
        bias=np.array(bias, np.float64),
        adds=[] if extra is None else [builder.constant_rows(extra)],
        expr=("acc", 0),
    )
    return builder.graph.addresses(node)


def _classes(reads, ready):
    """Output channels by equal ready map. By zero pattern a weight that is zero by chance would
    split its channel off."""
    patterns, which = np.unique(reads, axis=0, return_inverse=True)
    which = which.reshape(-1)
    merged = {}
    for p, pattern in enumerate(patterns):
        read = np.flatnonzero(pattern)
        step = np.max([ready[t] for t in read], axis=0) if len(read) else np.zeros(0, np.int32)
        merged.setdefault(step.tobytes(), []).append(p)
    return [np.flatnonzero(np.isin(which, patterns)) for patterns in merged.values()]


def _read_parts(taps, weight):
    """[(addresses, rows of weight)] of the parts of the taps that have weights other than zero."""
    parts = []
    for addresses, columns in taps:
        rows = weight[columns]
        used = np.flatnonzero((rows != 0).any(1))
        if not len(used):
            continue
        cuts = np.flatnonzero(np.diff(used) > _HOLE)
        starts = used[np.concatenate([[0], cuts + 1])]
        stops = used[np.concatenate([cuts, [len(used) - 1]])] + 1
        for start, stop in zip(starts, stops, strict=True):
            shifted = np.where(addresses == 0, 0, addresses + start)
            parts.append((shifted, rows[start:stop]))
    return parts


def _position_classes(taps, npos):
    """Positions by the taps that are present, if many are not: the phases of an up-sampling layer,
    which have no tap in common. Positions at a border share some with the others."""
    everything = [np.arange(npos)]
    if not taps or not npos:
        return everything
    present = np.stack([addresses != 0 for addresses, _ in taps], 1)
    widths = np.array([len(rows) for _, rows in taps])
    if (present @ widths).mean() > (1 - _ABSENT) * widths.sum():
        return everything
    patterns, which = np.unique(present, axis=0, return_inverse=True)
    phases = []  # masks over taps, disjoint
    for pattern in patterns[patterns.any(1)]:
        joined = [phase for phase in phases if (phase & pattern).any()]
        phases = [phase for phase in phases if not (phase & pattern).any()]
        phases.append(np.logical_or.reduce([pattern, *joined]))
    if not phases:
        return everything
    phase_of = np.argmax(np.stack([(patterns & phase).any(1) for phase in phases]), 0)
    phase_of = phase_of[which.reshape(-1)]
    return [np.flatnonzero(phase_of == p) for p in np.unique(phase_of)]
