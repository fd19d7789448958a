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
        producer = _whole_linear(plan, node, halves)
        if producer is not None and any(user is not node for user in users[producer]):
            plan.gates[producer] = node
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
    plain = linear.expr == ("acc", 0) and linear.nch == linear.nacc == 2 * node.nch
    everywhere = np.arange(linear.npos)
    for addresses, channel in ((a, 0), (b, node.nch)):
        found = positions_in(linear, addresses)
        if found is None or found[1] != channel or not np.array_equal(found[0], everywhere):
            return None
    return linear if plain else None
