"""From arrays of addresses to nodes.

A rule of rules.py says what an ATen op does to the addresses of its operands; here the elements
become cells. Rows are positions and columns are channels throughout: an operand of a node has to be
a run (consecutive channels of one cell in every row, or absent), one scalar for all columns, or is
gathered into fresh cells first.
"""

import numpy as np

from fastgen.sampling.evaluate import (
    evaluate,
    operand_numbers,
    renumbered,
    row_value,
    simplified,
)
from fastgen.sampling.graph import LEAVES, Graph

LOW = -9999  # what is filled with this or less gets no weight in a softmax
_MANY_SEGMENTS = 8  # an operand in more pieces than this is gathered into fresh cells
_HOLE = 8  # so many unread channels in a row end a tap; fewer are read with weight zero
_MANY_GROUPS = 16
_ABSENT = 0.4  # fraction of absent taps from which positions are split by what they read


class Builder:
    def __init__(self):
        self.graph = Graph()
        self.module = self.op = ""
        self._scalars = {}
        self._maps = {}
        self._fills = []  # (addresses, sorted; what was added to each)

    def add(self, kind, npos, nch, ready, **fields):
        return self.graph.add(kind, npos, nch, ready, module=self.module, op=self.op, **fields)

    # constants

    def constants(self, values):
        """Addresses of `values` float64, in their shape."""
        values = np.asarray(values, np.float64)
        if not values.size:
            return np.zeros(values.shape, np.int64)
        first = values.flat[0]
        same = (values == first).all() or np.isnan(values).all()
        if same:
            return np.full(values.shape, self._scalar(float(first)), np.int64)
        unique, inverse = np.unique(values, return_inverse=True)
        node = self.add("const", len(unique), 1, 0, values=unique[:, None])
        addresses = np.where(unique == 0, 0, node.base + np.arange(len(unique)))
        return addresses[inverse.reshape(-1)].reshape(values.shape)

    def _scalar(self, value):
        if value == 0:
            return 0
        key = repr(value)
        if key not in self._scalars:
            node = self.add("const", 1, 1, 0, values=np.array([[value]]))
            self._scalars[key] = node.base
        return self._scalars[key]

    def constant_rows(self, values):
        """First addresses (n,) of cells with the rows of `values`; a row of zeros is absent."""
        unique, inverse = np.unique(values, axis=0, return_inverse=True)
        node = self.add("const", len(unique), values.shape[1], 0, values=unique)
        first = node.base + np.arange(len(unique)) * values.shape[1]
        return np.where((unique == 0).all(1), 0, first)[inverse.reshape(-1)]

    def split_constants(self, addresses):
        """(addresses without those of constants, values of the constants and 0 elsewhere or None if
        there are none but zeros, bool: is a constant)"""
        nodes = self.graph.nodes
        if not addresses.size or not any(node.kind == "const" for node in nodes):
            return addresses, None, addresses == 0
        low, high = addresses.min(), addresses.max()
        if low > 0:
            first, last = self.graph.node_index(np.array([low, high]))
            if first == last and nodes[first].kind != "const":
                return addresses, None, np.zeros(addresses.shape, bool)
        index = self.graph.node_index(addresses)
        is_const_node = np.array([node.kind == "const" for node in nodes] + [False])
        held = is_const_node[index]
        if not held.any():
            return addresses, None, addresses == 0
        values = np.zeros(addresses.shape)
        values[held] = self.graph.constant(addresses[held])[1]
        return np.where(held, 0, addresses), values, held | (addresses == 0)

    # runs

    def _remaining(self, first):
        """How many channels the shortest cell has from these addresses on."""
        present = first[first != 0]
        remaining = 1 << 60
        for node in np.unique(self.graph.node_index(present)) if len(present) else ():
            node = self.graph.nodes[node]
            inside = present[(present >= node.base) & (present < node.base + node.npos * node.nch)]
            remaining = min(remaining, int((node.nch - (inside - node.base) % node.nch).min()))
        return remaining

    def runs(self, matrix):
        """Cuts the columns of addresses (n, q) into runs: [(start, stop)]."""
        return [(a, b) for a, b, _ in self.segments([matrix], scalars=False)]

    def segments(self, matrices, scalars=True):
        """Cuts the columns where every matrix goes on as a run or, with `scalars`, as one scalar
        for all: [(start, stop, whether each is a run)]."""
        q = matrices[0].shape[1]
        ends = []
        for matrix in matrices:
            ends.append([_reach(flags) for flags in _continues(matrix)])
        found, start = [], 0
        while start < q:
            stop = q
            reaches = []
            for matrix, (run_end, same_end) in zip(matrices, ends, strict=True):
                run = int(run_end[start])
                if run > start + 1:
                    run = min(run, start + self._remaining(matrix[:, start]))
                same = int(same_end[start]) if scalars else 0
                reaches.append((run, same))
                stop = min(stop, max(run, same))
            found.append((start, stop, [run >= stop for run, _ in reaches]))
            start = stop
        return found

    def gathered(self, matrix):
        """Fresh cells that hold the rows of `matrix`."""
        source = self._condition_of(matrix)
        if source is not None:
            return self._condition_cells(matrix, source)
        ready = self.graph.ready(matrix).max(1)
        node = self.add("gather", *matrix.shape, ready, sources=matrix)
        return self.graph.addresses(node)

    def _condition_of(self, matrix):
        """The source of the tape that all of these addresses come from, or None."""
        index = np.unique(self.graph.node_index(matrix))
        nodes = [self.graph.nodes[i] for i in index if i >= 0]
        sources = {node.source if node.kind == "condition" else None for node in nodes}
        return sources.pop() if index[0] >= 0 and len(sources) == 1 else None

    def _condition_cells(self, matrix, source):
        """Values of a condition in cells of another shape, which costs nothing."""
        elements = np.empty(matrix.shape, np.int64)
        for node, mask, positions in self.graph.decode(matrix):
            elements[mask] = node.elements[positions, (matrix[mask] - node.base) % node.nch]
        node = self.add("condition", *matrix.shape, 0, source=source, elements=elements)
        return self.graph.addresses(node)

    # pointwise

    def pointwise(self, function, *args):
        """Addresses of function(*args), elementwise with broadcasting.

        args: int64 arrays are addresses; float arrays and numbers are values.
        function: leaves to an expression of graph.py.
        """
        shape = np.broadcast_shapes(*(np.shape(arg) for arg in args))
        if 0 in shape:
            return np.zeros(shape, np.int64)
        axis = self.channel_axis([a for a in args if _is_addresses(a)], shape)
        moved = [shape[i] for i in range(len(shape)) if i != axis]
        q = 1 if axis is None else shape[axis]
        rows = [_as_rows(arg, shape, axis, q) for arg in args]
        out = self._pointwise_rows(function, rows, q)
        if axis is None:
            return out.reshape(shape)
        return np.moveaxis(out.reshape(*moved, q), -1, axis)

    def channel_axis(self, operands, shape):
        """The axis along which most operands are runs; where none is, axis 1 of three or more if
        they are constant along it, else None: every element is a row of its own."""
        best, best_score = None, 0.5
        for axis in range(len(shape)):
            if shape[axis] == 1:
                continue
            score = max((self.run_fraction(a, axis - len(shape)) for a in operands), default=0)
            if score > best_score:
                best, best_score = axis, score
        if best is not None:
            return best
        candidates = [1] if len(shape) >= 3 else [len(shape) - 1] if shape else []
        for axis in candidates:
            if all(a.ndim < len(shape) - axis or a.shape[axis - len(shape)] == 1 for a in operands):
                return axis
        return None

    def run_fraction(self, addresses, axis):
        if addresses.ndim < -axis or addresses.shape[axis] == 1:
            return 0
        lines = np.moveaxis(addresses, axis, -1).reshape(-1, addresses.shape[axis])
        lines = lines[:: max(1, len(lines) // 8)]
        cell = np.where(lines > 0, self._cell(lines), -1)
        goes_on = (np.diff(lines) == 1) & (np.diff(cell) == 0)
        present = lines[:, 1:] != 0
        return (goes_on & present).sum() / max(1, present.sum())

    def _cell(self, addresses):
        """A number for the cell each address lies in."""
        nodes = self.graph.nodes
        index = self.graph.node_index(addresses)
        base = np.array([node.base for node in nodes] + [0])[index]
        nch = np.array([node.nch for node in nodes] + [1])[index]
        return addresses - (addresses - base) % nch

    def _pointwise_rows(self, function, rows, q):
        which = [i for i, r in enumerate(rows) if _is_addresses(r)]
        self._relayout_conditions(rows, which)
        n = max((len(r) for r in rows if not isinstance(r, float)), default=1)
        values = {}
        for i in which:
            rows[i], values[i], _ = self.split_constants(rows[i])
        order = self._column_order([rows[i] for i in which], q)
        if order is not None:
            rows = [r if isinstance(r, float) else r[:, order] for r in rows]
            values = {i: v if v is None else v[:, order] for i, v in values.items()}
        out = np.zeros((n, q), np.int64)
        if not which:
            computed = evaluate(function(*(_value_leaf(r) for r in rows)))
            return self.constants(np.broadcast_to(computed, (n, q)))
        for columns in self.regular_columns([rows[i] for i in which], q):
            part = [r if isinstance(r, float) else r[:, columns] for r in rows]
            held = {i: v if v is None else v[:, columns] for i, v in values.items()}
            matrices = [part[i] for i in which]
            segments = self.segments(matrices)
            if len(segments) > _MANY_SEGMENTS:
                for i in which:
                    own = self.segments([part[i]])
                    if len(own) > _MANY_SEGMENTS:
                        part[i] = self.gathered(part[i])
                segments = self.segments([part[i] for i in which])
            result = np.zeros((n, len(columns)), np.int64)
            for start, stop, runs in segments:
                result[:, start:stop] = self._segment(
                    function,
                    [r if isinstance(r, float) else r[:, start:stop] for r in part],
                    {i: v if v is None else v[:, start:stop] for i, v in held.items()},
                    dict(zip(which, runs, strict=True)),
                    n,
                    stop - start,
                )
            out[:, columns] = result
        if order is not None:
            unordered = np.empty_like(out)
            unordered[:, order] = out
            return unordered
        return out

    def _relayout_conditions(self, rows, which):
        """Values of a condition that are no runs become cells that are."""
        if len(which) < 2:
            return
        for i in which:
            if len(self.segments([rows[i]])) > 1:
                source = self._condition_of(rows[i])
                if source is not None:
                    rows[i] = self._condition_cells(rows[i], source)

    def _column_order(self, matrices, q):
        """Columns by the addresses of the fullest row of an operand that differs along them."""
        if q == 1:
            return None
        for matrix in matrices:
            row = matrix[int((matrix != 0).sum(1).argmax())] if (matrix == 0).any() else matrix[0]
            if (row == row[0]).all():
                continue
            if (np.diff(row) >= 0).all():
                return None
            return np.argsort(row, kind="stable")
        return None

    def regular_columns(self, matrices, q):
        """All columns at once if they fall into few segments; else those that are ready together,
        so that gathering them into cells delays none."""
        if q <= _MANY_SEGMENTS or len(self.segments(matrices)) <= _MANY_SEGMENTS:
            return [np.arange(q)]
        ready = np.max([np.broadcast_to(self.graph.ready(m), m.shape) for m in matrices], axis=0)
        _, group = np.unique(ready, axis=1, return_inverse=True)
        group = group.reshape(-1)
        return [np.flatnonzero(group == g) for g in range(group.max() + 1)]

    def _segment(self, function, rows, values, runs, n, q):
        """One node for each combination of nodes the operands lie in; (n, q) addresses."""
        which = list(runs)
        first = {i: np.broadcast_to(rows[i][:, 0], (n,)) for i in which}
        held = {i: None if values[i] is None else np.broadcast_to(values[i], (n, q)) for i in which}
        keys = np.stack([self.graph.node_index(first[i]) for i in which], 1)
        out = np.zeros((n, q), np.int64)
        for group in self._row_groups(function, rows, which, keys):
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
                        own = self._filled(own, constant if runs[i] else constant[:, :1])
                    part.append((own, runs[i]))
            out[group] = self._emit(function, part, len(group), q)
        return out

    def _filled(self, first, constant):
        """Cells of constants where there are no others."""
        absent = first == 0
        filled = first.copy()
        filled[absent] = self.constant_rows(constant[absent])
        return filled

    def _row_groups(self, function, rows, which, keys):
        """Rows by the nodes they read. Rows in which an operand is a constant join those that
        differ in nothing else, unless the result is a constant without it: one node for a padded
        map, not one more for its border."""
        if (keys == keys[:1]).all():
            return [np.arange(len(keys))]
        distinct, group_of = np.unique(keys, axis=0, return_inverse=True)
        group_of = group_of.reshape(-1)
        target = np.arange(len(distinct))
        for g in np.argsort((distinct >= 0).sum(1), kind="stable"):
            absent = distinct[g] < 0
            if not absent.any() or absent.all():
                continue
            leaves = [
                ("num", r) if isinstance(r, float) else ("op", i, 0) for i, r in enumerate(rows)
            ]
            for i, missing in zip(which, absent, strict=True):
                if missing:
                    leaves[i] = ("num", 0.0)
            if not operand_numbers(simplified(function(*leaves))):
                continue
            fits = (distinct[:, ~absent] == distinct[g, ~absent]).all(1)
            fits &= (distinct >= 0).sum(1) > (~absent).sum()
            if fits.any():
                target[g] = np.flatnonzero(fits)[np.argmax((distinct[fits] >= 0).sum(1))]
        for _ in range(len(which)):
            target = target[target]
        group_of = target[group_of]
        groups = [np.flatnonzero(group_of == g) for g in np.unique(group_of)]
        if len(groups) <= _MANY_GROUPS:
            return groups
        constant = (keys < 0).all(1)
        return [g for g in (np.flatnonzero(constant), np.flatnonzero(~constant)) if len(g)]

    def _emit(self, function, part, n, q):
        """part: numbers, values (n or 1, q), or (first addresses (n,), whether a run)."""
        numbers = [i for i, p in enumerate(part) if isinstance(p, tuple)]
        values = {}
        for i, p in enumerate(part):
            if isinstance(p, np.ndarray):
                values[i] = p[:1] if len(p) > 1 and _rows_equal(p) else p
        if not numbers:
            leaves = [_value_leaf(values.get(i, p)) for i, p in enumerate(part)]
            return self.constants(np.broadcast_to(evaluate(function(*leaves)), (n, q)))
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
                p = (self.constant_rows(values[i]), True)
            leaves.append(("op", len(operands), 0))
            operands.append(p)
        expr = simplified(function(*leaves))
        used = operand_numbers(expr)
        if not used:
            return self.constants(np.broadcast_to(evaluate(expr), (n, q)))
        operands = [operands[i] for i in used]
        expr = renumbered(expr, used)
        if expr[0] == "op":
            first, run = operands[0]
            return np.where(first == 0, 0, first)[:, None] + (
                (first != 0)[:, None] * np.arange(q) if run else np.zeros(q, np.int64)
            )
        keep, inverse = _distinct_rows([first for first, _ in operands])
        operands = [
            (np.ascontiguousarray(first[keep]), not run and q > 1) for first, run in operands
        ]
        return self._map_node(expr, operands, len(keep), q)[inverse]

    def _map_node(self, expr, operands, n, q):
        """Addresses of a map; the same one if it was computed before, as when two layers apply an
        activation to the same tensor."""
        key = (n, q, _hashable(expr), *((hash(first.tobytes()), one) for first, one in operands))
        node = self._maps.get(key)
        same = node is not None and all(
            np.array_equal(first, other)
            for (first, _), (other, _) in zip(operands, node.operands, strict=True)
        )
        if not same:
            ready = np.max([self.graph.ready(first) for first, _ in operands], axis=0)
            node = self.add("map", n, q, ready, operands=operands, expr=expr)
            self._maps[key] = node
        return self.graph.addresses(node)

    # linear

    def linear(self, matrix, weight, bias=None):
        """Addresses (P, M) of matrix @ weight + bias: addresses (P, K), float64 (K, M), (M,)."""
        matrix, constant, _ = self.split_constants(matrix)
        extra = None if constant is None else constant @ weight
        return self.linear_taps(self.taps(matrix), weight, bias, extra, len(matrix))

    def taps(self, matrix):
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
        return [(np.ascontiguousarray(matrix[:, a]), columns[a:b]) for a, b in self.runs(matrix)]

    def linear_taps(self, taps, weight, bias, extra, npos):
        """One node for each class of outputs that become ready together, and of positions that
        read alike. extra: (P, M) to add, or None."""
        outputs = weight.shape[1]
        out = np.zeros((npos, outputs), np.int64)
        bias = np.zeros(outputs) if bias is None else np.asarray(bias, np.float64)
        reads = np.zeros((outputs, len(taps)), bool)
        for t, (_, columns) in enumerate(taps):
            reads[:, t] = (weight[columns] != 0).any(0)
        ready = [self.graph.ready(addresses) for addresses, _ in taps]
        for channels in _classes(reads, ready, npos):
            own = _read_parts(taps, weight[:, channels])
            own_extra = None if extra is None else extra[:, channels]
            for positions in _position_classes(own, npos):
                out[np.ix_(positions, channels)] = self._linear_node(
                    [(addresses[positions], rows) for addresses, rows in own],
                    bias[channels],
                    None if own_extra is None else own_extra[positions],
                    len(positions),
                )
        return out

    def _linear_node(self, taps, bias, extra, npos):
        taps = [(addresses, rows) for addresses, rows in taps if (addresses != 0).any()]
        if extra is not None and _rows_equal(extra):
            bias, extra = bias + extra[0], None
        if not taps:
            values = np.broadcast_to(bias, (npos, len(bias)))
            return self.constants(values if extra is None else values + extra)
        ready = np.max([self.graph.ready(addresses) for addresses, _ in taps], axis=0)
        node = self.add(
            "linear",
            npos,
            len(bias),
            ready,
            taps=[(np.ascontiguousarray(addresses), len(rows)) for addresses, rows in taps],
            weight=np.concatenate([rows for _, rows in taps]),
            bias=np.array(bias, np.float64),
            adds=[] if extra is None else [self.constant_rows(extra)],
            expr=("acc", 0),
        )
        return self.graph.addresses(node)

    def note_fills(self, addresses, values):
        """These values have a very negative constant added to them."""
        order = np.argsort(addresses, kind="stable")
        self._fills.append((addresses[order], values[order]))

    def fills(self, addresses):
        """What was added by note_fills, and 0 elsewhere."""
        found = np.zeros(addresses.shape)
        for known, values in self._fills:
            at = np.minimum(np.searchsorted(known, addresses), len(known) - 1)
            found = np.where(known[at] == addresses, values[at], found)
        return found

    # rows, tables

    def row(self, function, matrix, nch, **args):
        """Addresses (n, nch) of a function over the rows of addresses (n, L), -1 where absent."""
        matrix = np.ascontiguousarray(matrix)
        ready = np.where(matrix >= 0, self.graph.ready(np.maximum(matrix, 0)), 0).max(1)
        node = self.add(
            "row", len(matrix), nch, ready, function=function, sources=matrix, args=args
        )
        return self.graph.addresses(node)

    def reduction(self, function, matrix, **args):
        """Addresses (n,) of a function of ROWS over the rows of addresses (n, L)."""
        if function in ("sum", "mean"):
            free, _, _ = self.split_constants(matrix)
            width = matrix.shape[1]
            if len(self.taps(free)) <= max(_MANY_SEGMENTS, width // 4):
                weight = np.full((width, 1), 1.0 if function == "sum" else 1 / width)
                return self.linear(matrix, weight)[:, 0]
        is_constant, value = self.graph.constant(matrix)
        out = np.zeros(len(matrix), np.int64)
        fixed = is_constant.all(1)
        if fixed.any():
            out[fixed] = self.constants(row_value(function, value[fixed], args))
        if not fixed.all():
            out[~fixed] = self.row(function, matrix[~fixed], 1, **args)[:, 0]
        return out

    def lookup(self, index, table):
        """Addresses (n, D) of table[index] for scalar addresses (n,), float64 table (V, D)."""
        distinct, inverse = np.unique(index, return_inverse=True)
        ready = self.graph.ready(distinct)
        node = self.add("lookup", len(distinct), table.shape[1], ready, index=distinct, table=table)
        return self.graph.addresses(node)[inverse.reshape(-1)]


def _hashable(expr):
    if expr[0] == "val":
        return ("val", expr[1].tobytes())
    if expr[0] in LEAVES:
        return expr
    return (expr[0], *(_hashable(argument) for argument in expr[1:]))


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


def _rows_equal(values):
    return bool(((values == values[:1]) | (np.isnan(values) & np.isnan(values[:1]))).all())


def _continues(matrix):
    """For each column but the last: does the run, does the one scalar go on in the next one?"""
    left, right = matrix[:, :-1], matrix[:, 1:]
    step = right - left
    run = ((step == 1) & (left != 0)) | ((left == 0) & (right == 0))
    return run.all(0), (step == 0).all(0)


def _reach(goes_on):
    """For each column, the end of the stretch that starts there."""
    q = len(goes_on) + 1
    ends = np.append(np.flatnonzero(~goes_on) + 1, q)
    return ends[np.searchsorted(ends, np.arange(q), "right")]


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


def _classes(reads, ready, npos):
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
