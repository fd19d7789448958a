"""What an instruction's table needs: every operand as a column of cells that are read alike."""

from dataclasses import dataclass

import numpy as np

from fastgen.sampling.graph import Node
from fastgen.sampling.lower.expressions import leaves
from fastgen.sampling.lower.plan import Plan


@dataclass
class Operand:
    addresses: np.ndarray  # (rows,) of the first scalar read; 0 the zero cell, -1 absent
    count: int
    broadcast: bool = False


@dataclass
class Rows:
    """Positions of a node whose operands are read alike: one instruction."""

    node: Node
    positions: np.ndarray  # in the order of their steps
    operands: list
    pick: np.ndarray | None = None  # of a gather

    def channels(self, graph):
        """(rows, operands): first channel of each operand, -1 where it is zero or absent."""
        return np.stack([_channels(graph, o.addresses) for o in self.operands], 1)


def _channels(graph, addresses):
    channels = np.full(addresses.shape, -1, np.int64)
    for node, mask, _ in graph.decode(addresses):
        channels[mask] = (addresses[mask] - node.base) % node.nch
    return channels


def split_rows(plan: Plan, node: Node, positions: np.ndarray) -> list:
    """Rows of `node` at these positions, apart where their operands' channels differ."""
    if node.kind == "gather":
        return _gather_rows(plan.graph, node, positions)
    rows = Rows(node, positions, [_at(operand, positions) for operand in _operands(plan, node)])
    if not rows.operands:
        return [rows]
    channels = rows.channels(plan.graph)
    for column in channels.T:  # the zero cell may be read from any channel on
        known = column >= 0
        if known.any() and not known.all():
            column[~known] = np.bincount(column[known]).argmax()
    if (channels == channels[:1]).all():
        return [rows]
    _, part = np.unique(channels, axis=0, return_inverse=True)
    part = part.reshape(-1)
    return [
        Rows(node, positions[part == i], [_at(operand, part == i) for operand in rows.operands])
        for i in range(part.max() + 1)
    ]


def _at(operand, rows):
    return Operand(operand.addresses[rows], operand.count, operand.broadcast)


def _operands(plan, node):
    if node.kind == "lookup":
        return [Operand(node.index, 1)]
    if node.kind == "dot":
        return [Operand(node.a, node.width), Operand(node.b, node.width)]
    if node.kind == "attention":
        keys = np.where(node.weights == 0, -1, node.weights)
        values = np.where(node.cells == 0, -1, node.cells)
        return (
            [Operand(node.a, node.width)]
            + [Operand(column, node.width) for column in keys.T]
            + [Operand(column, node.nch) for column in values.T]
        )
    if node.kind == "mix":
        absent = node.weights == 0
        weights, cells = np.where(absent, -1, node.weights), np.where(absent, -1, node.cells)
        return [Operand(column, 1) for column in weights.T] + [
            Operand(column, node.nch) for column in cells.T
        ]
    if node.kind == "row":
        return _runs(plan.graph, node.sources)
    taps = [Operand(addresses, width) for addresses, width in node.taps]
    adds = [Operand(addresses, node.nacc) for addresses in node.adds]
    first = np.zeros(len(node.operands), int)  # the last channel run an expression reads
    for leaf in leaves(node.expr) if node.operands else ():
        if leaf[0] == "op":
            first[leaf[1]] = max(first[leaf[1]], leaf[2])
    operands = [
        Operand(a, 1 if broadcast else int(c) + node.nch, broadcast)
        for (a, broadcast), c in zip(node.operands, first, strict=True)
    ]
    return taps + adds + operands


def _runs(graph, sources):
    """Columns of sources that are consecutive channels of one cell everywhere become one."""
    present = sources > 0
    next_to = (sources[:, 1:] == sources[:, :-1] + 1) & present[:, 1:] & present[:, :-1]
    joined = next_to.all(0)
    if joined.any():
        channels = np.stack([_channels(graph, column) for column in sources.T], 1)
        joined &= (channels[:, 1:] > 0).all(0)  # channel 0 begins another cell
    starts = np.flatnonzero(np.concatenate([[True], ~joined]))
    ends = np.append(starts[1:], sources.shape[1])
    return [Operand(sources[:, a], int(b - a)) for a, b in zip(starts, ends, strict=True)]


def _gather_rows(graph, node, positions):
    """A gather's channels by the cell they come from; positions with the same pattern together."""
    sources, rows = node.sources[positions], []
    cells, channels = np.zeros_like(sources), np.zeros_like(sources)
    for producer, mask, at in graph.decode(sources):
        cells[mask] = producer.base + at * producer.nch
        channels[mask] = (sources[mask] - producer.base) % producer.nch
    left = np.arange(len(positions))
    while len(left):
        fullest = left[np.argmax((sources[left] != 0).sum(1))]
        _, first, column = np.unique(cells[fullest], return_index=True, return_inverse=True)
        column = column.reshape(-1)
        same_cells = cells[left] == cells[left][:, first[column]]
        same_channels = (channels[left] == channels[fullest]) | (cells[left] == 0)
        fits = (same_cells & same_channels).all(1)
        mine = left[fits]
        operands = [Operand(cells[mine, f], 1) for f in first]
        pick = np.stack([column, channels[fullest]], 1).astype(np.int32)
        rows.append(Rows(node, positions[mine], operands, pick))
        left = left[~fits]
    return rows
