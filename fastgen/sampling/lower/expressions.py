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


def straight_line(exprs, channels):
    """(code, consts (count, channels), temporaries) of Instruction; the first expression gives
    ("out",), further ones ("out", 1), ("out", 2), ... Equal parts are computed once; a temporary is
    used again once its last reader is past."""
    lines = _Lines(channels)
    for out, expr in enumerate(exprs):
        lines.add_root(lines.visit(expr), out)
    consts = np.array(lines.consts).reshape(len(lines.consts), channels)
    code, temporaries = lines.with_temporaries()
    return code, consts, temporaries


class _Lines:
    """Steps (function, arguments), an argument ("step", index) being the result of another."""

    def __init__(self, channels):
        self.channels = channels
        self.consts, self._const_index = [], {}
        self.steps, self._step_of = [], {}
        self.out_of = {}  # step -> the out it writes instead of a temporary

    def visit(self, expr):
        kind = expr[0]
        if kind in ("acc", "op"):
            return expr
        if kind in ("num", "val"):
            return self._const(expr)
        name = key(expr)
        if name not in self._step_of:
            arguments = [self.visit(argument) for argument in expr[1:]]
            self._step_of[name] = len(self.steps)
            self.steps.append((kind, arguments))
        return ("step", self._step_of[name])

    def _const(self, expr):
        value = np.zeros(self.channels)
        if expr[0] == "num":
            value[:] = expr[1]
        else:
            value[: len(expr[1])] = expr[1]
        index = self._const_index.setdefault(value.tobytes(), len(self.consts))
        if index == len(self.consts):
            self.consts.append(value)
        return ("const", index, 0)

    def add_root(self, value, out):
        """A value others may read too is copied out."""
        self.out_of[len(self.steps)] = out
        self.steps.append(("copy", [value]))

    def _drop_copies(self):
        """What only a copy reads is computed in the copy's place."""
        readers = {}
        for at, (_, arguments) in enumerate(self.steps):
            for argument in arguments:
                if argument[0] == "step":
                    readers.setdefault(argument[1], []).append(at)
        for at, out in list(self.out_of.items()):
            (argument,) = self.steps[at][1]
            if argument[0] == "step" and readers[argument[1]] == [at]:
                del self.out_of[at]
                self.out_of[argument[1]] = out
                self.steps[at] = None

    def with_temporaries(self):
        self._drop_copies()
        last_read = {}
        for at, step in enumerate(self.steps):
            for argument in step[1] if step else ():
                if argument[0] == "step":
                    last_read[argument[1]] = at
        code, place, free, temporaries = [], {}, [], 0
        for at, step in enumerate(self.steps):
            if step is None:
                continue
            function, arguments = step
            read = [("tmp", place[a[1]], 0) if a[0] == "step" else a for a in arguments]
            if at in self.out_of:
                out = self.out_of[at]
                result = ("out", out) if out else ("out",)
            else:
                # not over an argument: it may be read with another channel offset
                if not free:
                    free.append(temporaries)
                    temporaries += 1
                place[at] = free.pop()
                result = ("tmp", place[at])
            for argument in {a[1] for a in arguments if a[0] == "step"}:
                if last_read[argument] == at:
                    free.append(place[argument])
            code.append((function, result, read))
        return code, temporaries
