"""What each ATen op does to the addresses of its operands.

A rule is ``rule(t, a)``: t the tracer, a the op's arguments by the names of its schema. It returns
the addresses of the result (a list for several; None for one that is not kept), or DECOMPOSE.
Data movement is the same op on the array of addresses.
"""

import functools
import importlib
import math
import pkgutil
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import fastgen.reference
from fastgen.sampling.products import batch_product, cumulative_sum, windows

DECOMPOSE = object()
HOST_READS = set(
    "_local_scalar_dense equal is_nonzero nonzero masked_select unique _unique2 unique_dim "
    "unique_consecutive allclose bincount".split()
)
GUARD_REDUCTIONS = {"min", "max", "aminmax", "amin", "amax", "all", "any"}
RANGE_GUARDS = GUARD_REDUCTIONS | set(
    "eq ne lt le gt ge isnan isfinite isinf logical_and logical_or logical_not bitwise_and "
    "bitwise_or bitwise_not _local_scalar_dense is_nonzero".split()
)
# their results depend on the argument's shape only
FACTORIES = set(
    "empty_like zeros_like ones_like full_like new_empty new_empty_strided new_zeros new_ones "
    "new_full".split()
)
CHECKS = {"_assert_async", "_assert_tensor_metadata", "_assert_scalar"}

_RULES = {}
_DECOMPOSITIONS = {}


def rule(*names):
    def register(function):
        for name in names:
            _RULES[name] = function
        return function

    return register


def decomposes(*names):
    """Registers a function of an op's arguments that computes it by simpler ops."""

    def register(function):
        for name in names:
            _DECOMPOSITIONS[name] = function
        return function

    return register


def rule_for(func):
    name = func._schema.name
    short = name.split("::")[1]
    if name.startswith("fastgen::"):
        return _RULES.get(name)
    found = _RULES.get(short)
    if found is None and short.startswith("__i") and short.endswith("__"):
        return _RULES.get(f"__{short[3:]}")
    if found is None and short.endswith("_"):
        return _RULES.get(short[:-1])
    return found


def bound_arguments(func, args, kwargs):
    bound = {}
    for i, argument in enumerate(func._schema.arguments):
        if i < len(args):
            bound[argument.name] = args[i]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return SimpleNamespace(**bound)


def mutated_arguments(func, args, kwargs):
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            if isinstance(value, (list, tuple)):
                found.extend(value)
            elif value is not None:
                found.append(value)
    return found


def decomposition(func):
    """A function of the same arguments in simpler ops, or None."""
    namespace, name = func._schema.name.split("::")
    if namespace == "fastgen":
        return _fastgen_reference(name)
    if name in _DECOMPOSITIONS:
        return _DECOMPOSITIONS[name]
    # imported here: it costs a second, and few models need it
    from torch._decomp import core_aten_decompositions

    found = core_aten_decompositions().get(func)
    return func.decompose if found is None else found


def _fastgen_reference(name):
    for module in pkgutil.iter_modules(fastgen.reference.__path__):
        found = getattr(importlib.import_module(f"fastgen.reference.{module.name}"), name, None)
        if found is not None:
            return found
    return None


# data movement


def _moved(function, *arrays):
    """A torch function of address tensors, as a numpy array."""
    return function(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)).numpy()


@rule("clone", "contiguous", "lift_fresh", "alias", "detach", "lift_fresh_copy", "alias_copy")
def _same(t, a):
    return t.addresses(a.self)


@rule("_unsafe_view", "view_copy", "_reshape_copy", "reshape", "_reshape_alias")
def _view(t, a):
    size = getattr(a, "size", None) or a.shape
    return t.addresses(a.self).reshape(tuple(size))


@rule("copy")
def _copy(t, a):
    source = _cast(t, t.addresses(a.src), a.src.dtype, a.self.dtype)
    return np.broadcast_to(source, a.self.shape)


@rule("_to_copy")
def _to_copy(t, a):
    return _cast(t, t.addresses(a.self), a.self.dtype, a.dtype or a.self.dtype)


def _cast(t, addresses, old, new):
    if new == torch.bool and old != torch.bool:
        return t.builder.pointwise(lambda x: ("ne", x, ("num", 0.0)), addresses)
    if old.is_floating_point and not new.is_floating_point and new != torch.bool:
        return t.builder.pointwise(_truncated, addresses)
    return addresses


def _truncated(x):
    return ("where", ("lt", x, ("num", 0.0)), ("ceil", x), ("floor", x))


@rule("fill", "zero", "fill_")
def _fill(t, a):
    value = getattr(a, "value", 0.0)
    return np.broadcast_to(t.addresses(value), a.self.shape)


# Ops that only move data, as long as indices and masks are constants; the second set has no kernel
# for integers.
_MOVERS = set(
    "cat stack constant_pad_nd repeat flip roll rot90 channel_shuffle pixel_shuffle "
    "pixel_unshuffle index index_select gather take tril triu slice_scatter select_scatter "
    "diagonal_scatter as_strided_scatter index_put _index_put_impl scatter index_copy index_fill "
    "masked_fill masked_scatter unsafe_split unsafe_split_with_sizes unsafe_chunk split_copy "
    "split_with_sizes_copy unbind_copy expand_copy permute_copy transpose_copy t_copy select_copy "
    "slice_copy squeeze_copy unsqueeze_copy unfold_copy diag_embed diagonal_copy".split()
)
_FLOAT_MOVERS = set(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d im2col".split()
)
_INDICES = {"index", "indices", "mask", "condition"}  # arguments that say where, not what
_FILLS = {"value"}


def _move(t, a):
    short = t.func._schema.name.split("::")[1].rstrip("_")
    dtype = torch.float64 if short in _FLOAT_MOVERS else torch.int64

    def addresses(value):
        if isinstance(value, torch.Tensor):
            return torch.from_numpy(np.array(t.addresses(value))).to(dtype)
        return [addresses(v) for v in value] if isinstance(value, (list, tuple)) else value

    arguments = {}
    for name, value in vars(a).items():
        if name in _INDICES:
            _need_constants(t, value)
            arguments[name] = value
        elif name in _FILLS and not isinstance(value, torch.Tensor):
            address = int(t.builder.constants(np.float64(0 if value is None else value)))
            arguments[name] = float(address) if dtype == torch.float64 else address
        elif name == "out":
            arguments[name] = torch.empty(0, dtype=dtype)
        else:
            arguments[name] = addresses(value)
    accumulate = arguments.get("accumulate") or arguments.get("reduce") is not None
    if accumulate:
        t.refuse("adds up where indices meet", "use a sum or a matrix product")
    if "tensors" in arguments:  # torch.cat drops empty 1-d tensors of any rank's company
        parts = [p for p in arguments["tensors"] if not (p.dim() == 1 and p.numel() == 0)]
        arguments["tensors"] = parts or arguments["tensors"]
    out = _call(t.func, arguments)
    if isinstance(out, (tuple, list)):
        return [o.long().numpy() for o in out]
    return out.long().numpy()


def _call(func, arguments):
    """func with arguments by name; schemas have positional ones, `self` among them."""
    positional, keywords = [], {}
    for argument in func._schema.arguments:
        if argument.name not in arguments:
            continue
        if argument.kwarg_only:
            keywords[argument.name] = arguments[argument.name]
        else:
            positional.append(arguments[argument.name])
    return func(*positional, **keywords)


def _need_constants(t, value):
    for v in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(v, torch.Tensor) and not t.is_constant(v):
            t.refuse(
                "moves data to places that depend on codes or condition",
                "only tables of constants can be indexed by them",
            )


for _name in sorted(_MOVERS | _FLOAT_MOVERS):
    _RULES[_name] = _move


def _table(t, value):
    if not t.is_constant(value):
        t.refuse("looks codes up in a table that is not constant", "index a constant table")
    return t.value(value)


@rule("embedding")
def _embedding(t, a):
    return _looked_up(t, _table(t, a.weight), a.indices)


def _looked_up(t, table, index):
    found = t.addresses(index)
    rows = t.builder.lookup(found.reshape(-1), table.reshape(len(table), -1))
    return rows.reshape(*found.shape, *table.shape[1:])


@rule("index")
def _index(t, a):
    traced = [i for i, index in enumerate(a.indices) if index is not None]
    if all(t.is_constant(a.indices[i]) for i in traced):
        return _move(t, a)
    if len(traced) != 1:
        t.refuse("indexes by several computed indices", "combine them into one")
    axis = traced[0]
    table = np.moveaxis(_table(t, a.self), axis, 0)
    found = _looked_up(t, table, a.indices[axis])
    dims = a.indices[axis].dim()
    return np.moveaxis(found, range(dims), range(axis, axis + dims))


@rule("index_select")
def _index_select(t, a):
    if t.is_constant(a.index):
        return _move(t, a)
    table = np.moveaxis(_table(t, a.self), a.dim, 0)
    return np.moveaxis(_looked_up(t, table, a.index.reshape(-1)), 0, a.dim)


@rule("scatter")
def _scatter(t, a):
    if t.is_constant(a.index):
        return _move(t, a)
    base = _table(t, a.self)
    value = t.value(a.src if hasattr(a, "src") else a.value)
    shape = list(a.self.shape)
    shape[a.dim] = 1
    one_hot = (base == 0).all() and list(a.index.shape) == shape and (value == value.flat[0]).all()
    if not one_hot or getattr(a, "reduce", None) is not None:
        t.refuse("scatters to places that depend on codes", "only one-hot encodings are supported")
    return _one_hot(t, t.addresses(a.index), a.dim, a.self.shape[a.dim], value.flat[0])


def _one_hot(t, index, axis, levels, value=1.0):
    """index: addresses with size 1 along axis."""
    lead = np.moveaxis(index, axis, -1)[..., 0]
    found = t.builder.lookup(lead.reshape(-1), np.eye(levels) * value)
    return np.moveaxis(found.reshape(*lead.shape, levels), -1, axis)


@rule("where")
def _where_rule(t, a):
    return _where(t, a.condition, a.self, a.other)


@rule("masked_fill")
def _masked_fill(t, a):
    return _where(t, a.mask, a.value, a.self)


def _where(t, mask, yes, no):
    if t.is_constant(mask):
        return np.where(t.value(mask) != 0, t.addresses(yes), t.addresses(no))
    return t.builder.pointwise(
        lambda c, x, y: ("where", c, x, y), t.operand(mask), t.operand(yes), t.operand(no)
    )


# pointwise


LOW = -9999  # what is filled with this or less gets no weight in a softmax


def _num(value):
    return ("num", float(value))


_UNARY = {
    "relu": lambda x: ("relu", x),
    "tanh": lambda x: ("tanh", x),
    "sigmoid": lambda x: ("sigmoid", x),
    "exp": lambda x: ("exp", x),
    "exp2": lambda x: ("exp", ("mul", x, _num(math.log(2)))),
    "expm1": lambda x: ("expm1", x),
    "log": lambda x: ("log", x),
    "log2": lambda x: ("mul", ("log", x), _num(1 / math.log(2))),
    "log10": lambda x: ("mul", ("log", x), _num(1 / math.log(10))),
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
    "trunc": _truncated,
    "frac": lambda x: ("sub", x, _truncated(x)),
    "sin": lambda x: ("sin", x),
    "cos": lambda x: ("cos", x),
    "erf": lambda x: ("erf", x),
    "erfc": lambda x: ("sub", _num(1), ("erf", x)),
    "square": lambda x: ("mul", x, x),
    "silu": lambda x: ("mul", x, ("sigmoid", x)),
    "relu6": lambda x: ("minimum", ("relu", x), _num(6)),
    "isnan": lambda x: ("ne", x, x),
    "logical_not": lambda x: ("eq", x, _num(0)),
    "isfinite": lambda x: ("le", ("abs", x), _num(np.finfo(np.float64).max)),
    "isinf": lambda x: ("gt", ("abs", x), _num(np.finfo(np.float64).max)),
    "hardsigmoid": lambda x: _hard_sigmoid(x),
    "hardswish": lambda x: ("mul", x, _hard_sigmoid(x)),
    "mish": lambda x: ("mul", x, ("tanh", _softplus(x))),
    "logit": lambda x: ("log", ("div", x, ("sub", _num(1), x))),
    "softsign": lambda x: ("div", x, ("add", _num(1), ("abs", x))),
    "sinh": lambda x: ("mul", ("sub", ("exp", x), ("exp", ("neg", x))), _num(0.5)),
    "cosh": lambda x: ("mul", ("add", ("exp", x), ("exp", ("neg", x))), _num(0.5)),
    "atan": lambda x: _arctangent(x),
    "asin": lambda x: _arctangent(("div", x, _complement(x))),
    "acos": lambda x: ("sub", _num(math.pi / 2), _arctangent(("div", x, _complement(x)))),
    "asinh": lambda x: ("mul", ("sign", x), ("log", ("add", ("abs", x), _hypotenuse(x)))),
    "acosh": lambda x: ("log", ("add", x, ("sqrt", ("sub", ("mul", x, x), _num(1))))),
    "atanh": lambda x: _arctanh(x),
    "special_expit": lambda x: ("sigmoid", x),
    "tan": lambda x: ("div", ("sin", x), ("cos", x)),
}


def _softplus_of_minus(x):
    return ("log1p", ("exp", ("neg", ("abs", x))))


def _hard_sigmoid(x):
    return ("minimum", ("relu", ("mul", ("add", x, _num(3)), _num(1 / 6))), _num(1))


def _softplus(x):
    return ("add", ("relu", x), _softplus_of_minus(x))


def _hypotenuse(x):
    return ("sqrt", ("add", _num(1), ("mul", x, x)))


def _complement(x):
    return ("sqrt", ("sub", _num(1), ("mul", x, x)))


def _arctanh(x):
    return ("mul", _num(0.5), ("sub", ("log1p", x), ("log1p", ("neg", x))))


def _arctangent(x):
    """Halves the angle three times, atan(x) = 2 atan(x / (1 + sqrt(1 + x^2))); what is left is
    below 0.2, where ten terms of the series are exact in float64."""
    for _ in range(3):
        x = ("div", x, ("add", _num(1), _hypotenuse(x)))
    square = ("mul", x, x)
    total = _num(0)
    for power in range(21, 0, -2):
        total = ("add", _num((-1) ** (power // 2) / power), ("mul", square, total))
    return ("mul", _num(8), ("mul", x, total))


def _log_sigmoid(x):
    return ("neg", _softplus(("neg", x)))


def _register_unary(name, expression):
    @rule(name)
    def _unary(t, a):
        if getattr(a, "decimals", 0) or getattr(a, "eps", None) is not None:
            return DECOMPOSE
        return t.builder.pointwise(expression, t.operand(a.self))


for _name, _expression in _UNARY.items():
    _register_unary(_name, _expression)

_BINARY = {
    "maximum": lambda x, y: ("maximum", x, y),
    "minimum": lambda x, y: ("minimum", x, y),
    "fmax": lambda x, y: ("maximum", x, y),
    "fmin": lambda x, y: ("minimum", x, y),
    "pow": lambda x, y: _power(x, y),
    "eq": lambda x, y: ("eq", x, y),
    "ne": lambda x, y: ("ne", x, y),
    "lt": lambda x, y: ("lt", x, y),
    "le": lambda x, y: ("le", x, y),
    "gt": lambda x, y: ("gt", x, y),
    "ge": lambda x, y: ("ge", x, y),
    "remainder": lambda x, y: ("sub", x, ("mul", y, ("floor", ("div", x, y)))),
    "fmod": lambda x, y: ("sub", x, ("mul", y, _truncated(("div", x, y)))),
    "floor_divide": lambda x, y: ("floor", ("div", x, y)),
    "logical_and": lambda x, y: ("mul", _truth(x), _truth(y)),
    "logical_or": lambda x, y: ("maximum", _truth(x), _truth(y)),
    "logical_xor": lambda x, y: ("ne", _truth(x), _truth(y)),
    "__rshift__": lambda x, y: ("floor", ("div", x, ("pow", _num(2), y))),
    "__lshift__": lambda x, y: ("mul", x, ("pow", _num(2), y)),
    "bitwise_right_shift": lambda x, y: ("floor", ("div", x, ("pow", _num(2), y))),
    "bitwise_left_shift": lambda x, y: ("mul", x, ("pow", _num(2), y)),
    "copysign": lambda x, y: ("mul", ("abs", x), ("where", ("lt", y, _num(0)), _num(-1), _num(1))),
    "logaddexp": lambda x, y: ("add", ("maximum", x, y), _softplus_of_minus(("sub", x, y))),
    "xlogy": lambda x, y: ("where", ("eq", x, _num(0)), _num(0), ("mul", x, ("log", y))),
}


def _truth(x):
    return ("ne", x, _num(0))


_SMALL_POWERS = range(2, 17)


def _power(x, y):
    if y[0] == "num":
        if y[1] in _SMALL_POWERS:
            half = _power(x, _num(y[1] // 2))
            return ("mul", half, half) if y[1] % 2 == 0 else ("mul", x, ("mul", half, half))
        if y[1] == 0.5:
            return ("sqrt", x)
        if y[1] == 1:
            return x
    return ("pow", x, y)


def _register_binary(name, expression):
    @rule(name)
    def _binary(t, a):
        return t.builder.pointwise(expression, t.operand(a.self), t.operand(_other(a)))


def _other(a):
    return a.exponent if hasattr(a, "exponent") else a.other


for _name, _expression in _BINARY.items():
    _register_binary(_name, _expression)


@rule("eq")
def _eq(t, a):
    found = _one_hot_by_comparison(t, a.self, a.other)
    if found is None:
        found = t.builder.pointwise(
            lambda x, y: ("eq", x, y), t.operand(a.self), t.operand(a.other)
        )
    return found


def _one_hot_by_comparison(t, codes, levels):
    """codes[..., None] == arange, where the codes are drawn ones: a lookup, which a convolution
    behind it can use; else None."""
    if not isinstance(levels, torch.Tensor) or not isinstance(codes, torch.Tensor):
        return None
    if t.is_constant(codes):
        codes, levels = levels, codes
    if not t.is_constant(levels) or levels.numel() < t.levels or levels.numel() == 1:
        return None
    count = levels.numel()
    wide = [i for i in range(-levels.dim(), 0) if levels.shape[i] > 1]
    if len(wide) != 1 or (t.value(levels).reshape(-1) != np.arange(count)).any():
        return None
    axis = wide[0]
    if codes.dim() < -axis or codes.shape[axis] != 1:
        return None
    addresses = t.addresses(codes)
    if any(node.kind != "code" for node, _, _ in t.builder.graph.decode(addresses)):
        return None
    padded = addresses.reshape((1,) * (levels.dim() - addresses.ndim) + addresses.shape)
    return _one_hot(t, padded, axis, count)


@rule("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__")
def _bitwise(t, a):
    name = t.func._schema.name.split("::")[1].strip("_").removeprefix("bitwise_").lstrip("i")
    x, y = t.operand(a.self), t.operand(a.other)
    logical = all(
        isinstance(v, bool) or getattr(v, "dtype", None) == torch.bool for v in (a.self, a.other)
    )
    if logical:
        return t.builder.pointwise(_BINARY[f"logical_{name}"], x, y)
    modulus = y + 1 if y.dtype == np.float64 and y.size == 1 else None
    if name == "and" and modulus is not None and modulus >= 1 and math.log2(modulus).is_integer():
        return t.builder.pointwise(_BINARY["remainder"], x, np.float64(modulus))
    t.refuse("works on the bits of codes", "use //, % and comparisons")


@rule("bitwise_not", "__invert__")
def _bitwise_not(t, a):
    minus = 1.0 if a.self.dtype == torch.bool else -1.0
    return t.builder.pointwise(lambda x: ("sub", _num(minus), x), t.operand(a.self))


@rule("softplus")
def _softplus_rule(t, a):
    beta = 1.0 if a.beta is None else float(a.beta)
    return t.builder.pointwise(
        lambda x: ("mul", _softplus(("mul", x, _num(beta))), _num(1 / beta)), t.operand(a.self)
    )


@rule("log_sigmoid_forward")
def _log_sigmoid_rule(t, a):
    return [t.builder.pointwise(_log_sigmoid, t.operand(a.self)), None]


@rule("celu")
def _celu(t, a):
    alpha = float(a.alpha)

    def expression(x):
        negative = ("mul", ("expm1", ("mul", x, _num(1 / alpha))), _num(alpha))
        return ("where", ("gt", x, _num(0)), x, negative)

    return t.builder.pointwise(expression, t.operand(a.self))


@rule("threshold")
def _threshold(t, a):
    return t.builder.pointwise(
        lambda x: ("where", ("gt", x, _num(a.threshold)), x, _num(a.value)), t.operand(a.self)
    )


@rule("hardshrink", "softshrink")
def _shrink(t, a):
    width = _num(a.lambd)

    def expression(x):
        kept = x
        if "softshrink" in t.func._schema.name:
            kept = ("sub", x, ("mul", ("sign", x), width))
        return ("where", ("gt", ("abs", x), width), kept, _num(0))

    return t.builder.pointwise(expression, t.operand(a.self))


@rule("rrelu_with_noise")
def _mean_rrelu(t, a):  # in eval mode; else it is random and refused before
    slope = _num((a.lower + a.upper) / 2)
    return t.builder.pointwise(
        lambda x: ("where", ("gt", x, _num(0)), x, ("mul", x, slope)), t.operand(a.self)
    )


@rule("nan_to_num")
def _nan_to_num(t, a):
    limits = torch.finfo(a.self.dtype) if a.self.dtype.is_floating_point else None
    if limits is None:
        return t.addresses(a.self)
    low = limits.min if a.neginf is None else a.neginf
    high = limits.max if a.posinf is None else a.posinf

    def expression(x):
        number = ("where", ("ne", x, x), _num(a.nan or 0), x)
        number = ("where", ("eq", number, _num(math.inf)), _num(high), number)
        return ("where", ("eq", number, _num(-math.inf)), _num(low), number)

    return t.builder.pointwise(expression, t.operand(a.self))


@rule("_prelu_kernel")
def _prelu(t, a):
    return t.builder.pointwise(
        lambda x, slope: ("where", ("gt", x, _num(0)), x, ("mul", slope, x)),
        t.operand(a.self),
        t.operand(a.weight),
    )


@rule("addcmul", "addcdiv")
def _addcmul(t, a):
    name = "mul" if "addcmul" in t.func._schema.name else "div"
    return t.builder.pointwise(
        lambda x, y, z: ("add", x, ("mul", (name, y, z), _num(a.value))),
        *(t.operand(v) for v in (a.self, a.tensor1, a.tensor2)),
    )


@rule("lerp")
def _lerp(t, a):
    return t.builder.pointwise(
        lambda x, y, w: ("add", x, ("mul", w, ("sub", y, x))),
        *(t.operand(v) for v in (a.self, a.end, a.weight)),
    )


@rule("add", "sub", "rsub")
def _add(t, a):
    x, y = t.operand(a.self), t.operand(a.other)
    alpha = 1 if a.alpha is None else a.alpha
    if t.func._schema.name == "aten::rsub":
        x, y = y, x
        if alpha != 1:
            return DECOMPOSE
    name = "add" if t.func._schema.name.startswith("aten::add") else "sub"
    sign = alpha if name == "add" else -alpha
    x, x_fill = _without_infinite_fill(x, 1)
    y, y_fill = _without_infinite_fill(y, sign)
    found = t.builder.pointwise(
        lambda p, q: (name, p, q if alpha == 1 else ("mul", q, _num(alpha))), x, y
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
            quotient = ("mul", p, _num(1 / q[1]))
        if mode == "floor":
            return ("floor", quotient)
        return _truncated(quotient) if mode == "trunc" else quotient

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


@rule("elu")
def _elu(t, a):
    alpha, scale, inner = (1.0 if v is None else v for v in (a.alpha, a.scale, a.input_scale))

    def expression(x):
        if inner == 1 and alpha == 1:
            return ("mul", ("elu", x), _num(scale))
        negative = ("mul", ("expm1", ("mul", x, _num(inner))), _num(alpha))
        return ("mul", ("where", ("gt", x, _num(0)), x, negative), _num(scale))

    return t.builder.pointwise(expression, t.operand(a.self))


@rule("leaky_relu")
def _leaky_relu(t, a):
    slope = _num(a.negative_slope)
    return t.builder.pointwise(
        lambda x: ("where", ("gt", x, _num(0)), x, ("mul", x, slope)), t.operand(a.self)
    )


@rule("gelu")
def _gelu(t, a):
    def exact(x):
        return ("mul", ("mul", x, _num(0.5)), ("add", _num(1), ("erf", ("mul", x, _num(0.5**0.5)))))

    def tanh(x):
        cube = ("mul", ("mul", x, ("mul", x, x)), _num(0.044715))
        inner = ("mul", ("add", x, cube), _num((2 / math.pi) ** 0.5))
        return ("mul", ("mul", x, _num(0.5)), ("add", _num(1), ("tanh", inner)))

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


# linear


def _per_channel(values, dims):
    return np.asarray(values, np.float64).reshape(1, -1, *[1] * (dims - 2))


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "batch_norm",
)
def _batch_norm(t, a):
    x = t.addresses(a.input)
    if getattr(a, "training", False) or a.running_mean is None:
        # so does an instance norm say what it wants: one "channel" for each of an image's
        rows = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
        eps = getattr(a, "eps", None) or a.epsilon
        found = _normalised(t, rows, eps)
        moved = np.moveaxis(x, 1, 0).shape
        found = np.moveaxis(found.reshape(moved), 0, 1)
        return [_affine(t, found, a.weight, a.bias), None, None]
    scale = 1 / np.sqrt(t.value(a.running_var) + a.eps)
    if a.weight is not None:
        scale = scale * t.value(a.weight)
    shift = -t.value(a.running_mean) * scale
    if a.bias is not None:
        shift = shift + t.value(a.bias)
    found = t.builder.pointwise(
        lambda v, c, d: ("add", ("mul", v, c), d),
        x,
        _per_channel(scale, x.ndim),
        _per_channel(shift, x.ndim),
    )
    return [found, None, None]


@rule("convolution", "_convolution", "convolution_overrideable")
def _convolution_rule(t, a):
    if not t.is_constant(a.weight) or not (a.bias is None or t.is_constant(a.bias)):
        t.refuse("has a weight that depends on codes or condition", "use matmul for such products")
    bias = None if a.bias is None else t.value(a.bias)
    return convolution(
        t,
        t.addresses(a.input),
        t.value(a.weight),
        bias,
        list(a.stride),
        list(a.padding),
        list(a.dilation),
        a.transposed,
        list(a.output_padding),
        a.groups,
    )


def convolution(t, x, weight, bias, stride, padding, dilation, transposed, extra, groups):
    """x: addresses (B, C, *space), or (C, *space); one or two spatial dimensions."""
    space = weight.ndim - 2
    if space not in (1, 2):
        t.refuse("has three spatial dimensions", "fold one into the channels")
    if x.ndim == space + 1:
        settings = (stride, padding, dilation, transposed, extra, groups)
        return convolution(t, x[None], weight, bias, *settings)[0]
    stride, padding, dilation, extra = (
        (list(v) * space)[:space] for v in (stride, padding, dilation, extra)
    )
    if space == 1:
        found = convolution(
            t,
            x[:, :, None],
            weight[:, :, None],
            bias,
            [1, *stride],
            [0, *padding],
            [1, *dilation],
            transposed,
            [0, *extra],
            groups,
        )
        return found[:, :, 0]
    if transposed:
        x = _spread(x, stride, extra)
        cin, per_group, *kernel = weight.shape
        weight = weight.reshape(groups, cin // groups, per_group, *kernel)
        weight = weight.transpose(0, 2, 1, 3, 4)[..., ::-1, ::-1]
        weight = weight.reshape(groups * per_group, cin // groups, *kernel)
        padding = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        x = _cropped(x, padding)
        padding, stride = [max(p, 0) for p in padding], [1, 1]
    outputs = weight.shape[0] // groups
    inputs = x.shape[1] // groups
    if groups > _FEW_GROUPS and inputs == 1:
        return _depthwise(t, x, weight, bias, stride, padding, dilation, outputs)
    found = []
    for group in range(groups):
        own = slice(group * outputs, (group + 1) * outputs)
        found.append(
            _dense_convolution(
                t,
                x[:, group * inputs : (group + 1) * inputs],
                weight[own],
                None if bias is None else bias[own],
                stride,
                padding,
                dilation,
            )
        )
    return np.concatenate(found, 1)


_FEW_GROUPS = 4  # a depthwise convolution of fewer channels is a linear node for each


def _depthwise(t, x, weight, bias, stride, padding, dilation, multiplier):
    """A sum of products over the taps, for all channels at once."""
    taps = windows(x, weight.shape[2:], stride, padding, dilation)
    channels, (batch, _, height, width) = x.shape[1], taps[0].shape
    out = np.zeros((batch, channels, multiplier, height, width), np.int64)
    for m in range(multiplier):
        own = weight[m::multiplier].reshape(channels, -1)
        factors = [own[:, i].reshape(1, -1, 1, 1) for i in range(len(taps))]
        read = [i for i in range(len(taps)) if factors[i].any()]
        start = np.zeros(channels) if bias is None else bias[m::multiplier]

        def total(first, *operands):
            found = first
            for value, factor in zip(operands[::2], operands[1::2], strict=True):
                found = ("add", found, ("mul", value, factor))
            return found

        operands = [part for i in read for part in (taps[i], factors[i])]
        shaped = start.reshape(1, -1, 1, 1)
        out[:, :, m] = np.broadcast_to(
            t.builder.pointwise(total, shaped, *operands) if read else t.builder.constants(shaped),
            out[:, :, m].shape,
        )
    return out.reshape(batch, channels * multiplier, height, width)


def _spread(x, stride, extra):
    """Zeros between the positions of x, and behind them."""
    *lead, height, width = x.shape
    size = [(n - 1) * s + 1 + e for n, s, e in zip((height, width), stride, extra, strict=True)]
    out = np.zeros((*lead, *size), np.int64)
    out[..., : size[0] - extra[0] : stride[0], : size[1] - extra[1] : stride[1]] = x
    return out


def _cropped(x, padding):
    """x without the borders that negative padding takes away."""
    top, left = (max(-p, 0) for p in padding)
    return x[..., top : x.shape[-2] - top, left : x.shape[-1] - left]


def _dense_convolution(t, x, weight, bias, stride, padding, dilation):
    batch, channels, *size = x.shape
    outputs, _, kh, kw = weight.shape
    free, constant, _ = t.builder.split_constants(x)
    extra = None
    if constant is not None:
        kernel = torch.from_numpy(weight.copy())
        moved = F.conv2d(torch.from_numpy(constant), kernel, None, stride, padding, dilation)
        extra = moved.numpy().transpose(0, 2, 3, 1).reshape(-1, outputs)
    taps = []
    for first, columns in t.builder.taps(np.moveaxis(free, 1, -1).reshape(-1, channels)):
        plane = first.reshape(batch, *size)
        for i, seen in enumerate(windows(plane, (kh, kw), stride, padding, dilation)):
            taps.append((seen.reshape(-1), columns + i * channels))
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, (kh, kw), stride, strict=True)
    )
    matrix = weight.transpose(2, 3, 1, 0).reshape(kh * kw * channels, outputs)
    out = t.builder.linear_taps(taps, matrix, bias, extra, batch * height * width)
    return np.moveaxis(out.reshape(batch, height, width, outputs), -1, 1)


@rule("addmm", "addmv", "addbmm", "baddbmm")
def _addmm(t, a):
    left = getattr(a, "mat1", getattr(a, "batch1", None))
    right = getattr(a, "mat2", getattr(a, "batch2", None))
    if left is None or t.func._schema.name.startswith("aten::addbmm"):
        return DECOMPOSE
    beta = 1 if a.beta is None else a.beta
    alpha = 1 if a.alpha is None else a.alpha
    x, y = t.operand(left), t.operand(right)
    if y.dtype == np.float64:
        y = y * alpha
    elif x.dtype == np.float64:
        x = x * alpha
    elif alpha != 1:
        x = t.builder.pointwise(lambda v: ("mul", v, _num(alpha)), x)
    bias = t.operand(a.self) if beta != 0 else np.float64(0)
    one_bias = bias.dtype == np.float64 and (bias.ndim == 1 or 1 in bias.shape[-2:-1])
    if y.ndim == 2 and y.dtype == np.float64 and one_bias:
        row = np.broadcast_to(bias * beta, (1, y.shape[1]))[0]
        return t.builder.linear(x, y, row)
    found = _matmul(t, x, y)
    if beta == 0:
        return found
    return _sum(t, found, t.builder.pointwise(lambda v: ("mul", v, _num(beta)), bias))


def _sum(t, x, y):
    return t.builder.pointwise(lambda p, q: ("add", p, q), x, y)


def _matmul(t, x, y):
    """(..., I, K) by (..., K, J), both with the same leading dimensions."""
    lead = x.shape[:-2]
    found = batch_product(t.builder, x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:]))
    return found.reshape(*lead, *found.shape[1:])


@rule("mm", "bmm")
def _mm(t, a):
    return _matmul(t, t.operand(a.self), t.operand(a.mat2))


@rule("mv")
def _mv(t, a):
    return _matmul(t, t.operand(a.self), t.operand(a.vec)[:, None])[:, 0]


@rule("dot")
def _dot(t, a):
    return _matmul(t, t.operand(a.self)[None], t.operand(a.tensor)[:, None])[0, 0]


@rule("linear")
def _linear(t, a):
    x = t.addresses(a.input)
    bias = None if a.bias is None else t.value(a.bias)
    found = t.builder.linear(x.reshape(-1, x.shape[-1]), t.value(a.weight).T, bias)
    return found.reshape(*x.shape[:-1], -1)


# reductions


def _axes(dims, ndim):
    if dims is None or (isinstance(dims, (list, tuple)) and not len(dims)):
        return list(range(ndim))
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    return [d % ndim for d in dims] if ndim else []


def _row_matrix(x, axes):
    """(rows, L): the reduced axes last, and the shape of the others."""
    kept = [i for i in range(x.ndim) if i not in axes]
    moved = x.transpose(kept + axes)
    shape = moved.shape[: len(kept)]
    return moved.reshape(math.prod(shape), -1), shape


def _reduced(t, a, function, x=None, axes=None, keepdim=None, **args):
    x = t.addresses(a.self) if x is None else x
    axes = _axes(getattr(a, "dim", None), x.ndim) if axes is None else axes
    keepdim = getattr(a, "keepdim", False) if keepdim is None else keepdim
    matrix, shape = _row_matrix(x, axes)
    found = t.builder.reduction(function, matrix, **args)
    if keepdim:
        shape = [1 if i in axes else size for i, size in enumerate(x.shape)]
    return found.reshape(shape)


@rule("sum", "mean", "amax", "amin", "prod")
def _reduction(t, a):
    return _reduced(t, a, t.func._schema.name.split("::")[1])


@rule("max", "min")
def _maximum(t, a):
    name = t.func._schema.name.split("::")[1]
    if getattr(a, "other", None) is not None:
        whole = {"max": "maximum", "min": "minimum"}[name]
        return t.builder.pointwise(_BINARY[whole], t.operand(a.self), t.operand(a.other))
    found = _reduced(t, a, f"a{name}")
    return [found, None] if hasattr(a, "dim") else found


@rule("aminmax")
def _aminmax(t, a):
    return [_reduced(t, a, "amin"), _reduced(t, a, "amax")]


@rule("any", "all")
def _any(t, a):
    truth = t.builder.pointwise(_truth, t.addresses(a.self))
    return _reduced(t, a, "amax" if "any" in t.func._schema.name else "amin", truth)


@rule("var", "std", "var_mean", "std_mean")
def _variance(t, a):
    name = t.func._schema.name.split("::")[1]
    correction = getattr(a, "correction", None)
    if correction is None:
        correction = 0 if getattr(a, "unbiased", None) is False else 1
    found = _reduced(t, a, "variance", correction=float(correction))
    if name.startswith("std"):
        found = t.builder.pointwise(lambda x: ("sqrt", x), found)
    return [found, _reduced(t, a, "mean")] if name.endswith("mean") else found


@rule("linalg_vector_norm", "norm")
def _norm(t, a):
    order = getattr(a, "ord", getattr(a, "p", 2))
    order = 2 if order is None else order
    x = t.addresses(a.self)
    if order in (math.inf, 1):
        magnitude = t.builder.pointwise(lambda v: ("abs", v), x)
        return _reduced(t, a, "sum" if order == 1 else "amax", magnitude)
    if order != 2:
        return DECOMPOSE
    total = _reduced(t, a, "sum", t.builder.pointwise(lambda v: ("mul", v, v), x))
    return t.builder.pointwise(lambda v: ("sqrt", v), total)


@rule("logsumexp")
def _logsumexp(t, a):
    x = t.addresses(a.self)
    axes = _axes(a.dim, x.ndim)
    high = _reduced(t, a, "amax", x, axes, True)
    powers = t.builder.pointwise(lambda v, m: ("exp", ("sub", v, m)), x, high)
    total = _reduced(t, a, "sum", powers, axes, True)
    found = t.builder.pointwise(lambda v, m: ("add", ("log", v), m), total, high)
    return found if a.keepdim else found.squeeze(tuple(axes))


@rule("cumsum")
def _cumsum(t, a):
    x = t.addresses(a.self)
    return cumulative_sum(t.builder, x, a.dim % x.ndim)


@rule("_softmax", "softmax", "_safe_softmax")
def _softmax(t, a):
    safe = "_safe" in t.func._schema.name
    return _along(t, t.addresses(a.self), a.dim, lambda rows: _softmax_rows(t, rows, safe))


@rule("_log_softmax", "log_softmax")
def _log_softmax(t, a):
    def rows(matrix):
        return t.builder.row("log_softmax", matrix, matrix.shape[1])

    return _along(t, t.addresses(a.self), a.dim, rows)


def _along(t, x, axis, function):
    moved = np.moveaxis(x, axis, -1)
    out = function(moved.reshape(-1, moved.shape[-1]))
    return np.moveaxis(out.reshape(moved.shape), -1, axis)


def _softmax_rows(t, rows, safe):
    """Entries filled with very little get exactly 0, as long as their row has another."""
    builder = t.builder
    is_constant, value = builder.graph.constant(rows)
    low = is_constant & (value <= LOW)
    low |= builder.fills(rows) <= LOW
    live = ~low
    out = np.zeros(rows.shape, np.int64)
    fixed = is_constant.all(1)
    if fixed.any():
        with np.errstate(all="ignore"):
            powers = np.exp(value[fixed] - value[fixed].max(1, keepdims=True))
            found = powers / powers.sum(1, keepdims=True)
        if safe:
            found = np.nan_to_num(found)
        out[fixed] = builder.constants(found)
    rest = ~fixed
    if rest.any():
        dropped = low[rest] & live[rest].any(1)[:, None]
        sources = np.where(dropped, -1, rows[rest])
        alone = (sources >= 0).sum(1) == 1  # gets 1, whatever it is
        found = np.where(sources >= 0, builder.constants(np.float64(1)), 0)
        if not alone.all():
            found[~alone] = builder.row("softmax", sources[~alone], rows.shape[1])
        out[rest] = np.where(dropped, 0, found)
    return out


# normalisation over rows


@rule("native_layer_norm")
def _layer_norm(t, a):
    x = t.addresses(a.input)
    axes = list(range(x.ndim - len(a.normalized_shape), x.ndim))
    matrix, _ = _row_matrix(x, axes)
    weight, bias = (None if v is None else t.value(v).reshape(-1) for v in (a.weight, a.bias))
    found = t.builder.row(
        "layer_norm", matrix, matrix.shape[1], eps=float(a.eps), weight=weight, bias=bias
    )
    return [found.reshape(x.shape), None, None]


@decomposes("_fused_rms_norm")
def _rms_norm(x, normalized_shape, weight=None, eps=None):
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    found = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps)
    return found if weight is None else found * weight, x.new_empty(0)


@rule("native_group_norm")
def _group_norm(t, a):
    x = t.addresses(a.input)
    found = _normalised(t, x.reshape(a.N * a.group, -1), a.eps).reshape(x.shape)
    return [_affine(t, found, a.weight, a.bias), None, None]


def _normalised(t, rows, eps):
    """Each row by its own mean and variance; spatial ones have no order to compute them in."""
    ready = t.builder.graph.ready(rows)
    if (ready != ready[:, :1]).any():
        t.refuse(
            "normalises over positions that are drawn at different times",
            "normalise over channels only (LayerNorm), or use BatchNorm in eval mode",
        )
    return t.builder.row("layer_norm", rows, rows.shape[1], eps=float(eps), weight=None, bias=None)


def _affine(t, x, weight, bias):
    if weight is None and bias is None:
        return x
    scale = np.float64(1) if weight is None else _per_channel(t.value(weight), x.ndim)
    shift = np.float64(0) if bias is None else _per_channel(t.value(bias), x.ndim)
    return t.builder.pointwise(lambda v, c, d: ("add", ("mul", v, c), d), x, scale, shift)


# pooling


@rule("avg_pool1d", "avg_pool2d")
def _average_pool(t, a):
    x = t.addresses(a.self)
    if x.ndim != 4 or a.ceil_mode or (any(a.padding) and not a.count_include_pad):
        return _weighted_sums(t, a)
    kernel, stride = _pair(a.kernel_size), _pair(a.stride or a.kernel_size)
    parts = windows(x, kernel, stride, _pair(a.padding), (1, 1))
    divisor = getattr(a, "divisor_override", None) or len(parts)

    def mean(*operands):
        return ("mul", functools.reduce(lambda p, q: ("add", p, q), operands), _num(1 / divisor))

    return t.builder.pointwise(mean, *parts)


@rule(
    "_adaptive_avg_pool2d",
    "adaptive_avg_pool1d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_bicubic2d",
)
def _weighted_sums(t, a):
    """Sums of positions with constant weights, the same for all channels."""
    x = t.addresses(a.self)
    spatial = 1 if "1d" in t.func._schema.name else 2
    lead, space = x.shape[:-spatial], x.shape[-spatial:]
    size = math.prod(space)
    one_each = torch.eye(size, dtype=torch.float64).reshape(size, 1, *space)
    out = _call(t.func, {**vars(a), "self": one_each})
    weights = out.reshape(size, -1).T.numpy()
    cells = x.reshape(-1, lead[-1], size).swapaxes(1, 2)
    repeated = np.broadcast_to(weights, (len(cells), *weights.shape))
    found = batch_product(t.builder, np.ascontiguousarray(repeated), cells)
    return found.swapaxes(1, 2).reshape(*lead, *out.shape[2:])


@rule("col2im")
def _fold(t, a):
    x = t.addresses(a.self)
    kernel = list(a.kernel_size)
    padded = [n + 2 * p for n, p in zip(a.output_size, a.padding, strict=True)]
    height, width = (
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(padded, a.dilation, kernel, a.stride, strict=True)
    )
    taps = math.prod(kernel)
    x = x.reshape(-1, x.shape[-2] // taps, taps, height, width)
    parts = []
    for tap in range(taps):
        top, left = (tap // kernel[1]) * a.dilation[0], (tap % kernel[1]) * a.dilation[1]
        plane = np.zeros((*x.shape[:2], *padded), np.int64)
        rows = slice(top, top + (height - 1) * a.stride[0] + 1, a.stride[0])
        columns = slice(left, left + (width - 1) * a.stride[1] + 1, a.stride[1])
        plane[..., rows, columns] = x[:, :, tap]
        parts.append(plane)
    total = t.builder.pointwise(
        lambda *operands: functools.reduce(lambda p, q: ("add", p, q), operands), *parts
    )
    inside = [slice(p, p + n) for n, p in zip(a.output_size, a.padding, strict=True)]
    return total[(..., *inside)].reshape(*a.self.shape[:-2], -1, *a.output_size)


@rule("max_pool2d_with_indices", "max_pool2d")
def _max_pool(t, a):
    x = t.addresses(a.self)
    if a.ceil_mode:
        t.refuse("rounds the pooled size up", "pad the input, and use ceil_mode=False")
    kernel, stride = _pair(a.kernel_size), _pair(a.stride or a.kernel_size)
    low = int(t.builder.constants(np.float64(-np.inf)))
    parts = windows(x, kernel, stride, _pair(a.padding), _pair(a.dilation), low)

    def largest(*operands):
        return functools.reduce(lambda p, q: ("maximum", p, q), operands)

    return [t.builder.pointwise(largest, *parts), None]


def _pair(value):
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * 2 if len(value) == 1 else value


# attention


@decomposes("scaled_dot_product_attention")
def _attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    *,
    scale=None,
    enable_gqa=False,
):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.ops.aten._safe_softmax(scores, -1) @ value


@decomposes("_scaled_dot_product_flash_attention_for_cpu")
def _attention_on_cpu(
    query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None
):
    found = _attention(query, key, value, attn_mask, 0.0, is_causal, scale=scale)
    return found, query.new_empty(0)  # the second is for a backward


@decomposes("_scaled_dot_product_attention_math")
def _attention_math(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, dropout_mask=None, **others
):
    return _attention(query, key, value, attn_mask, 0.0, is_causal, **others), query.new_empty(0)


# recurrences


@decomposes("mkldnn_rnn_layer")
def _lstm_layer(x, w0, w1, w2, w3, hidden, cell, reverse, sizes, mode, *others):
    """x (T, B, I): one direction of one layer of an LSTM, one step after the other."""
    if mode != 2:
        return NotImplemented
    steps, found = range(len(x)), [None] * len(x)
    for i in reversed(steps) if reverse else steps:
        gates = F.linear(x[i], w0, w2) + F.linear(hidden, w1, w3)
        take, forget, new, show = gates.chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
        hidden = torch.sigmoid(show) * torch.tanh(cell)
        found[i] = hidden
    return torch.stack(found), hidden, cell, x.new_empty(0)


# fastgen's own ops


def _masked_weight(t, a):
    """The weight with exact zeros under the mask of a tap plan."""
    weight, taps, partial = (t.value(v) for v in (a.weight, a.taps, a.partial))
    masked = np.zeros_like(weight)
    for ky, kx, p in taps[1 : 1 + int(taps[0, 0])].astype(int):
        mask = True if p < 0 else partial[p] != 0
        masked[:, :, ky, kx] = np.where(mask, weight[:, :, ky, kx], 0)
    return masked


@rule("fastgen::masked_conv2d")
def _masked_conv2d(t, a):
    weight = _masked_weight(t, a)
    dilation = list(a.dilation)
    padding = [d * (k // 2) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    bias = None if a.bias is None else t.value(a.bias)
    x = t.addresses(a.x)
    return convolution(t, x, weight, bias, [1, 1], padding, dilation, False, [0, 0], 1)


@rule("fastgen::gated_activation")
def _gated_activation(t, a):
    return _gate(t, t.addresses(a.x), a.condition)


def _gate(t, x, condition):
    a, b = np.split(x, 2, axis=1)
    if condition is None:
        return t.builder.pointwise(lambda p, q: ("mul", ("tanh", p), ("sigmoid", q)), a, b)
    spread = t.operand(condition)
    spread = spread.reshape(spread.shape + (1,) * (x.ndim - spread.ndim))
    c, d = np.split(spread, 2, axis=1)
    return t.builder.pointwise(
        lambda p, q, r, s: ("mul", ("tanh", ("add", p, r)), ("sigmoid", ("add", q, s))), a, b, c, d
    )


@rule("fastgen::gated_masked_conv2d")
def _gated_masked_conv2d(t, a):
    pre = _masked_conv2d(t, a)
    return [_gate(t, pre, a.condition), pre]
