"""What each ATen op does to the addresses of its operands.

A rule is ``rule(t, a)``: t the tracer, a the op's arguments by the names of its schema. It returns
the addresses of the result (a list for several; None for one that is not kept), or DECOMPOSE.
Data movement is the same op on the array of addresses.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

DECOMPOSE = object()
HOST_READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique"}
GUARD_REDUCTIONS = {"min", "max", "aminmax", "amin", "amax", "all", "any"}
RANGE_GUARDS = GUARD_REDUCTIONS | set(
    "eq ne lt le gt ge isnan isfinite isinf logical_and logical_or logical_not bitwise_and "
    "bitwise_or bitwise_not _local_scalar_dense is_nonzero".split()
)
FACTORIES = set(
    "empty_like zeros_like ones_like full_like new_empty new_empty_strided new_zeros new_ones "
    "new_full".split()
)

_RULES = {}


def rule(*names):
    def register(function):
        for name in names:
            _RULES[name] = function
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
    if func._schema.name.startswith("fastgen::"):
        return _fastgen_reference(func._schema.name.split("::")[1])
    from torch._decomp import core_aten_decompositions

    found = core_aten_decompositions().get(func)
    return func.decompose if found is None else found


def _fastgen_reference(name):
    import importlib
    import pkgutil

    import fastgen.reference

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


@rule("cat")
def _cat(t, a):
    parts = [p for p in a.tensors if not (p.dim() == 1 and p.numel() == 0)]
    return np.concatenate([t.addresses(p) for p in parts], a.dim)


@rule("stack")
def _stack(t, a):
    return np.stack([t.addresses(p) for p in a.tensors], a.dim)


@rule("constant_pad_nd")
def _pad(t, a):
    value = t.builder.constants(np.float64(a.value or 0))
    return _moved(lambda x: F.pad(x, list(a.pad), value=int(value)), t.addresses(a.self))


@rule("repeat")
def _repeat(t, a):
    return _moved(lambda x: x.repeat(*a.repeats), t.addresses(a.self))


@rule("flip")
def _flip(t, a):
    return np.flip(t.addresses(a.self), tuple(a.dims))


@rule("roll")
def _roll(t, a):
    return _moved(lambda x: torch.roll(x, a.shifts, a.dims), t.addresses(a.self))


@rule("upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "pixel_shuffle")
def _upsample(t, a):
    return DECOMPOSE


@rule("masked_fill")
def _masked_fill(t, a):
    return _where(t, a.mask, a.value, a.self)


@rule("where")
def _where_rule(t, a):
    return _where(t, a.condition, a.self, a.other)


def _where(t, mask, yes, no):
    if t.is_constant(mask):
        return np.where(t.value(mask) != 0, t.addresses(yes), t.addresses(no))
    return t.builder.pointwise(
        lambda c, x, y: ("where", c, x, y), t.operand(mask), t.operand(yes), t.operand(no)
    )


# pointwise


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
    "sinh": lambda x: ("mul", ("sub", ("exp", x), ("exp", ("neg", x))), _num(0.5)),
    "cosh": lambda x: ("mul", ("add", ("exp", x), ("exp", ("neg", x))), _num(0.5)),
    "tan": lambda x: ("div", ("sin", x), ("cos", x)),
}


def _register_unary(name, expression):
    @rule(name)
    def _unary(t, a):
        if getattr(a, "decimals", 0):
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
}


def _power(x, y):
    if y[0] == "num":
        if y[1] == 2:
            return ("mul", x, x)
        if y[1] == 3:
            return ("mul", x, ("mul", x, x))
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


@rule("add", "sub", "rsub")
def _add(t, a):
    x, y = t.operand(a.self), t.operand(a.other)
    alpha = 1 if a.alpha is None else a.alpha
    if t.func._schema.name == "aten::rsub":
        x, y = y, x
        if alpha != 1:
            return DECOMPOSE
    name = "add" if t.func._schema.name.startswith("aten::add") else "sub"
    return t.builder.pointwise(
        lambda p, q: (name, p, q if alpha == 1 else ("mul", q, _num(alpha))), x, y
    )


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
        if q[0] == "num" and mode is None and q[1] != 0:
            quotient = ("mul", p, _num(1 / q[1]))
        if mode == "floor":
            return ("floor", quotient)
        return _truncated(quotient) if mode == "trunc" else quotient

    return t.builder.pointwise(expression, t.operand(a.self), t.operand(a.other))


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


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit")
def _batch_norm(t, a):
    x = getattr(a, "input", None)
    if getattr(a, "training", False):
        t.refuse(
            "normalises by the statistics of the whole image or batch",
            "call .eval() if it is a BatchNorm; spatial normalisation depends on codes not yet drawn",
        )
    scale = 1 / np.sqrt(t.value(a.running_var) + a.eps)
    if a.weight is not None:
        scale = scale * t.value(a.weight)
    shift = -t.value(a.running_mean) * scale
    if a.bias is not None:
        shift = shift + t.value(a.bias)
    found = t.builder.pointwise(
        lambda x, c, d: ("add", ("mul", x, c), d),
        t.addresses(x),
        _per_channel(scale, x.dim()),
        _per_channel(shift, x.dim()),
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
    batch, channels, *_ = x.shape
    outputs, _, kh, kw = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    height, width = (
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(x.shape[2:], dilation, (kh, kw), stride, strict=True)
    )
    x, constant, _ = t.builder.split_constants(x)
    extra = None
    if constant is not None:
        moved = F.conv2d(
            torch.from_numpy(constant), torch.from_numpy(weight.copy()), None, stride, 0, dilation
        )
        extra = moved.numpy().transpose(0, 2, 3, 1).reshape(-1, outputs)
    cells = np.moveaxis(x, 1, -1).reshape(-1, channels)
    taps = []
    for first, columns in t.builder.taps(cells):
        plane = first.reshape(batch, *x.shape[2:])
        for ky in range(kh):
            for kx in range(kw):
                top, left = ky * dilation[0], kx * dilation[1]
                window = plane[
                    :,
                    top : top + (height - 1) * stride[0] + 1 : stride[0],
                    left : left + (width - 1) * stride[1] + 1 : stride[1],
                ]
                taps.append((window.reshape(-1), columns + (ky * kw + kx) * channels))
    matrix = weight.transpose(2, 3, 1, 0).reshape(kh * kw * channels, outputs)
    out = t.builder.linear_taps(taps, matrix, bias, extra, batch * height * width)
    return np.moveaxis(out.reshape(batch, height, width, outputs), -1, 1)


@rule("addmm")
def _addmm(t, a):
    if not t.is_constant(a.mat2):
        return DECOMPOSE
    beta = 1 if a.beta is None else a.beta
    alpha = 1 if a.alpha is None else a.alpha
    weight = t.value(a.mat2) * alpha
    found = t.builder.linear(t.addresses(a.mat1), weight)
    if t.is_constant(a.self):
        bias = t.value(a.self) * beta
        bias = np.broadcast_to(bias, found.shape)
        if (bias == bias[:1]).all():
            return t.builder.linear(t.addresses(a.mat1), weight, bias[0])
    return t.builder.pointwise(
        lambda x, y: ("add", x, ("mul", y, _num(beta))), found, t.operand(a.self)
    )


@rule("mm")
def _mm(t, a):
    if t.is_constant(a.mat2):
        return t.builder.linear(t.addresses(a.self), t.value(a.mat2))
    if t.is_constant(a.self):
        return t.builder.linear(t.addresses(a.mat2).T, t.value(a.self).T).T
    return DECOMPOSE


@rule("linear")
def _linear(t, a):
    x = t.addresses(a.input)
    bias = None if a.bias is None else t.value(a.bias)
    found = t.builder.linear(x.reshape(-1, x.shape[-1]), t.value(a.weight).T, bias)
    return found.reshape(*x.shape[:-1], -1)


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
