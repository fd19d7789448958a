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
        linear = _only_linear(plan, node)
        if linear is None:
            continue
        channel_of = {
            i: positions_in(linear, addresses)[1] for i, (addresses, _) in enumerate(node.operands)
        }
        node.expr = rewrite(
            node.expr,
            lambda leaf, channel_of=channel_of, linear=linear, nch=node.nch: (
                narrow(linear.expr, channel_of[leaf[1]] + leaf[2], nch, 0)
                if leaf[0] == "op"
                else leaf
            ),
        )
        node.operands = []
        plan.sides.setdefault(linear, []).append(node)
        plan.nodes.remove(node)
        count += 1
    return count


def _only_linear(plan, node):
    """The linear whose cells, all of them in their order, are all that the map reads."""
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
    everywhere = np.arange(linear.npos)
    for addresses, _ in node.operands:
        found = positions_in(linear, addresses)
        if found is None or not np.array_equal(found[0], everywhere):
            return None
    return linear
