"""Functions of one tensor, elementwise."""

import math

import numpy as np
import torch

from fastgen.sampling.rules.forms import (
    arctangent,
    arctanh,
    complement,
    hard_sigmoid,
    hypotenuse,
    log_sigmoid,
    num,
    softplus,
    truncated,
)
from fastgen.sampling.rules.registry import DECOMPOSE, rule

_UNARY = {
    "relu": lambda x: ("relu", x),
    "tanh": lambda x: ("tanh", x),
    "sigmoid": lambda x: ("sigmoid", x),
    "exp": lambda x: ("exp", x),
    "exp2": lambda x: ("exp", ("mul", x, num(math.log(2)))),
    "expm1": lambda x: ("expm1", x),
    "log": lambda x: ("log", x),
    "log2": lambda x: ("mul", ("log", x), num(1 / math.log(2))),
    "log10": lambda x: ("mul", ("log", x), num(1 / math.log(10))),
    "log1p": lambda x: ("log1p", x),
    "sqrt": lambda x: ("sqrt", x),
    "rsqrt": lambda x: ("rsqrt", x),
    "reciprocal": lambda x: ("reciprocal", x),
    "abs": lambda x: ("abs", x),
    "neg": lambda x: ("neg", x),
    "sign": lambda x: ("sign", x),
    "sgn": lambda x: ("sign", x),
    "floor": lambda x: ("floor", x),
    "ceil": lambda x: ("ceil", x),
    "round": lambda x: ("round", x),
    "trunc": truncated,
    "frac": lambda x: ("sub", x, truncated(x)),
    "sin": lambda x: ("sin", x),
    "cos": lambda x: ("cos", x),
    "erf": lambda x: ("erf", x),
    "erfc": lambda x: ("sub", num(1), ("erf", x)),
    "square": lambda x: ("mul", x, x),
    "silu": lambda x: ("mul", x, ("sigmoid", x)),
    "relu6": lambda x: ("minimum", ("relu", x), num(6)),
    "isnan": lambda x: ("ne", x, x),
    "logical_not": lambda x: ("eq", x, num(0)),
    "isfinite": lambda x: ("eq", ("sub", x, x), num(0)),  # infinity less itself is no number
    "isinf": lambda x: ("mul", ("eq", x, x), ("ne", ("sub", x, x), num(0))),
    "hardsigmoid": hard_sigmoid,
    "hardswish": lambda x: ("mul", x, hard_sigmoid(x)),
    "mish": lambda x: ("mul", x, ("tanh", softplus(x))),
    "logit": lambda x: ("log", ("div", x, ("sub", num(1), x))),
    "softsign": lambda x: ("div", x, ("add", num(1), ("abs", x))),
    "sinh": lambda x: ("mul", ("sub", ("exp", x), ("exp", ("neg", x))), num(0.5)),
    "cosh": lambda x: ("mul", ("add", ("exp", x), ("exp", ("neg", x))), num(0.5)),
    "atan": arctangent,
    "asin": lambda x: arctangent(("div", x, complement(x))),
    "acos": lambda x: ("sub", num(math.pi / 2), arctangent(("div", x, complement(x)))),
    "asinh": lambda x: ("mul", ("sign", x), ("log", ("add", ("abs", x), hypotenuse(x)))),
    "acosh": lambda x: ("log", ("add", x, ("sqrt", ("sub", ("mul", x, x), num(1))))),
    "atanh": arctanh,
    "special_expit": lambda x: ("sigmoid", x),
    "tan": lambda x: ("div", ("sin", x), ("cos", x)),
}


def _register_unary(name, expression):
    @rule(name)
    def _unary(t, a):
        if getattr(a, "decimals", 0) or getattr(a, "eps", None) is not None:
            return DECOMPOSE
        return t.builder.pointwise(expression, t.operand(a.self))


for _name, _expression in _UNARY.items():
    _register_unary(_name, _expression)


@rule("elu")
def _elu(t, a):
    alpha, scale, inner = (1.0 if v is None else v for v in (a.alpha, a.scale, a.input_scale))

    def expression(x):
        if inner == 1 and alpha == 1:
            return ("mul", ("elu", x), num(scale))
        negative = ("mul", ("expm1", ("mul", x, num(inner))), num(alpha))
        return ("mul", ("where", ("gt", x, num(0)), x, negative), num(scale))

    return t.builder.pointwise(expression, t.operand(a.self))


@rule("leaky_relu")
def _leaky_relu(t, a):
    slope = num(a.negative_slope)
    return t.builder.pointwise(
        lambda x: ("where", ("gt", x, num(0)), x, ("mul", x, slope)), t.operand(a.self)
    )


@rule("gelu")
def _gelu(t, a):
    def exact(x):
        return ("mul", ("mul", x, num(0.5)), ("add", num(1), ("erf", ("mul", x, num(0.5**0.5)))))

    def tanh(x):
        cube = ("mul", ("mul", x, ("mul", x, x)), num(0.044715))
        inner = ("mul", ("add", x, cube), num((2 / math.pi) ** 0.5))
        return ("mul", ("mul", x, num(0.5)), ("add", num(1), ("tanh", inner)))

    return t.builder.pointwise(tanh if a.approximate == "tanh" else exact, t.operand(a.self))


@rule("glu")
def _glu(t, a):
    left, right = np.split(t.operand(a.self), 2, axis=a.dim)
    return t.builder.pointwise(lambda x, y: ("mul", x, ("sigmoid", y)), left, right)


@rule("clamp", "clip", "hardtanh", "clamp_min", "clamp_max")
def _clamp(t, a):
    low = getattr(a, "min", getattr(a, "min_val", None))
    high = getattr(a, "max", getattr(a, "max_val", None))
    found = t.operand(a.self)
    if low is not None:
        found = t.builder.pointwise(lambda x, y: ("maximum", x, y), found, t.operand(low))
    if high is not None:
        found = t.builder.pointwise(lambda x, y: ("minimum", x, y), found, t.operand(high))
    return found


@rule("softplus")
def _softplus_rule(t, a):
    beta = 1.0 if a.beta is None else float(a.beta)
    return t.builder.pointwise(
        lambda x: ("mul", softplus(("mul", x, num(beta))), num(1 / beta)), t.operand(a.self)
    )


@rule("log_sigmoid_forward")
def _log_sigmoid_rule(t, a):
    return [t.builder.pointwise(log_sigmoid, t.operand(a.self)), None]


@rule("celu")
def _celu(t, a):
    alpha = float(a.alpha)

    def expression(x):
        negative = ("mul", ("expm1", ("mul", x, num(1 / alpha))), num(alpha))
        return ("where", ("gt", x, num(0)), x, negative)

    return t.builder.pointwise(expression, t.operand(a.self))


@rule("threshold")
def _threshold(t, a):
    return t.builder.pointwise(
        lambda x: ("where", ("gt", x, num(a.threshold)), x, num(a.value)), t.operand(a.self)
    )


@rule("hardshrink", "softshrink")
def _shrink(t, a):
    width = num(a.lambd)

    def expression(x):
        kept = x
        if "softshrink" in t.func._schema.name:
            kept = ("sub", x, ("mul", ("sign", x), width))
        return ("where", ("gt", ("abs", x), width), kept, num(0))

    return t.builder.pointwise(expression, t.operand(a.self))


@rule("rrelu_with_noise")
def _mean_rrelu(t, a):  # in eval mode; else it is random and refused before
    slope = num((a.lower + a.upper) / 2)
    return t.builder.pointwise(
        lambda x: ("where", ("gt", x, num(0)), x, ("mul", x, slope)), t.operand(a.self)
    )


@rule("_prelu_kernel")
def _prelu(t, a):
    return t.builder.pointwise(
        lambda x, slope: ("where", ("gt", x, num(0)), x, ("mul", slope, x)),
        t.operand(a.self),
        t.operand(a.weight),
    )


@rule("nan_to_num")
def _nan_to_num(t, a):
    limits = torch.finfo(a.self.dtype) if a.self.dtype.is_floating_point else None
    if limits is None:
        return t.addresses(a.self)
    low = limits.min if a.neginf is None else a.neginf
    high = limits.max if a.posinf is None else a.posinf

    def expression(x):
        number = ("where", ("ne", x, x), num(a.nan or 0), x)
        number = ("where", ("eq", number, num(math.inf)), num(high), number)
        return ("where", ("eq", number, num(-math.inf)), num(low), number)

    return t.builder.pointwise(expression, t.operand(a.self))
