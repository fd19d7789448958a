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
    # An attention's keys or values are one operand, addresses (rows, terms).


@dataclass
class Rows:
    """Positions of a node whose operands are read alike: one instruction."""

    node: Node
    positions: np.ndarray  # in the order of their steps
    operands: list
    pick: np.ndarray | None = None  # of a gather


def _channels(graph, addresses):
    """First channel read, -1 where a cell is the zero cell or absent; of several terms, theirs."""
    channels = np.full(addresses.shape, -1, np.int64)
    for node, mask, _ in graph.decode(addresses):
        channels[mask] = (addresses[mask] - node.base) % node.nch
    return channels if channels.ndim == 1 else channels.max(1)


def split_rows(plan: Plan, node: Node, positions: np.ndarray) -> list:
    """Rows of `node` at these positions, apart where their operands' channels differ."""
    if node.kind == "gather":
        return _gather_rows(plan.graph, node, positions)
    operands = [_at(operand, positions) for operand in _operands(plan, node)]
    if not operands or not len(positions):
        return [Rows(node, positions, operands)]
    channels = np.stack([_channels(plan.graph, operand.addresses) for operand in operands], 1)
    parts, left = [], np.arange(len(positions))
    while len(left):
        fullest = left[(channels[left] >= 0).sum(1).argmax()]
        # the zero cell may be read from any channel on
        fits = ((channels[left] == channels[fullest]) | (channels[left] < 0)).all(1)
        parts.append(left[fits])
        left = left[~fits]
    return [
        Rows(node, positions[part], [_at(operand, part) for operand in operands]) for part in parts
    ]


def _at(operand, rows):
    return Operand(operand.addresses[rows], operand.count, operand.broadcast)


def _operands(plan, node):
    if node.kind == "lookup":
        return [Operand(node.index, 1)]
    if node.kind == "dot":
        return [Operand(node.a, node.width), Operand(node.b, node.width)]
    if node.kind == "attention":
        keys = np.where(node.cells == 0, -1, node.weights)
        values = np.where(node.cells == 0, -1, node.cells)
        return [
            Operand(node.a, node.width),
            Operand(keys, node.width),
            Operand(values, node.nch),
        ]
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
