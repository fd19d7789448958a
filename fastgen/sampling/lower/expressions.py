"""Expressions of graph.py as trees: rewriting, comparing, turning them into straight-line code."""

import numpy as np

from fastgen.sampling.graph import LEAVES

ACC = ("acc", 0)


def leaves(expr):
    if expr[0] in LEAVES:
        return [expr]
    return [leaf for argument in expr[1:] for leaf in leaves(argument)]


def rewrite(expr, change):
    """expr with change(leaf) in place of every leaf."""
    if expr[0] in LEAVES:
        return change(expr)
    return (expr[0], *(rewrite(argument, change) for argument in expr[1:]))


def replace(expr, old, new):
    """expr with `new` where `old`, that very object, stands."""
    if expr is old:
        return new
    if expr[0] in LEAVES:
        return expr
    return (expr[0], *(replace(argument, old, new) for argument in expr[1:]))


def narrow(expr, channel, count, first_operand):
    """Channels channel .. channel + count - 1 of expr, its operands renumbered from
    first_operand on."""

    def change(leaf):
        kind = leaf[0]
        if kind == "acc":
            return ("acc", leaf[1] + channel)
        if kind == "op":
            return ("op", leaf[1] + first_operand, leaf[2] + channel)
        return ("val", leaf[1][channel : channel + count]) if kind == "val" else leaf

    return rewrite(expr, change)


def key(expr):
    """Hashable, equal for equal expressions."""
    if expr[0] == "val":
        return ("val", expr[1].tobytes())
    if expr[0] in LEAVES:
        return expr
    return (expr[0], *(key(argument) for argument in expr[1:]))


def operands_of(expr):
    return sorted({leaf[1] for leaf in leaves(expr) if leaf[0] == "op"})


def straight_line(expr, channels):
    """(code, consts (count, channels), temporaries) of Instruction; equal parts are computed once
    and a temporary is used again once its last reader is past."""
    consts, const_index, steps, value_of = [], {}, [], {}

    def visit(expr):
        kind = expr[0]
        if kind == "op":
            return expr
        if kind == "acc":
            return ("acc", expr[1])
        if kind in ("num", "val"):
            value = np.zeros(channels)
            if kind == "num":
                value[:] = expr[1]
            else:
                value[: len(expr[1])] = expr[1]
            index = const_index.setdefault(value.tobytes(), len(consts))
            if index == len(consts):
                consts.append(value)
            return ("const", index, 0)
        name = key(expr)
        if name not in value_of:
            arguments = [visit(argument) for argument in expr[1:]]
            value_of[name] = len(steps)
            steps.append((kind, arguments))
        return ("value", value_of[name])

    root = visit(expr)
    if root[0] != "value":
        steps.append(("copy", [root]))
    last_read = {}
    for at, (_, arguments) in enumerate(steps):
        for argument in arguments:
            if argument[0] == "value":
                last_read[argument[1]] = at
    code, place, free, temporaries = [], {}, [], 0
    for at, (function, arguments) in enumerate(steps):
        read = [("tmp", place[a[1]], 0) if a[0] == "value" else a for a in arguments]
        if at == len(steps) - 1:
            result = ("out",)
        else:
            # not over an argument: it may be read with another channel offset
            if not free:
                free.append(temporaries)
                temporaries += 1
            place[at] = free.pop()
            result = ("tmp", place[at])
        for argument in {a[1] for a in arguments if a[0] == "value"}:
            if last_read[argument] == at:
                free.append(place[argument])
        code.append((function, result, read))
    return code, np.array(consts).reshape(len(consts), channels), temporaries
