"""From arrays of addresses to nodes.

A rule says what an ATen op does to the addresses of its operands; here the elements become cells.
Rows are positions and columns are channels throughout: an operand of a node has to be a run
(consecutive channels of one cell in every row, or absent), one scalar for all columns, or is
gathered into fresh cells first.
"""

import numpy as np

from fastgen.sampling.evaluate import row_value
from fastgen.sampling.graph import Graph
from fastgen.sampling.linear import linear, linear_taps, taps
from fastgen.sampling.pointwise import pointwise

LOW = -9999  # what is filled with this or less gets no weight in a softmax
MANY_SEGMENTS = 8  # an operand in more pieces than this is gathered into fresh cells


class Builder:
    """A graph, and the op and module whose nodes are being added."""

    pointwise = pointwise
    linear, linear_taps, taps = linear, linear_taps, taps

    def __init__(self):
        self.graph = Graph()
        self.module = self.op = ""
        self._scalars = {}
        self.maps = {}  # those there are, by what they compute
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
        """(addresses with 0 for those of constants; float64 values of the constants, 0 elsewhere,
        or None if there are none)"""
        nodes = self.graph.nodes
        is_const = np.array([node.kind == "const" for node in nodes] + [False])
        if not addresses.size or not is_const.any():
            return addresses, None
        low, high = addresses.min(), addresses.max()
        first, last = self.graph.node_index(np.array([low, high]))
        if low > 0 and first == last and not is_const[first]:
            return addresses, None
        held = is_const[self.graph.node_index(addresses)]
        if not held.any():
            return addresses, None
        values = np.zeros(addresses.shape)
        values[held] = self.graph.constant(addresses[held])[1]
        return np.where(held, 0, addresses), values

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

    def as_runs(self, matrix):
        """`matrix`, in cells of its own if it is of a condition and they cost nothing."""
        if len(self.segments([matrix])) == 1:
            return matrix
        source = self._condition_of(matrix)
        return matrix if source is None else self._condition_cells(matrix, source)

    # layout

    def channel_axis(self, operands, shape):
        """The axis along which an operand has most of its channels; where none has any, axis 1 of
        three or more if they are constant along it, else None: every element is its own row."""
        best, best_score = None, 0.2
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
        """How many of some neighbours along an axis, once sorted, lie in one cell."""
        if addresses.ndim < -axis or addresses.shape[axis] == 1:
            return 0
        lines = np.moveaxis(addresses, axis, -1).reshape(-1, addresses.shape[axis])
        lines = np.sort(lines[:: max(1, len(lines) // 8)], axis=1)
        present = lines[:, :-1] != 0
        together = (np.diff(lines) != 0) & (np.diff(self._cell(lines)) == 0)
        return (together & present).sum() / max(1, present.sum())

    def _cell(self, addresses):
        """A number for the cell each address lies in."""
        nodes = self.graph.nodes
        index = self.graph.node_index(addresses)
        base = np.array([node.base for node in nodes] + [0])[index]
        nch = np.array([node.nch for node in nodes] + [1])[index]
        return addresses - (addresses - base) % nch

    def regular_columns(self, matrices, q):
        """All columns at once if they fall into few segments; else those that are ready together,
        so that gathering them into cells delays none."""
        if q <= MANY_SEGMENTS or len(self.segments(matrices)) <= MANY_SEGMENTS:
            return [np.arange(q)]
        ready = np.max([np.broadcast_to(self.graph.ready(m), m.shape) for m in matrices], axis=0)
        _, group = np.unique(ready, axis=1, return_inverse=True)
        group = group.reshape(-1)
        return [np.flatnonzero(group == g) for g in range(group.max() + 1)]

    # softmax

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
            free, _ = self.split_constants(matrix)
            width = matrix.shape[1]
            if len(self.taps(free)) <= max(MANY_SEGMENTS, width // 4):
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
