"""What a call of a sampler is given, checked and made definite before any model runs."""

import itertools
import math
import numbers

import torch
from torch import Tensor, nn

from fastgen.likelihoods import Categorical


def refuse(argument, expected, got, remedy, error=ValueError):
    raise error(f"fastgen.sampling: {argument} {expected}, got {got}; {remedy}")


def ranks_of(order, shape, coupled):
    """int64 (C, positions): when each code is drawn."""
    colors, positions = shape[0], math.prod(shape[1:])
    raster = torch.arange(positions)
    if isinstance(order, str):
        if order not in ("raster", "subpixel"):
            refuse(
                "order",
                "must be 'raster', 'subpixel' or integer ranks",
                repr(order),
                "'subpixel' is for models whose colours see each other",
            )
        raster = raster.expand(colors, positions)
        ranks = raster if order == "raster" else raster * colors + torch.arange(colors)[:, None]
    else:
        ranks = torch.as_tensor(order).cpu()
        if ranks.is_floating_point() or ranks.dtype == torch.bool or ranks.is_complex():
            refuse("order", "must hold integer ranks", ranks.dtype, "convert it with .long()")
        if tuple(ranks.shape) not in (shape, shape[1:]):
            refuse(
                "order",
                f"must have shape {shape[1:]} or {shape}",
                tuple(ranks.shape),
                "give every position its rank",
            )
        ranks = ranks.long().expand(shape).reshape(colors, positions)
    if coupled and (ranks != ranks[:1]).any():
        refuse(
            "order",
            "must give all colours of a pixel one rank with a coupled likelihood",
            "ranks that differ",
            "use order='raster'",
        )
    return ranks


def seed_of(seed, generator, uniforms):
    given = [
        name
        for name, value in (("seed", seed), ("generator", generator), ("uniforms", uniforms))
        if value is not None
    ]
    if len(given) > 1:
        refuse("seed, generator, uniforms", "are alternatives", " and ".join(given), "keep one")
    if seed is not None:
        if not _is_int(seed):
            refuse("seed", "must be an int", repr(seed), "use 0", TypeError)
        if not -(2**63) <= seed < 2**64:
            refuse("seed", "must fit 64 bits", seed, "use a smaller one")
        return int(seed) % 2**64
    if generator is not None and not isinstance(generator, torch.Generator):
        refuse(
            "generator",
            "must be a torch.Generator",
            type(generator).__name__,
            "or pass seed=",
            TypeError,
        )
    if uniforms is not None:
        return None
    device = "cpu" if generator is None else generator.device
    word = torch.empty((), dtype=torch.int64, device=device)
    return int(word.random_(-(2**63), None, generator=generator)) % 2**64


def check_fn(fn, shape):
    if not callable(fn):
        refuse("fn", "must be callable", type(fn).__name__, "pass a module or function", TypeError)
    check_eval(fn)
    check_shape(shape)


def check_model(fn, shape, likelihood):
    check_fn(fn, shape)
    for name in ("levels", "coupled", "uniforms", "sample"):
        if not hasattr(likelihood, name):
            refuse(
                "likelihood",
                f"must have {name!r}",
                type(likelihood).__name__,
                "see fastgen.likelihoods",
                TypeError,
            )


def check_shape(shape):
    """shape as a tuple."""
    if len(shape) not in (2, 3) or not all(isinstance(s, int) and s >= 1 for s in shape):
        refuse("shape", "must be (C, H, W) or (C, L)", tuple(shape), "leave out the batch")
    return tuple(shape)


def check_eval(fn, argument="fn"):
    module = module_of(fn)
    if module is not None and module.training:
        refuse(
            argument,
            "must be in eval mode",
            "a module in train mode",
            "call .eval() first: dropout and batch norm would change the distribution",
        )


def check_draws(likelihood, n, first_index, temperature, top_k, top_p, batch):
    if not _is_int(n):
        refuse("n", "must be an int", repr(n), "say how many samples", TypeError)
    if n < 0:
        refuse("n", "must not be negative", n, "0 gives an empty result")
    if not _is_int(first_index) or not 0 <= first_index <= 2**64 - n:
        refuse("first_index", "must be an int in 0 .. 2**64 - n", first_index, "start at 0")
    if not temperature > 0 or math.isinf(temperature):
        refuse(
            "temperature",
            "must be positive and finite",
            temperature,
            "1 is the model's own distribution",
        )
    for name, value in (("top_k", top_k), ("top_p", top_p)):
        if value is not None and not isinstance(likelihood, Categorical):
            refuse(name, "is for Categorical", type(likelihood).__name__, "use temperature=")
    if top_k is not None and (not _is_int(top_k) or not 1 <= top_k <= likelihood.levels):
        refuse("top_k", f"must be an int in 1 .. {likelihood.levels}", top_k, "leave it out")
    if top_p is not None and not 0 < top_p <= 1:
        refuse("top_p", "must lie in (0, 1]", top_p, "leave it out for all levels")
    if batch is not None and (not _is_int(batch) or batch < 1):
        refuse("batch", "must be an int >= 1", batch, "leave it out for the default")


def _is_int(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_uniforms(uniforms, shape):
    if uniforms is None:
        return
    if not isinstance(uniforms, Tensor) or not uniforms.is_floating_point():
        refuse(
            "uniforms",
            "must be a floating-point tensor",
            getattr(uniforms, "dtype", type(uniforms).__name__),
            "use torch.rand",
            TypeError,
        )
    if tuple(uniforms.shape) != shape:
        refuse(
            "uniforms",
            f"must be (n, D, C, ...) = {shape}",
            tuple(uniforms.shape),
            "D is likelihood.uniforms",
        )
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        refuse("uniforms", "must lie in [0, 1)", "others", "use torch.rand")


def check_condition(condition, n):
    if condition is None:
        return
    if not isinstance(condition, (dict, tuple, Tensor)):
        refuse(
            "condition",
            "must be a tensor, or a tuple or dict of tensors",
            type(condition).__name__,
            "convert it with torch.as_tensor",
            TypeError,
        )
    for value in tensors_of(condition):
        if not isinstance(value, Tensor):
            refuse(
                "condition",
                "must consist of tensors",
                type(value).__name__,
                "convert it with torch.as_tensor",
                TypeError,
            )
        if value.dim() < 1 or value.shape[0] != n:
            refuse(
                "condition",
                f"must have leading dimension n={n}",
                tuple(value.shape),
                "give one row per sample",
            )


def check_same_condition(condition, example):
    """Refuses a condition of another structure, dtype or shape than the example, batch aside."""
    if condition is None or example is None:
        if condition is not None:
            refuse(
                "condition",
                "must be None, as fn was compiled without one",
                type(condition).__name__,
                "compile it with condition=, an example of batch 1",
            )
        if example is not None:
            refuse("condition", "must be given", None, "fn was compiled with one")
        return
    got, expected = structure(condition), structure(example)
    if got != expected:
        refuse(
            "condition",
            f"must be like the example it was compiled with, {expected}",
            got,
            "convert it, or compile with an example of that kind",
        )


def structure(condition):
    """Dtypes and shapes, batch aside; for people and for comparing."""
    if condition is None:
        return None
    if isinstance(condition, dict):
        return {name: structure(value) for name, value in condition.items()}
    if isinstance(condition, tuple):
        return tuple(map(structure, condition))
    dtype = str(condition.dtype).removeprefix("torch.")
    return f"{dtype} ({', '.join(('n', *map(str, condition.shape[1:])))})"


def tensors_of(condition):
    if isinstance(condition, dict):
        return list(condition.values())
    return list(condition) if isinstance(condition, tuple) else [condition]


def completion(known, known_mask, n, shape, levels, device):
    """known and known_mask as (n, *shape) on the device; nothing known if there are none."""
    if (known is None) != (known_mask is None):
        refuse(
            "known and known_mask",
            "go together",
            "only one",
            "known_mask is True where a code is kept",
        )
    if known is None:
        known = torch.zeros(1, dtype=torch.int64)
        known_mask = torch.zeros(1, dtype=torch.bool)
    else:
        for name, value, dtype in (
            ("known", known, torch.int64),
            ("known_mask", known_mask, torch.bool),
        ):
            if not isinstance(value, Tensor) or value.dtype != dtype:
                refuse(
                    name,
                    f"must be a tensor of {dtype}",
                    getattr(value, "dtype", type(value).__name__),
                    "convert it",
                    TypeError,
                )
            if tuple(value.shape) not in (shape, (n, *shape)):
                refuse(
                    name,
                    f"must have shape {shape} or {(n, *shape)}",
                    tuple(value.shape),
                    "give one for all samples or one for each",
                )
        known, known_mask = known.to(device), known_mask.to(device)
        wrong = known_mask & ((known < 0) | (known >= levels))
        if wrong.any():
            value = int(known.expand(wrong.shape)[wrong][0])
            refuse(
                "known",
                f"must lie in 0 .. {levels - 1} where known_mask is True",
                value,
                "codes are levels, not scaled values",
            )
    return known.to(device).expand(n, *shape), known_mask.to(device).expand(n, *shape)


def unwrapped(fn):
    """What torch.compile, DataParallel or DistributedDataParallel wraps."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if isinstance(fn, parallel):
            fn = fn.module
        elif isinstance(fn, nn.Module) and "_orig_mod" in fn._modules:
            fn = fn._orig_mod
        elif not isinstance(fn, nn.Module) and hasattr(fn, "_torchdynamo_orig_callable"):
            fn = fn._torchdynamo_orig_callable
        else:
            return fn


def module_of(fn):
    """The module that fn is, or whose method it is; else None."""
    owner = getattr(fn, "__self__", fn)
    return owner if isinstance(owner, nn.Module) else None


def device_of(fn, condition, uniforms):
    module = module_of(fn)
    if module is not None:
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            return tensor.device
    for value in (*tensors_of(condition), uniforms):
        if isinstance(value, Tensor):
            return value.device
    return torch.device("cpu")


def each_tensor(condition, function):
    """A condition with function(tensor) in place of every tensor."""
    if isinstance(condition, dict):
        return {name: function(value) for name, value in condition.items()}
    if isinstance(condition, tuple):
        return tuple(map(function, condition))
    return function(condition)


def sliced(condition, part):
    """The condition of some of the samples."""
    return each_tensor(condition, lambda value: value[part])


def checked_params(params, likelihood, codes):
    """What fn returned for codes, if it has the shape that the likelihood needs."""
    m, colors, *space = codes.shape
    if not isinstance(params, Tensor):
        refuse(
            "fn",
            "must return a tensor",
            type(params).__name__,
            "wrap it in a function that returns the parameters",
            TypeError,
        )
    count = likelihood.parameters(colors) if hasattr(likelihood, "parameters") else None
    last = (1 if likelihood.coupled else colors, *space)
    shape = tuple(params.shape)
    wrong_count = count is not None and shape[1:2] != (count,)
    if len(shape) != len(codes.shape) + 1 or shape[0] != m or shape[2:] != last or wrong_count:
        expected = ", ".join(map(str, (m, "K" if count is None else f"K={count}", *last)))
        refuse("fn", f"must return ({expected})", shape, "K counts the parameters of one colour")
    return params
