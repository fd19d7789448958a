"""What the updates of many tensors at once share: a clip's bounds, the checks of lists."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgen import _backends
from fastgen.ops import _checks

_FALLTHROUGH = ("Autograd", "ADInplaceOrView")
_PLAIN = {Tensor, nn.Parameter}  # asked first: a look at the type costs 25 ns, isinstance 350


def define(schema, reference, **options):
    """An op that writes into lists of tensors. Autograd has no part in it: leaves that require a
    gradient are written like any other, and the kernels count the tensors' versions."""
    op = _backends.define(schema, reference, **options)
    for key in _FALLTHROUGH:
        _backends._library.impl(op.name(), torch.library.fallthrough_kernel, key)
    return op


def bounds(op: str, clip) -> tuple[float, float]:
    """(low, high) of a clip: None, c for (-c, c), or the pair itself."""
    if type(clip) is float and clip >= 0:
        return -clip, clip
    if clip is None:
        return -math.inf, math.inf
    pair = clip if isinstance(clip, (tuple, list)) else None
    numbers = pair if pair is not None else (clip,)
    remedy = "give c >= 0 for [-c, c], a pair (low, high) with low <= high, or None for no clip"
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers) or (
        pair is not None and len(pair) != 2
    ):
        raise TypeError(
            f"fastgen.{op}: clip must be a number, a pair or None, got {clip!r}; {remedy}"
        )
    try:
        low, high = map(float, pair if pair is not None else (-clip, clip))
    except OverflowError:
        low = high = math.nan
    if not low <= high:  # nor NaN
        raise ValueError(
            f"fastgen.{op}: clip must be a range that is not empty, got {clip!r}; {remedy}"
        )
    return low, high


def tensors_of(op: str, argument: str, value) -> list[Tensor]:
    """The tensors of a module's parameters, of one tensor or of an iterable of them, each once."""
    if isinstance(value, nn.Module):
        return list(value.parameters())  # which gives shared ones once
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, Iterable):
        raise TypeError(
            f"fastgen.{op}: {argument} must be tensors or a module, got {type(value).__name__}; "
            "pass module.parameters(), a list of tensors or a module"
        )
    tensors = checked_tensors(op, argument, value)
    once = {id(t): t for t in tensors}
    return tensors if len(once) == len(tensors) else list(once.values())


def checked_tensors(op: str, argument: str, values: Iterable) -> list[Tensor]:
    tensors = list(values)
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            _checks.tensor(op, argument, tensor)
    return tensors


def by_device(tensors: list[Tensor], *others: list[Tensor]) -> list[list[list[Tensor]]]:
    """For each device the tensors on it, and of other lists those in the same places."""
    devices = [t.device for t in tensors]
    if len(set(devices)) < 2:
        return [[tensors, *others]] if tensors else []
    places = {d: [i for i, own in enumerate(devices) if own == d] for d in devices}
    return [[[ts[i] for i in at] for ts in (tensors, *others)] for at in places.values()]


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The shards that this process holds of distributed tensors (DTensor, FSDP2), others as they
    are: what is done element by element needs no more."""
    return [t if type(t) in _PLAIN else getattr(t, "_local_tensor", t) for t in tensors]


def check_fake(op: str, first: list[Tensor], *others) -> None:
    """For the fake kernels, which also run when a single tensor is on the meta device."""
    for value in others:
        for t in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(t, Tensor) and t.device.type == "meta" != first[0].device.type:
                raise ValueError(
                    f"fastgen.{op}: tensors must be on one device, got meta beside "
                    f"{first[0].device}; move them"
                )


def check_same_length(op: str, count: int, **lists) -> None:
    for argument, values in lists.items():
        if len(values) != count:
            raise ValueError(
                f"fastgen.{op}: {argument} must hold {count} tensors, one for each of params, got "
                f"{len(values)}; give them in params' order"
            )
