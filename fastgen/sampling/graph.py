"""What the tracer finds out about a model: which values it computes, from which others, and when.

A node is npos cells of nch scalars: a channel vector at each of its positions. Scalars have
addresses, `node.base + position * node.nch + channel`; address 0 is the constant zero (padding).
The shadow of a tensor is the int64 array of its elements' addresses, so that views, pads, crops,
shifts and concatenations are arithmetic on addresses and leave nothing behind.

Kinds of nodes, and what position p computes (`cell(a)[:k]` is k consecutive channels from address a
on, all in one cell; absent, that is zeros, where a == 0):

    code       the codes drawn at p, as floats          code_index (npos, nch): in (C, *space)
    const      values (npos, nch)
    condition  values known when a call begins          source: which of the tape's outputs,
                                                        elements (npos, nch): flat index in it
    linear     expr(acc), acc = bias + sum of cell(adds[i][p])[:nacc]
                              + sum over t of cell(taps[t][0][p])[:K_t] @ (rows of weight for t)
    map        expr(operands)
    gather     channel c is the scalar at sources[p, c]
    lookup     table[int(scalar at index[p])]
    row        function over the row of scalars sources[p, :], e.g. softmax; absent ones (-1) are
               left out: a softmax gives them exactly 0
    dot        scalar: sum over k < width of cell(a[p])[k] * cell(b[p])[k]
    mix        sum over j of scalar(weights[p, j]) * cell(cells[p, j])[:nch]; weight 0 (the
               zero address) contributes nothing and its cell is not read
    attention  sum over j of w_j * cell(cells[p, j])[:nch], w the softmax over j of
               scale * (cell(a[p])[:width] . cell(weights[p, j])[:width]); cells 0: no such j.
               Made by lowering, never by the tracer

An expression is a nested tuple: a leaf ("acc", first channel) | ("op", operand, first channel) |
("num", float) | ("val", array (nch,)), or (function, argument, ...) with a function of EXPRESSIONS.
"""

from dataclasses import dataclass, field

import numpy as np

NEVER = 1 << 30  # ready step of what no step may depend on

# Pointwise functions, by number of arguments. Comparisons give 1.0 or 0.0; where(c, a, b) takes a
# where c != 0. relu keeps NaN, as torch does.
UNARY = (
    "relu elu tanh sigmoid exp expm1 log log1p sqrt rsqrt reciprocal abs neg sign floor ceil round "
    "sin cos erf"
).split()
BINARY = "add sub mul div maximum minimum pow eq ne lt le gt ge".split()
TERNARY = ["where"]
EXPRESSIONS = {**dict.fromkeys(UNARY, 1), **dict.fromkeys(BINARY, 2), **dict.fromkeys(TERNARY, 3)}
LEAVES = ("acc", "op", "num", "val")

# Functions of a row of L scalars: name -> whether the result has L channels (else one).
ROWS = {
    "softmax": True,
    "log_softmax": True,
    "layer_norm": True,  # args: eps, weight (L,) or None, bias (L,) or None
    "sum": False,
    "mean": False,
    "amax": False,
    "amin": False,
    "prod": False,
    "variance": False,  # args: correction
}


@dataclass(eq=False)
class Node:
    kind: str
    npos: int
    nch: int
    ready: np.ndarray  # int32 (npos,): the first step at which the cell can be computed
    base: int = 0  # set by Graph.add
    module: str = ""  # path of the module that computed it, "" for the root
    op: str = ""  # the ATen op
    # linear
    taps: list = field(default_factory=list)  # [(addresses (npos,), K)]
    weight: np.ndarray | None = None  # float64 (sum of K, nacc), taps one after the other
    bias: np.ndarray | None = None  # float64 (nacc,)
    adds: list = field(default_factory=list)  # [addresses (npos,)]: whole rows of nacc channels
    # linear and map
    operands: list = field(
        default_factory=list
    )  # [(addresses (npos,), whether one scalar for all)]
    expr: tuple | None = None
    # the other kinds
    code_index: np.ndarray | None = None
    values: np.ndarray | None = None
    source: int | None = None
    elements: np.ndarray | None = None
    sources: np.ndarray | None = None
    index: np.ndarray | None = None
    table: np.ndarray | None = None
    function: str | None = None
    args: dict = field(default_factory=dict)
    a: np.ndarray | None = None
    b: np.ndarray | None = None
    width: int | None = None
    weights: np.ndarray | None = None
    cells: np.ndarray | None = None

    @property
    def nacc(self):
        return self.weight.shape[1]

    def reads(self):
        """Every address array it reads, (npos, ...): cells by their first scalar."""
        yield from (addresses for addresses, _ in self.taps)
        yield from self.adds
        yield from (addresses for addresses, _ in self.operands)
        for addresses in (self.sources, self.index, self.a, self.b, self.weights, self.cells):
            if addresses is not None:
                yield addresses


class Graph:
    """Nodes in the order of their computation, and the address space they share."""

    def __init__(self):
        self.nodes = []
        self.size = 1  # address 0 is the zero
        self._bases = np.zeros(0, np.int64)

    def add(self, kind, npos, nch, ready, **fields) -> Node:
        ready = np.ascontiguousarray(np.broadcast_to(np.asarray(ready, np.int32), (npos,)))
        node = Node(kind, npos, nch, ready, base=self.size, **fields)
        self.nodes.append(node)
        self.size += npos * nch
        self._bases = None
        return node

    def addresses(self, node) -> np.ndarray:
        """(npos, nch)"""
        count = node.npos * node.nch
        return node.base + np.arange(count, dtype=np.int64).reshape(node.npos, node.nch)

    def node_index(self, addresses) -> np.ndarray:
        """Index of the node each address lies in; -1 for the zero (and for -1, absent)."""
        if self._bases is None:
            self._bases = np.array([node.base for node in self.nodes], np.int64)
        return np.searchsorted(self._bases, addresses, "right") - 1

    def decode(self, addresses):
        """[(node, mask over addresses, positions where the mask holds)]"""
        index = self.node_index(addresses)
        found = []
        for i in np.flatnonzero(np.bincount(index.reshape(-1) + 1)[1:]):
            node, mask = self.nodes[i], index == i
            found.append((node, mask, (addresses[mask] - node.base) // node.nch))
        return found

    def ready(self, addresses) -> np.ndarray:
        """int32, the step each address is ready at; 0 for the zero."""
        ready = np.zeros(addresses.shape, np.int32)
        for node, mask, positions in self.decode(addresses):
            ready[mask] = node.ready[positions]
        return ready

    def constant(self, addresses):
        """(bool: is it a constant, float64: its value or NaN)"""
        is_constant, value = addresses == 0, np.where(addresses == 0, 0.0, np.nan)
        for node, mask, positions in self.decode(addresses):
            if node.kind == "const":
                is_constant = is_constant | mask
                value[mask] = node.values[positions, (addresses[mask] - node.base) % node.nch]
        return is_constant, value


@dataclass
class Traced:
    """A model as a graph.

    codes: int64 (C * positions,), the address of every code in raster order of (C, *space).
    params: int64 (K, C or 1, positions), the addresses of the distribution's parameters.
    ranks: int64 (C, positions), dense steps 0 .. steps - 1, by which ready steps count: a code of
        rank r is ready at step r + 1, its parameters must be ready at step r.
    tape: the ops that depend on the condition and on no code; `tape.run(condition of one image)`
        gives the values of the condition nodes.
    leaves: every outside tensor the graph was made from, to be fingerprinted.
    ops: Counter of the ATen ops seen.
    modules: path -> every nn.Module that was called.
    """

    graph: Graph
    codes: np.ndarray
    params: np.ndarray
    ranks: np.ndarray
    steps: int
    tape: object
    leaves: list
    ops: dict
    modules: dict = field(default_factory=dict)
