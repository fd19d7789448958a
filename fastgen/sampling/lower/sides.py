"""What is computed from a linear's cells alone is computed with them, from the tile at hand.

A residual sum is read by the next sum and by a ReLU, a concatenated ELU twice by its sign: maps of
their own would read every cell once more and cost an instruction each.
"""

import numpy as np

from fastgen.sampling.lower.expressions import narrow, rewrite
from fastgen.sampling.lower.fuse import positions_in
from fastgen.sampling.lower.gates import GATE
from fastgen.sampling.lower.plan import Plan


def sides_of_linears(plan: Plan) -> int:
    """Moves maps into plan.sides; returns how many. Runs after the gates."""
    count = 0
    for node in list(plan.nodes):
        found = _only_linear(plan, node)
        if found is None:
            continue
        linear, positions, channel_of = found
        node.expr = rewrite(node.expr, _of_accumulator(linear, channel_of, node.nch))
        node.operands = []
        plan.sides.setdefault(linear, []).append((node, positions))
        plan.nodes.remove(node)
        count += 1
    return count


def _of_accumulator(linear, channel_of, channels):
    def change(leaf):
        if leaf[0] != "op":
            return leaf
        return narrow(linear.expr, channel_of[leaf[1]] + leaf[2], channels, 0)

    return change


def _only_linear(plan, node):
    """(the linear whose cells are all that the map reads, in which of its positions, channel of
    each operand)"""
    if node.kind != "map" or not node.operands:
        return None
    if any(broadcast for _, broadcast in node.operands):
        return None
    producers = plan.producers(np.concatenate([addresses for addresses, _ in node.operands]))
    if len(producers) != 1 or producers[0].kind != "linear":
        return None
    (linear,) = producers
    if linear in plan.gates or linear.expr == GATE or node.nch != linear.nch:
        return None
    found = [positions_in(linear, addresses) for addresses, _ in node.operands]
    if any(f is None or not np.array_equal(f[0], found[0][0]) for f in found):
        return None
    return linear, found[0][0], [channel for _, channel in found]
