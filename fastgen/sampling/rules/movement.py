"""Ops that only move data: the same op on the array of addresses."""

import numpy as np
import torch

from fastgen.sampling.rules.forms import truncated
from fastgen.sampling.rules.registry import rule


@rule("clone", "contiguous", "lift_fresh", "alias", "detach", "lift_fresh_copy", "alias_copy")
def _same(t, a):
    return t.addresses(a.self)


@rule("_unsafe_view", "view_copy", "_reshape_copy", "reshape", "_reshape_alias")
def _view(t, a):
    size = getattr(a, "size", None) or a.shape
    return t.addresses(a.self).reshape(tuple(size))


@rule("copy")
def _copy(t, a):
    source = cast(t, t.addresses(a.src), a.src.dtype, a.self.dtype)
    return np.broadcast_to(source, a.self.shape)


@rule("_to_copy")
def _to_copy(t, a):
    return cast(t, t.addresses(a.self), a.self.dtype, a.dtype or a.self.dtype)


def cast(t, addresses, old, new):
    if new == torch.bool and old != torch.bool:
        return t.builder.pointwise(lambda x: ("ne", x, ("num", 0.0)), addresses)
    if old.is_floating_point and not new.is_floating_point and new != torch.bool:
        return t.builder.pointwise(truncated, addresses)
    return addresses


@rule("fill", "zero", "fill_")
def _fill(t, a):
    value = getattr(a, "value", 0.0)
    return np.broadcast_to(t.addresses(value), a.self.shape)


# Ops that only move data, as long as indices and masks are constants; the second set has no kernel
# for integers.
# as long as indices and masks are constants
_MOVERS = set(
    "cat stack constant_pad_nd repeat flip roll rot90 channel_shuffle pixel_shuffle "
    "pixel_unshuffle index index_select gather take tril triu slice_scatter select_scatter "
    "diagonal_scatter as_strided_scatter index_put _index_put_impl scatter index_copy index_fill "
    "masked_scatter unsafe_split unsafe_split_with_sizes unsafe_chunk split_copy "
    "split_with_sizes_copy unbind_copy expand_copy permute_copy transpose_copy t_copy select_copy "
    "slice_copy squeeze_copy unsqueeze_copy unfold_copy diag_embed diagonal_copy".split()
)
# these have no kernel for integers; addresses are exact in float64
_FLOAT_MOVERS = set(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d im2col".split()
)
_INDICES = {"index", "indices", "mask"}  # arguments that say where, not what


@rule(*_MOVERS, *_FLOAT_MOVERS)
def move(t, a):
    short = t.func._schema.name.split("::")[1].rstrip("_")
    dtype = torch.float64 if short in _FLOAT_MOVERS else torch.int64

    def addresses(value):
        if isinstance(value, torch.Tensor):
            return torch.from_numpy(np.array(t.addresses(value))).to(dtype)
        return [addresses(v) for v in value] if isinstance(value, (list, tuple)) else value

    arguments = {}
    for name, value in vars(a).items():
        if name in _INDICES:
            arguments[name] = constant_indices(t, value)
        elif name == "value" and not isinstance(value, torch.Tensor):
            address = int(t.builder.constants(np.float64(0 if value is None else value)))
            arguments[name] = float(address) if dtype == torch.float64 else address
        elif name == "out":
            arguments[name] = torch.empty(0, dtype=dtype, device="cpu")
        else:
            arguments[name] = addresses(value)
    if arguments.get("accumulate") or arguments.get("reduce") is not None:
        t.refuse("adds up where indices meet", "use a sum or a matrix product")
    if "tensors" in arguments:  # torch.cat ignores empty 1-d tensors
        parts = [p for p in arguments["tensors"] if not (p.dim() == 1 and p.numel() == 0)]
        arguments["tensors"] = parts or arguments["tensors"]
    out = call_by_name(t.func, arguments)
    if isinstance(out, (tuple, list)):
        return [o.long().numpy() for o in out]
    return out.long().numpy()


def call_by_name(func, arguments):
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


def constant_indices(t, value):
    if isinstance(value, (list, tuple)):
        return [constant_indices(t, v) for v in value]
    if not isinstance(value, torch.Tensor):
        return value
    if not t.is_constant(value):
        t.refuse(
            "moves data to places that depend on codes or condition",
            "only tables of constants can be indexed by them",
        )
    return value.cpu()


@rule("where")
def _where_rule(t, a):
    return _where(t, a.condition, a.self, a.other)


@rule("masked_fill")
def _masked_fill(t, a):
    return _where(t, a.mask, a.value, a.self)


@rule("index_put", "_index_put_impl")
def _index_put(t, a):
    mask = a.indices[0]
    assigned = len(a.indices) == 1 and mask.dtype == torch.bool and a.values.numel() == 1
    if t.is_constant(mask) or not assigned or mask.dim() != a.self.dim() or a.accumulate:
        return move(t, a)
    return _where(t, mask, a.values.reshape(()), a.self)  # self[mask] = value


def _where(t, mask, yes, no):
    if t.is_constant(mask):
        return np.where(t.value(mask) != 0, t.addresses(yes), t.addresses(no))
    return t.builder.pointwise(
        lambda c, x, y: ("where", c, x, y), t.operand(mask), t.operand(yes), t.operand(no)
    )
