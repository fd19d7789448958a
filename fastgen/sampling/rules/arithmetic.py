"""Elementwise functions of two tensors."""

import functools

import numpy as np
import torch

from fastgen.sampling.build import LOW
from fastgen.sampling.rules.forms import num, power, softplus_of_minus, truncated, truth
from fastgen.sampling.rules.registry import DECOMPOSE, rule

BINARY = {
    "maximum": lambda x, y: ("maximum", x, y),
    "minimum": lambda x, y: ("minimum", x, y),
    "fmax": lambda x, y: ("maximum", x, y),
    "fmin": lambda x, y: ("minimum", x, y),
    "pow": power,
    "ne": lambda x, y: ("ne", x, y),
    "lt": lambda x, y: ("lt", x, y),
    "le": lambda x, y: ("le", x, y),
    "gt": lambda x, y: ("gt", x, y),
    "ge": lambda x, y: ("ge", x, y),
    "remainder": lambda x, y: ("sub", x, ("mul", y, ("floor", ("div", x, y)))),
    "fmod": lambda x, y: ("sub", x, ("mul", y, truncated(("div", x, y)))),
    "floor_divide": lambda x, y: ("floor", ("div", x, y)),
    "logical_and": lambda x, y: ("mul", truth(x), truth(y)),
    "logical_or": lambda x, y: ("maximum", truth(x), truth(y)),
    "logical_xor": lambda x, y: ("ne", truth(x), truth(y)),
    "__rshift__": lambda x, y: ("floor", ("div", x, ("pow", num(2), y))),
    "__lshift__": lambda x, y: ("mul", x, ("pow", num(2), y)),
    "bitwise_right_shift": lambda x, y: ("floor", ("div", x, ("pow", num(2), y))),
    "bitwise_left_shift": lambda x, y: ("mul", x, ("pow", num(2), y)),
    "copysign": lambda x, y: ("mul", ("abs", x), ("where", ("lt", y, num(0)), num(-1), num(1))),
    "logaddexp": lambda x, y: ("add", ("maximum", x, y), softplus_of_minus(("sub", x, y))),
    "xlogy": lambda x, y: ("where", ("eq", x, num(0)), num(0), ("mul", x, ("log", y))),
}


def _register_binary(name, expression):
    @rule(name)
    def _binary(t, a):
        return t.builder.pointwise(expression, t.operand(a.self), t.operand(_other(a)))


def _other(a):
    return a.exponent if hasattr(a, "exponent") else a.other


for _name, _expression in BINARY.items():
    _register_binary(_name, _expression)


@rule("add", "sub", "rsub")
def _add(t, a):
    x, y = t.operand(a.self), t.operand(a.other)
    alpha = 1 if a.alpha is None else a.alpha
    if _is_logical(a.self, a.other):
        return t.builder.pointwise(BINARY["logical_or"], x, y)
    if t.func._schema.name == "aten::rsub":
        x, y = y, x
        if alpha != 1:
            return DECOMPOSE
    name = "add" if t.func._schema.name.startswith("aten::add") else "sub"
    sign = alpha if name == "add" else -alpha
    x, x_fill = _without_infinite_fill(x, 1)
    y, y_fill = _without_infinite_fill(y, sign)
    found = t.builder.pointwise(
        lambda p, q: (name, p, q if alpha == 1 else ("mul", q, num(alpha))), x, y
    )
    for values, factor in ((x, 1), (y, sign)):
        if values.dtype == np.float64 and values.ndim and (values * factor <= LOW).any():
            fill = np.broadcast_to(values * factor, found.shape)
            low = fill <= LOW
            t.builder.note_fills(found[low], fill[low])
    for fill in (x_fill, y_fill):
        if fill is not None:
            found = np.where(fill, t.builder.constants(np.float64(-np.inf)), found)
    return found


def _without_infinite_fill(values, sign):
    """(values with 0 for summands that make minus infinity of anything, where they were or None):
    a mask of zeros and minus infinities then leaves nothing to add."""
    if values.dtype != np.float64 or not values.ndim or not np.isinf(values).any():
        return values, None
    fill = values * sign == -np.inf
    return np.where(fill, 0.0, values), fill


@rule("mul")
def _mul(t, a):
    return _product(t, t.operand(a.self), t.operand(a.other))


def _product(t, x, y):
    """Zeros among constants make the zero address; where the others are all ones, nothing is left
    to compute."""
    found = None
    for value, other in ((x, y), (y, x)):
        if value.dtype != np.float64 or not (value == 0).any():
            continue
        shape = np.broadcast_shapes(np.shape(x), np.shape(y))
        zero = np.broadcast_to(value == 0, shape)
        if ((value == 0) | (value == 1)).all():
            found = np.broadcast_to(other, shape)
        else:
            found = t.builder.pointwise(lambda p, q: ("mul", p, q), x, y)
        return np.where(zero, 0, found)
    return t.builder.pointwise(lambda p, q: ("mul", p, q), x, y)


@rule("div")
def _div(t, a):
    mode = getattr(a, "rounding_mode", None)

    def expression(p, q):
        quotient = ("div", p, q)
        if q[0] == "num" and mode is None and _exact_reciprocal(q[1]):
            quotient = ("mul", p, num(1 / q[1]))
        if mode == "floor":
            return ("floor", quotient)
        return truncated(quotient) if mode == "trunc" else quotient

    return t.builder.pointwise(expression, t.operand(a.self), t.operand(a.other))


@functools.lru_cache
def _exact_reciprocal(divisor):
    """Does a product with 1 / divisor give every multiple of it right? Otherwise a floor behind it
    could be one too low."""
    if divisor == 0 or divisor != int(divisor) or abs(divisor) > 1 << 16:
        return divisor != 0
    multiples = np.arange((1 << 16) // int(abs(divisor)) + 1)
    return all(
        (dtype(multiples * divisor) * dtype(1 / dtype(divisor)) == multiples).all()
        for dtype in (np.float32, np.float64)
    )


@rule("addcmul", "addcdiv")
def _addcmul(t, a):
    name = "mul" if "addcmul" in t.func._schema.name else "div"
    return t.builder.pointwise(
        lambda x, y, z: ("add", x, ("mul", (name, y, z), num(a.value))),
        *(t.operand(v) for v in (a.self, a.tensor1, a.tensor2)),
    )


@rule("lerp")
def _lerp(t, a):
    return t.builder.pointwise(
        lambda x, y, w: ("add", x, ("mul", w, ("sub", y, x))),
        *(t.operand(v) for v in (a.self, a.end, a.weight)),
    )


@rule("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__")
def _bitwise(t, a):
    short = t.func._schema.name.split("::")[1].strip("_")
    name = short.removeprefix("bitwise_").removeprefix("i")
    x, y = t.operand(a.self), t.operand(a.other)
    if _is_logical(a.self, a.other):
        return t.builder.pointwise(BINARY[f"logical_{name}"], x, y)
    if name == "and" and x.dtype == np.float64:
        x, y = y, x
    if name == "and" and y.dtype == np.float64:
        if _are_powers_of_two(y + 1):  # the lowest bits
            return t.builder.pointwise(BINARY["remainder"], x, y + 1)
        if _are_powers_of_two(y):  # one bit
            return t.builder.pointwise(_one_bit, x, y)
    t.refuse("works on the bits of codes", "use //, % and comparisons")


def _are_powers_of_two(values):
    return (values > 0).all() and (np.frexp(values)[0] == 0.5).all()


def _one_bit(x, y):
    return ("mul", y, BINARY["remainder"](("floor", ("div", x, y)), num(2)))


def _is_logical(*values):
    return all(
        isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool for value in values
    )


@rule("bitwise_not", "__invert__")
def _bitwise_not(t, a):
    minus = 1.0 if a.self.dtype == torch.bool else -1.0
    return t.builder.pointwise(lambda x: ("sub", num(minus), x), t.operand(a.self))
