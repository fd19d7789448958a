"""tanh(a) * sigmoid(b) of the two halves of an accumulator happens in the registers it is in."""

import numpy as np

from fastgen.sampling.lower.fuse import positions_in
from fastgen.sampling.lower.plan import Plan

GATE = ("gate",)


def gates_in_registers(plan: Plan) -> int:
    """Marks them: a linear's expr becomes GATE, or a map that reads one whole linear, which others
    read too, goes into plan.gates. Returns how many."""
    users, count = plan.users(), 0
    for node in list(plan.nodes):
        halves = _halves(node)
        if halves is None:
            continue
        if node.kind == "linear":
            if halves == (("acc", 0), ("acc", node.nch)) and node.nacc == 2 * node.nch:
                node.expr = GATE
                count += 1
            continue
        found = _whole_linear(plan, node, halves)
        if found is not None and any(user is not node for user in users[found[0]]):
            linear, positions = found
            plan.gates[linear] = node, positions
            plan.nodes.remove(node)
            count += 1
    return count


def _halves(node):
    """(a, b) if the node is tanh(a) * sigmoid(b) of two leaves."""
    if node.kind not in ("linear", "map") or node.expr[0] != "mul":
        return None
    first, second = node.expr[1:]
    if first[0] == "sigmoid":
        first, second = second, first
    if first[0] == "tanh" and second[0] == "sigmoid":
        return first[1], second[1]
    return None


def _whole_linear(plan, node, halves):
    if any(leaf[0] != "op" or leaf[2] != 0 for leaf in halves) or len(node.operands) != 2:
        return None
    (a, a_broadcast), (b, b_broadcast) = (node.operands[leaf[1]] for leaf in halves)
    if a_broadcast or b_broadcast:
        return None
    producers = plan.producers(a)
    if len(producers) != 1 or producers[0].kind != "linear" or producers[0] in plan.gates:
        return None
    (linear,) = producers
    if linear.expr != ("acc", 0) or not linear.nch == linear.nacc == 2 * node.nch:
        return None
    found = [positions_in(linear, addresses) for addresses in (a, b)]
    if any(f is None for f in found) or [f[1] for f in found] != [0, node.nch]:
        return None
    positions = found[0][0]
    if not np.array_equal(positions, found[1][0]):
        return None
    # a gate of a few positions is not worth storing both results everywhere
    return (linear, positions) if 2 * len(positions) > plan.live[linear].sum() else None
