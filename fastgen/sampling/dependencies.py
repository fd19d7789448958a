"""Which codes the parameters of a traced model depend on, exactly, and by which way.

Channels of a node that read the same make a group; a row is one group at one position. Every row
reads other rows, and the codes a row depends on are one bit each. Row 0 depends on nothing.

A weight of exactly zero is not read, so masks need no special case; an index into a table whose
column is constant, and channels that an expression does not use, are not read either.
"""

from collections import deque

import numpy as np

_TABLE_BYTES = 256 << 20


class Dependencies:
    def __init__(self, traced):
        self.traced, self.graph = traced, traced.graph
        nodes = self.graph.nodes
        # a node before the first stands for the zero address, and for absent ones
        self._base = np.array([0] + [node.base for node in nodes], np.int64)
        self._nch = np.array([1] + [node.nch for node in nodes], np.int64)
        self._npos = np.array([1] + [node.npos for node in nodes], np.int64)
        self._first_row = np.zeros(len(nodes) + 1, np.int64)
        self._static = np.ones(len(nodes) + 1, bool)
        self._first_channel = np.zeros(len(nodes) + 1, np.int64)
        self._first_channel[1:] = 1 + np.cumsum([0] + [node.nch for node in nodes])[:-1]
        self._group = np.zeros(1 + sum(node.nch for node in nodes), np.int64)
        self._reads = []  # of every node, of every group: rows (npos, reads)
        self.rows = 1
        for node in nodes:
            self._add(node)
        self._with_rows = np.flatnonzero(~self._static)
        self._starts = self._first_row[self._with_rows]
        self._param_rows = self._rows_of(traced.params)  # (K, C or 1, positions)
        self._way = (None, None)

    def sees(self) -> np.ndarray:
        """bool (outputs, codes): outputs are (C or 1, positions), codes (C, positions), both flat;
        the parameters of the output depend on the code."""
        outputs = self._param_rows.reshape(len(self._param_rows), -1)
        codes = len(self.traced.codes)
        seen = np.zeros((outputs.shape[1], codes), bool)
        block = max(64, _TABLE_BYTES // self.rows // 8 * 64)
        for start in range(0, codes, block):
            table = self._propagated(start, min(start + block, codes))
            bits = np.bitwise_or.reduce(table[outputs], 0)
            bits = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
            seen[:, start : start + block] = bits[:, : codes - start]
        return seen

    def path(self, output: int, code: int) -> list[str]:
        """A shortest way from a code to an output: the modules, and their ops, that move or mix
        what they read. Empty if there is none."""
        word = code // 64
        if self._way[0] != word:
            self._way = (word, self._propagated(64 * word, 64 * word + 64)[:, 0])
        depends = (self._way[1] >> np.uint64(code % 64) & np.uint64(1)).astype(bool)
        starts = self._param_rows.reshape(len(self._param_rows), -1)[:, output]
        behind = {int(row): None for row in starts if depends[row]}
        queue = deque(behind)
        while queue:
            row = queue.popleft()
            node, group, position = self._place(row)
            reads = self._reads[node][group][position]
            if not len(reads):  # a code, and the one asked for
                return self._names(row, behind)
            for read in np.unique(reads[depends[reads]]):
                if int(read) not in behind:
                    behind[int(read)] = row
                    queue.append(int(read))
        return []

    def _names(self, row, behind):
        names, also = [], []
        while row is not None:
            node = self.graph.nodes[self._place(row)[0]]
            op = node.op.removeprefix("aten::")
            name = f"{node.module or 'fn'} ({op})" if op else node.module or "fn"
            if node.kind not in ("code", "map") and name not in names[-1:]:
                names.append(name)
            elif node.kind == "map" and name not in also[-1:]:
                also.append(name)
            row = behind[row]
        return names or also

    # rows

    def _rows_of(self, addresses):
        node, channel, position = self._decoded(addresses)
        group = self._group[self._first_channel[node] + channel]
        rows = self._first_row[node] + group * self._npos[node] + position
        return np.where(self._static[node], 0, rows)

    def _decoded(self, addresses):
        node = np.where(addresses > 0, np.searchsorted(self._base, addresses, "right") - 1, 0)
        offset = np.where(node > 0, addresses - self._base[node], 0)
        return node, offset % self._nch[node], offset // self._nch[node]

    def _columns(self, addresses, count):
        """[(rows (npos,), bool (count,))]: the distinct columns of cell(addresses)[:count]."""
        node, channel, _ = self._decoded(addresses)
        read = np.zeros(len(self._group), bool)
        read[(self._first_channel[node] + channel)[~self._static[node]]] = True
        first = np.flatnonzero(read)
        if not len(first):
            return []
        groups = self._group[first[:, None] + np.arange(count)]
        _, chosen, column = np.unique(groups, axis=1, return_index=True, return_inverse=True)
        column = column.reshape(-1)
        return [
            (self._rows_of(np.where(addresses > 0, addresses + k, 0)), column == i)
            for i, k in enumerate(chosen)
        ]

    def _place(self, row):
        """(number of the node, group, position)"""
        i = np.searchsorted(self._starts, row, "right") - 1
        node = int(self._with_rows[i]) - 1
        return node, *divmod(row - int(self._starts[i]), int(self._npos[node + 1]))

    # building

    def _add(self, node):
        if node.kind in ("const", "condition"):
            self._reads.append([])
            return
        if node.kind == "code":
            groups = np.arange(node.nch)
            reads = [np.zeros((node.npos, 0), np.int64)] * node.nch
        else:
            sources = [(rows, used) for rows, used in self._sources(node) if rows.any()]
            uses = np.array([used for _, used in sources], bool).reshape(len(sources), node.nch)
            kinds, groups = np.unique(uses, axis=1, return_inverse=True)
            nothing = np.zeros((node.npos, 0), np.int64)
            reads = [
                np.stack([rows for (rows, _), use in zip(sources, kind, strict=True) if use], 1)
                if kind.any()
                else nothing
                for kind in kinds.T
            ]
        self._reads.append(reads)
        if node.kind == "code" or sources:
            i = len(self._reads)
            self._static[i] = False
            self._first_row[i] = self.rows
            first = self._first_channel[i]
            self._group[first : first + node.nch] = groups.reshape(-1)
            self.rows += len(reads) * node.npos

    def _sources(self, node):
        """Yields (rows (npos,), bool (nch,): which channels read them)."""
        every = np.ones(node.nch, bool)
        if node.kind in ("linear", "map"):
            leaves = list(_leaves(node.expr)) if node.expr is not None else [("acc", 0, 0)]
            for kind, operand, first in leaves:
                if kind == "acc":
                    for rows, used in self._accumulated(node):
                        yield rows, used[first : first + node.nch]
                else:
                    addresses, broadcast = node.operands[operand]
                    if broadcast:
                        yield self._rows_of(addresses + first * (addresses > 0)), every
                    else:
                        addresses = np.where(addresses > 0, addresses + first, 0)
                        yield from self._columns(addresses, node.nch)
        elif node.kind == "gather":
            for k in range(node.nch):
                yield self._rows_of(node.sources[:, k]), np.arange(node.nch) == k
        elif node.kind == "lookup":
            index = node.index.reshape(node.npos)
            yield self._rows_of(index), (node.table != node.table[:1]).any(0)
        elif node.kind == "row":
            for rows in np.unique(self._rows_of(node.sources), axis=1).T:
                yield rows, every
        elif node.kind == "dot":
            for cells in (node.a, node.b):
                for rows, _ in self._columns(cells, node.width):
                    yield rows, every
        elif node.kind == "mix":
            for weights, cells in zip(node.weights.T, node.cells.T, strict=True):
                yield self._rows_of(weights), every
                yield from self._columns(np.where(weights > 0, cells, 0), node.nch)
        else:
            raise AssertionError(node.kind)

    def _accumulated(self, node):
        """Yields (rows, bool (nacc,)) of a linear node's sum."""
        start = 0
        for addresses, count in node.taps:
            touched = node.weight[start : start + count] != 0
            for rows, columns in self._columns(addresses, count):
                yield rows, touched[columns].any(0)
            start += count
        for addresses in node.adds:
            yield from self._columns(addresses, node.nacc)

    def _propagated(self, low, high):
        """uint64 (rows, words): bit j of a row's words is whether it depends on code low + j."""
        table = np.zeros((self.rows, -(-(high - low) // 64)), np.uint64)
        for i, node in enumerate(self.graph.nodes):
            if self._static[i + 1]:
                continue
            start = self._first_row[i + 1]
            if node.kind == "code":
                for group in range(node.nch):
                    code = node.code_index[:, group] - low
                    here = np.flatnonzero((code >= 0) & (code < high - low))
                    bit = np.uint64(1) << (code[here] % 64).astype(np.uint64)
                    table[start + group * node.npos + here, code[here] // 64] |= bit
                continue
            for group, reads in enumerate(self._reads[i]):
                rows = table[start + group * node.npos : start + (group + 1) * node.npos]
                for column in reads.T:
                    rows |= table[column]
        return table


def _leaves(expr):
    """Yields (kind, operand, first channel) of an expression's acc and op leaves."""
    if expr[0] == "acc":
        yield "acc", 0, expr[1]
    elif expr[0] == "op":
        yield "op", expr[1], expr[2]
    elif expr[0] not in ("num", "val"):
        for argument in expr[1:]:
            yield from _leaves(argument)
