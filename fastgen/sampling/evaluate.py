"""Expressions of graph.py: their values in numpy float64, and what constants make of them."""

import numpy as np

from fastgen.sampling.graph import LEAVES


def _erf(x):
    import torch  # numpy has none

    return torch.erf(torch.from_numpy(np.array(x, np.float64))).numpy()


def _sigmoid(x):
    return np.where(x >= 0, 1, np.exp(np.minimum(x, 0))) / (1 + np.exp(-np.abs(x)))


FUNCTIONS = {
    "relu": lambda x: np.where(x < 0, 0.0, x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "abs": np.abs,
    "neg": np.negative,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "sin": np.sin,
    "cos": np.cos,
    "erf": _erf,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "where": lambda c, a, b: np.where(c != 0, a, b),
}


def evaluate(expr, leaf=None):
    """float64 value; leaf: function of an "acc" or "op" leaf."""
    if expr[0] in ("num", "val"):
        return np.asarray(expr[1], np.float64)
    if expr[0] in LEAVES:
        return leaf(expr)
    arguments = [evaluate(argument, leaf) for argument in expr[1:]]
    with np.errstate(all="ignore"):
        return np.asarray(FUNCTIONS[expr[0]](*arguments), np.float64)


def row_value(function, rows, args):
    """A reduction of graph.ROWS over the last axis."""
    if function == "variance":
        return rows.var(-1) * rows.shape[-1] / (rows.shape[-1] - args["correction"])
    return {"sum": np.sum, "mean": np.mean, "amax": np.max, "amin": np.min, "prod": np.prod}[
        function
    ](rows, -1)


def operand_numbers(expr):
    if expr[0] in LEAVES:
        return [expr[1]] if expr[0] == "op" else []
    return sorted({i for argument in expr[1:] for i in operand_numbers(argument)})


def renumbered(expr, used):
    """The operands, named by their place in `used`."""
    if expr[0] == "op":
        return ("op", used.index(expr[1]), expr[2])
    if expr[0] in LEAVES:
        return expr
    return (expr[0], *(renumbered(argument, used) for argument in expr[1:]))


def _is_number(expr, value):
    return expr[0] == "num" and expr[1] == value


def simplified(expr):
    """Without x + 0, x * 1, x * 0 (which is 0 whatever x is), x / 1, and with constants folded."""
    if expr[0] in LEAVES:
        return expr
    name, *arguments = expr
    arguments = [simplified(argument) for argument in arguments]
    if name == "mul" and any(_is_number(argument, 0) for argument in arguments):
        return ("num", 0.0)
    if all(argument[0] in ("num", "val") for argument in arguments):
        value = evaluate((name, *arguments))
        return ("num", float(value)) if value.ndim == 0 else ("val", value)
    if name in ("add", "mul"):
        neutral = 0 if name == "add" else 1
        for i in (0, 1):
            if _is_number(arguments[i], neutral):
                return arguments[1 - i]
    if name == "sub" and _is_number(arguments[1], 0):
        return arguments[0]
    if name == "div" and _is_number(arguments[1], 1):
        return arguments[0]
    if name == "where" and arguments[0][0] == "num":
        return arguments[1] if arguments[0][1] != 0 else arguments[2]
    return (name, *arguments)
