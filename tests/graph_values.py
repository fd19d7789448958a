"""A slow, plain evaluator of a traced graph: one cell after the other, in numpy float64."""

import copy

import numpy as np
import torch

from fastgen.sampling.evaluate import evaluate


def _cell(arena, first, width):
    """(width,) scalars from an address on; zeros where absent."""
    return arena[first : first + width] if first else np.zeros(width)


def _row(function, x, args):
    if function == "softmax":
        e = np.exp(x - x.max())
        return e / e.sum()
    if function == "log_softmax":
        return x - x.max() - np.log(np.exp(x - x.max()).sum())
    if function == "layer_norm":
        y = (x - x.mean()) / np.sqrt(x.var() + args["eps"])
        y = y if args["weight"] is None else y * args["weight"]
        return y if args["bias"] is None else y + args["bias"]
    if function == "variance":
        return x.var(ddof=args["correction"])
    return {"sum": np.sum, "mean": np.mean, "amax": np.max, "amin": np.min, "prod": np.prod}[
        function
    ](x)


def _values(node, arena, p, codes, sources):
    if node.kind == "code":
        return codes[node.code_index[p]]
    if node.kind == "const":
        return node.values[p]
    if node.kind == "condition":
        return sources[node.source][node.elements[p]]
    if node.kind == "gather":
        return arena[node.sources[p]]
    if node.kind == "lookup":
        return node.table[int(arena[node.index[p]])]
    if node.kind == "dot":
        return (
            arena[node.a[p] : node.a[p] + node.width] @ (arena[node.b[p] : node.b[p] + node.width])
        )
    if node.kind == "mix":
        total = np.zeros(node.nch)
        for weight, cell in zip(node.weights[p], node.cells[p], strict=True):
            if weight:
                total += arena[weight] * _cell(arena, cell, node.nch)
        return total
    if node.kind == "row":
        present = node.sources[p] >= 0
        out = np.zeros(node.nch)
        found = _row(node.function, arena[node.sources[p][present]], node.args)
        out[present if node.nch > 1 else slice(None)] = found
        return out
    acc = None
    if node.kind == "linear":
        acc = node.bias.copy()
        for adds in node.adds:
            acc += _cell(arena, adds[p], node.nacc)
        row = 0
        for addresses, width in node.taps:
            acc += _cell(arena, addresses[p], width) @ node.weight[row : row + width]
            row += width

    def leaf(expr):
        kind, *which = expr
        if kind == "acc":
            return acc[which[0] : which[0] + node.nch]
        addresses, one = node.operands[which[0]]
        cell = _cell(arena, addresses[p], 1 if one else which[1] + node.nch)
        return cell if one else cell[which[1] :]

    return evaluate(node.expr, leaf)


def arena_of(traced, codes, condition=None):
    """Every scalar of the graph for one image. codes: int64 (C, *space)."""
    arena = np.full(traced.graph.size, np.nan)
    arena[0] = 0
    flat = np.asarray(codes, np.float64).reshape(-1)
    sources = [] if condition is None else [s.numpy() for s in traced.tape.run(condition)]
    with np.errstate(all="ignore"):
        for node in traced.graph.nodes:
            for p in range(node.npos):
                start = node.base + p * node.nch
                arena[start : start + node.nch] = _values(node, arena, p, flat, sources)
    return arena


def check_ready(traced):
    """No cell may be computed before what it reads."""
    graph = traced.graph
    for node in graph.nodes:
        for addresses in node.reads():
            if node.kind == "mix":
                addresses = np.where(node.weights != 0, addresses, 0)
            ready = graph.ready(np.maximum(addresses, 0))
            assert (ready.reshape(node.npos, -1).max(1) <= node.ready).all(), node.op
            assert (addresses < node.base).all(), node.op


def check_runs(traced):
    """What is read as channels of one cell lies in one cell."""
    graph = traced.graph

    def check(addresses, width):
        addresses = addresses[addresses > 0]
        if len(addresses):
            for node, mask, _ in graph.decode(addresses):
                assert ((addresses[mask] - node.base) % node.nch + width <= node.nch).all()

    for node in graph.nodes:
        for addresses, width in node.taps:
            check(addresses, width)
        for addresses in node.adds:
            check(addresses, node.nacc)
        for addresses, one in node.operands:
            check(addresses, 1 if one else node.nch)
        if node.kind == "dot":
            check(node.a, node.width)
            check(node.b, node.width)
        if node.kind == "mix":
            check(node.cells.reshape(-1), node.nch)


def check(traced, fn, shape, levels, condition=None, params=None, tolerance=1e-5, seed=12):
    """The graph's parameters against fn's, on codes it was not traced with."""
    check_ready(traced)
    check_runs(traced)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, levels, (1, *shape), generator=generator)
    own = copy.deepcopy(condition)  # fn may write to it
    with torch.no_grad():
        out = fn(codes) if condition is None else fn(codes, own)
        out = out if params is None else params(out)
    expected = out[0].double().reshape(traced.params.shape).numpy()
    values = arena_of(traced, codes[0], condition)[traced.params]
    np.testing.assert_allclose(
        values, expected, rtol=0, atol=tolerance * max(1, np.abs(np.nan_to_num(expected)).max())
    )
