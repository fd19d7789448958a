"""The graph on its way to a program: what is still computed, where it is needed, and when."""

import copy
from dataclasses import dataclass, field

import numpy as np

from fastgen.sampling.graph import Graph, Node, Traced

STATIC = ("code", "const", "condition")  # cells filled by the executor, never computed


@dataclass(eq=False)
class Plan:
    """nodes: what is computed, in order, and the static ones. Addresses are those of `graph`, which
    also keeps the nodes that went into others: their cells just have no reader any more.

    params int64 (draws, K): addresses; draw d is of step draw_step[d] and sets codes[d] (draws,
    codes a draw), addresses; draws come in the order of their steps.
    """

    graph: Graph
    nodes: list
    params: np.ndarray
    draw_step: np.ndarray
    codes: np.ndarray
    code_index: np.ndarray
    steps: int
    live: dict = field(default_factory=dict)  # node -> bool (npos,)
    step: dict = field(default_factory=dict)  # node -> int32 (npos,), -1 where it is not computed
    # Maps computed with a linear, and the linear's position for each of theirs: the gate of its
    # halves, in registers, and others from its tile.
    gates: dict = field(default_factory=dict)  # linear -> (map, positions)
    sides: dict = field(default_factory=dict)  # linear -> [(map, positions)]

    def note_earliest(self, earliest, addresses, at):
        """Lowers earliest[node] (npos,) of the cells that rows of addresses read to their `at`."""
        for node, mask, positions in self.graph.decode(addresses):
            np.minimum.at(earliest[node], positions, along(at, mask)[mask])

    def note_latest(self, latest, addresses, at):
        """Raises latest[node] (npos,) likewise."""
        for node, mask, positions in self.graph.decode(addresses):
            np.maximum.at(latest[node], positions, along(at, mask)[mask])

    def producers(self, addresses) -> list:
        index = np.unique(self.graph.node_index(addresses))
        return [self.graph.nodes[i] for i in index[index >= 0]]

    def users(self) -> dict:
        """node -> nodes that read it, None standing for a draw."""
        users = {node: [] for node in self.graph.nodes}
        for node in self.nodes:
            for addresses in node.reads():
                for producer in self.producers(addresses):
                    users[producer].append(node)
        for producer in self.producers(self.params):
            users[producer].append(None)
        return users

    def add_before(self, node: Node, kind, npos, nch, ready, **fields) -> Node:
        fields = {"module": node.module, "op": node.op} | fields
        new = self.graph.add(kind, npos, nch, ready, **fields)
        self.nodes.insert(self.nodes.index(node), new)
        return new

    def computed_with(self) -> dict:
        """map -> (linear, positions)"""
        found = {gate: (linear, positions) for linear, (gate, positions) in self.gates.items()}
        for linear, sides in self.sides.items():
            found |= {side: (linear, positions) for side, positions in sides}
        return found

    def batch(self, node) -> float:
        """Positions it is computed for at a time."""
        steps = self.step[node]
        steps = steps[steps >= 0]
        return len(steps) / max(1, len(np.unique(steps)))

    def drop_dead_nodes(self):
        needed = set(self.producers(self.params))
        for node in reversed(self.nodes):
            if node in needed:
                for addresses in node.reads():
                    needed.update(self.producers(addresses))
        self.nodes = [n for n in self.nodes if n in needed or n.kind == "code"]

    def find_live_cells(self):
        live = {node: np.zeros(node.npos, bool) for node in self.graph.nodes}

        def mark(addresses):
            for node, _, positions in self.graph.decode(addresses):
                live[node][positions] = True

        mark(self.params)
        for node in reversed(self.nodes):
            for addresses in node.reads():
                mark(addresses[live[node]])
        self.live = live


def along(rows, mask):
    """One value a row in the shape of a mask (rows, ...)."""
    return np.broadcast_to(rows.reshape(rows.shape + (1,) * (mask.ndim - rows.ndim)), mask.shape)


def begin(traced: Traced) -> Plan:
    """A plan that computes all the parameters; the traced graph stays as it is."""
    graph = Graph()
    graph.nodes = [copy.copy(node) for node in traced.graph.nodes]
    graph.size = traced.graph.size
    for node in graph.nodes:
        node.taps, node.adds, node.operands = node.taps[:], node.adds[:], node.operands[:]
    graph._bases = None
    colors, positions = traced.ranks.shape
    count, joint, _ = traced.params.shape
    codes = traced.codes.reshape(colors, positions)
    index = np.arange(colors * positions).reshape(colors, positions)
    if joint == colors:  # one draw a code
        rank = traced.ranks.T.reshape(-1)
        codes, index = codes.T.reshape(-1, 1), index.T.reshape(-1, 1)
    else:  # one draw a pixel
        rank = traced.ranks[0]
        codes, index = codes.T, index.T
    params = traced.params.transpose(2, 1, 0).reshape(-1, count)
    order = np.argsort(rank, kind="stable")
    return Plan(
        graph,
        list(graph.nodes),
        np.ascontiguousarray(params[order]),
        rank[order].astype(np.int32),
        np.ascontiguousarray(codes[order]),
        np.ascontiguousarray(index[order]),
        traced.steps,
    )
