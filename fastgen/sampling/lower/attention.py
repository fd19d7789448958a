"""Scores, their scaling, softmax and the weighted sum of values become one node a query.

As traced, attention is a scalar dot product for every pair of positions. What reads them is one
softmax, what reads that one sum, so none of them needs a cell: 10x less to interpret.
"""

import numpy as np

from fastgen.sampling.lower.plan import Plan


def fuse_attention(plan: Plan) -> int:
    """Turns mixes over softmaxes of dots into `attention` nodes; returns how many."""
    users, count = plan.users(), 0
    for node in list(plan.nodes):
        if node.kind == "mix" and _fuse(plan, users, node):
            count += 1
    if count:
        plan.drop_dead_nodes()
    return count


def _fuse(plan, users, mix):
    graph = plan.graph
    present = mix.weights != 0
    # a query with a single key gives it weight 1 whatever they are
    alone = (present.sum(1) == 1) & (graph.constant(mix.weights.max(1))[1] == 1)
    if alone.all() or not present.any(1).all():
        return False
    weights, some = mix.weights[~alone], present[~alone]
    rows = plan.producers(weights)
    if len(rows) != 1 or rows[0].kind != "row" or rows[0].function != "softmax":
        return False
    (softmax,) = rows
    if any(user is not mix for user in users[softmax]) or (softmax.sources == 0).any():
        return False
    # each sum reads one row of the softmax, all of what that row holds
    row, column = np.divmod(np.where(some, weights - softmax.base, 0), softmax.nch)
    of = row[np.arange(len(row)), some.argmax(1)]
    if (row != of[:, None])[some].any():
        return False
    if (some.sum(1) != (softmax.sources[of] > 0).sum(1)).any():
        return False
    scores = np.where(some, softmax.sources[of[:, None], column], 0)
    found = _dots(plan, users, scores, softmax)
    if found is None:
        return False
    dot, pairs, scale = found
    query = np.where(some, dot.a[pairs], 0)
    first = query[np.arange(len(query)), some.argmax(1)]
    if (query != first[:, None])[some].any():
        return False
    keys, values = np.zeros_like(mix.weights), np.where(present, mix.cells, 0)
    keys[~alone] = np.where(some, dot.b[pairs], 0)
    if not (_one_channel(plan, keys) and _one_channel(plan, values)):
        return False
    mix.kind, mix.width, mix.args = "attention", dot.width, {"scale": scale}
    mix.weights, mix.cells = keys, values
    mix.a = np.zeros(mix.npos, np.int64)
    mix.a[~alone] = first
    mix.ready = np.maximum(graph.ready(keys).max(1), graph.ready(values).max(1))
    mix.ready = np.maximum(mix.ready, graph.ready(mix.a)).astype(np.int32)
    return True


def _one_channel(plan, addresses):
    """Whether all cells of a row are read from the same channel on, and all belong to one node."""
    producers = plan.producers(addresses)
    if len(producers) != 1:
        return False
    channel = np.where(addresses == 0, -1, (addresses - producers[0].base) % producers[0].nch)
    return bool(((channel == channel.max(1, keepdims=True)) | (channel < 0)).all())


def _dots(plan, users, scores, softmax):
    """(the dot node, position of each score in it, what it is multiplied by)"""
    producers, scale = plan.producers(scores[scores != 0]), 1.0
    if len(producers) != 1:
        return None
    (node,) = producers
    reader, positions = softmax, np.where(scores != 0, scores - node.base, 0)
    while node.kind == "map" and node.nch == 1:
        factor = _factor(node.expr)
        if factor is None or len(node.operands) != 1:
            return None
        if any(user is not reader for user in users[node]):
            return None
        scale *= factor
        addresses = node.operands[0][0]
        below = plan.producers(addresses)
        if len(below) != 1:
            return None
        reader, node = node, below[0]
        positions = addresses[positions] - node.base
    if node.kind != "dot" or any(user is not reader for user in users[node]):
        return None
    return node, positions, scale


def _factor(expr):
    """What a scalar operand is multiplied by, if that is all the expression does."""
    if expr[0] == "op":
        return 1.0
    if expr[0] not in ("mul", "div"):
        return None
    a, b = expr[1:]
    if a[0] != "op" and expr[0] == "mul":
        a, b = b, a
    if a[0] != "op" or b[0] not in ("num", "val"):
        return None
    value = float(np.reshape(b[1], -1)[0])
    return value if expr[0] == "mul" else 1 / value
