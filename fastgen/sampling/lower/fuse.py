"""Pointwise chains move into the epilogue of the linear they follow, affine ones into its weights.

A map swallows a producer that nothing else reads. Of several linears it takes the one made last:
the other results are added to its accumulator, so that, of a sum of two convolutions, the one that
is ready early keeps its own, batched instruction.
"""

import numpy as np

from fastgen.sampling.lower.expressions import (
    ACC,
    leaves,
    narrow,
    operands_of,
    replace,
    rewrite,
)
from fastgen.sampling.lower.plan import Plan

# A border is often ready before the interior, which must not keep the interior from being fused;
# where most cells of a producer are ready before the map is, it can be computed batched.
_SAME_READY = 0.5


def fuse(plan: Plan):
    users = plan.users()
    for node in list(plan.nodes):
        if node.kind != "map":
            continue
        while node.kind == "map":
            producer = _fusible(plan, users, node)
            if producer is None:
                break
            _swallow(plan, node, producer)
            plan.nodes.remove(producer)
            for readers in users.values():
                readers[:] = [node if reader is producer else reader for reader in readers]


def positions_in(node, addresses):
    """(positions, channel) if the addresses are one channel of distinct cells of node."""
    if not len(addresses) or not (addresses >= node.base).all():
        return None
    positions, channel = np.divmod(addresses - node.base, node.nch)
    if (positions >= node.npos).any() or (channel != channel[0]).any():
        return None
    if len(np.unique(positions)) != len(positions):
        return None
    return positions, int(channel[0])


def _fusible(plan, users, node):
    maps, linears = [], []
    for addresses, broadcast in node.operands:
        if broadcast or addresses[0] == 0:
            continue
        producer = plan.graph.nodes[int(plan.graph.node_index(addresses[:1])[0])]
        if producer.kind not in ("linear", "map") or producer not in users:
            continue
        if any(reader is not node for reader in users[producer]):
            continue
        found = positions_in(producer, addresses)
        if found is None:
            continue
        # where two operands read it, they must read the same positions
        mine = [
            positions_in(producer, other)
            for other, _ in node.operands
            if producer in plan.producers(other)  # perhaps behind a border of zeros
        ]
        if any(m is None or not np.array_equal(m[0], found[0]) for m in mine):
            continue
        if any(b for o, b in node.operands if producer in plan.producers(o)):
            continue
        if (producer.ready[found[0]] == node.ready).mean() <= _SAME_READY:
            continue
        (maps if producer.kind == "map" else linears).append(producer)
    if maps:
        return maps[0]
    return max(linears, key=lambda producer: producer.base, default=None)


def _swallow(plan, node, producer):
    first = len(node.operands)
    channel_of, at = {}, None
    for i, (addresses, _) in enumerate(node.operands):
        if producer in plan.producers(addresses[:1]):
            at, channel_of[i] = positions_in(producer, addresses)

    def change(leaf):
        if leaf[0] == "op" and leaf[1] in channel_of:
            channel = channel_of[leaf[1]] + leaf[2]
            return narrow(producer.expr, channel, node.nch, first)
        return leaf

    node.expr = rewrite(node.expr, change)
    node.operands = node.operands + [(a[at], broadcast) for a, broadcast in producer.operands]
    if producer.kind == "linear":
        node.kind = "linear"
        node.taps = [(addresses[at], width) for addresses, width in producer.taps]
        node.adds = [addresses[at] for addresses in producer.adds]
        node.weight, node.bias = producer.weight, producer.bias
    _drop_unread_operands(node)
    if node.kind == "linear":
        _fold(node)


def _drop_unread_operands(node):
    used = operands_of(node.expr)
    new = {old: i for i, old in enumerate(used)}
    node.operands = [node.operands[i] for i in used]
    node.expr = rewrite(
        node.expr, lambda leaf: ("op", new[leaf[1]], leaf[2]) if leaf[0] == "op" else leaf
    )


def _fold(node):
    """Constants that scale or shift the accumulator go into weight and bias, operands added to it
    into its start."""
    while node.nch == node.nacc and sum(leaf[0] == "acc" for leaf in leaves(node.expr)) == 1:
        parent, other = _parent_of_acc(node.expr)
        if parent is None:
            return
        function, value = parent[0], other[1] if other and other[0] in ("num", "val") else None
        if function == "neg" and not node.adds:
            node.weight, node.bias = -node.weight, -node.bias
        elif function == "mul" and value is not None and not node.adds:
            node.weight, node.bias = node.weight * value, node.bias * value
        elif function == "div" and value is not None and parent[1] is not other and not node.adds:
            node.weight, node.bias = node.weight / value, node.bias / value
        elif function == "add" and value is not None:
            node.bias = node.bias + value
        elif function == "sub" and value is not None and parent[1] is not other:
            node.bias = node.bias - value
        elif function == "sub" and value is not None and not node.adds:
            node.weight, node.bias = -node.weight, value - node.bias
        elif function == "add" and other[0] == "op" and not node.operands[other[1]][1]:
            addresses = node.operands[other[1]][0]
            node.adds = node.adds + [np.where(addresses == 0, 0, addresses + other[2])]
        else:
            return
        node.expr = replace(node.expr, parent, ACC)
        _drop_unread_operands(node)


def _parent_of_acc(expr):
    """(the function whose argument the accumulator is, its other argument if it has two)"""
    if expr[0] in ("acc", "op", "num", "val"):
        return None, None
    for i, argument in enumerate(expr[1:], 1):
        if argument[0] == "acc":
            if len(expr) > 3:
                return None, None
            return expr, expr[3 - i] if len(expr) == 3 else None
        parent, other = _parent_of_acc(argument)
        if parent is not None:
            return parent, other
    return None, None
