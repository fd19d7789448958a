"""naive_sample: one full forward per step of the order; slow, plain, right."""

import math
import numbers
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgen.progress import Progress
from fastgen.reference.philox import sampling_uniforms

_BATCH = 64  # images at once: 200 MB of logits at 32x32x3 and 256 levels


@torch.no_grad()
def naive_sample(
    fn: Callable,
    shape: tuple[int, ...],
    likelihood,
    n: int,
    *,
    order="raster",
    condition=None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
    first_index: int = 0,
    temperature: float = 1.0,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    batch: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Draws n samples from a causal model, one full forward of it per step.

    Args:
        fn: ``fn(codes)`` or ``fn(codes, condition)`` to the parameters (B, K, C, H, W) of
            `likelihood` (a coupled one: (B, P, 1, H, W)), for codes int64 (B, C, H, W).
        shape: (C, H, W), or (C, L) for sequences; then the last axis is dropped everywhere.
        likelihood: see `fastgen.likelihoods`.
        n: how many.
        order: "raster", a step per pixel; "subpixel", a step per colour of a pixel; or integer
            ranks (H, W) or (C, H, W), lowest first. Equal ranks are drawn in one step.
        condition: None, or a tensor, tuple or dict of tensors, each with leading dimension n.
        seed, generator, uniforms: at most one. Seed: 64 bit; sample i of this call is sample
            `first_index` + i of its stream, whatever the batch. Generator: gives the seed; so does
            the default generator if there is none of the three. Uniforms: float (n, D, C, H, W) in
            [0, 1), the draws themselves; D is `likelihood.uniforms`.
        temperature: > 0; 1 is the model's own distribution.
        known, known_mask: completion. int64 codes and bool, (C, H, W) or (n, C, H, W): where the
            mask is True the code is kept, and later steps see it.
        batch: images per forward; default 64.
        progress: whether to show a bar.

    Returns:
        int64 (n, C, H, W), on the device of fn's parameters if it is a module (else of condition
        or uniforms, else the CPU).

    Raises:
        TypeError, ValueError: an argument is not as above; fn is a module in train mode; fn's
            result has another shape. RuntimeError: fn's result holds NaN where a code is drawn.
    """
    _check_call(fn, shape, likelihood, n, first_index, temperature, batch)
    shape = tuple(shape)
    device = _device_of(fn, condition, uniforms)
    steps = _steps(_ranks(order, shape, likelihood.coupled))
    seed = _seed(seed, generator, uniforms)
    _check_uniforms(uniforms, (n, likelihood.uniforms, *shape))
    _check_condition(condition, n)
    known, known_mask = _completion(known, known_mask, n, shape, likelihood.levels, device)

    codes = torch.zeros(n, *shape, dtype=torch.int64, device=device)
    size = min(n, batch or _BATCH)
    with Progress("sample", enabled=progress) as bar:
        for start in range(0, n, max(size, 1)):
            part = slice(start, min(start + size, n))
            if uniforms is None:
                count = part.stop - start
                draws = sampling_uniforms(
                    seed, first_index + start, count, likelihood.uniforms, shape, device
                )
            else:
                draws = uniforms[part].to(device)
            call = fn
            if condition is not None:
                call = _with_condition(fn, _sliced(condition, part))

            def report(fraction, start=start, part=part):
                images = part.stop if fraction == 1 else start
                bar.update((start + fraction * (part.stop - start)) / n, images=images)

            codes[part] = _sample_batch(
                call, likelihood, steps, draws, temperature, known[part], known_mask[part],
                start, report,
            )
    return codes


def _sample_batch(
    fn, likelihood, steps, uniforms, temperature, known, known_mask, first, report
):
    codes = torch.where(known_mask, known, 0)
    m, colors = codes.shape[:2]
    flat_codes, flat_known = codes.view(m, colors, -1), known_mask.reshape(m, colors, -1)
    flat_uniforms = uniforms.flatten(3)
    for done, (step, positions) in enumerate(steps):
        drawn = step & ~flat_known[..., positions]
        if drawn.any():  # a step that is all known needs no forward
            params = _checked_params(fn(codes), likelihood, codes).flatten(3)[..., positions]
            _check_nan(params, drawn, positions, codes.shape[2:], first)
            # a row per (sample, position): the form a likelihood draws in
            noise = flat_uniforms[..., positions]
            new = likelihood.sample(_rows(params), _rows(noise), temperature)
            new = new.view(m, len(positions), colors).transpose(1, 2)
            flat_codes[..., positions] = torch.where(drawn, new, flat_codes[..., positions])
        report((done + 1) / len(steps))
    return codes


def _rows(x):
    """(m, K, C, positions) to (m * positions, K, C)."""
    return x.movedim(-1, 1).flatten(0, 1)


def _ranks(order, shape, coupled):
    """int64 (C, positions): when each code is drawn."""
    colors, positions = shape[0], math.prod(shape[1:])
    raster = torch.arange(positions)
    if isinstance(order, str):
        if order not in ("raster", "subpixel"):
            _refuse("order", "must be 'raster', 'subpixel' or integer ranks", repr(order),
                    "'subpixel' is for models whose colours see each other")
        raster = raster.expand(colors, positions)
        ranks = raster if order == "raster" else raster * colors + torch.arange(colors)[:, None]
    else:
        ranks = torch.as_tensor(order).cpu()
        if ranks.is_floating_point() or ranks.dtype == torch.bool or ranks.is_complex():
            _refuse("order", "must hold integer ranks", ranks.dtype, "convert it with .long()")
        if tuple(ranks.shape) not in (shape, shape[1:]):
            _refuse("order", f"must have shape {shape[1:]} or {shape}", tuple(ranks.shape),
                    "give every position its rank")
        ranks = ranks.long().expand(shape).reshape(colors, positions)
    if coupled and (ranks != ranks[:1]).any():
        _refuse("order", "must give all colours of a pixel one rank with a coupled likelihood",
                "ranks that differ", "use order='raster'")
    return ranks


def _steps(ranks):
    """[(bool (C, k), positions (k,))] in order: which colours are drawn where."""
    steps = []
    for rank in ranks.unique():
        now = ranks == rank
        positions = now.any(0).nonzero()[:, 0]
        steps.append((now[:, positions], positions))
    return steps


def _seed(seed, generator, uniforms):
    given = [
        name
        for name, value in (("seed", seed), ("generator", generator), ("uniforms", uniforms))
        if value is not None
    ]
    if len(given) > 1:
        _refuse("seed, generator, uniforms", "are alternatives", " and ".join(given), "keep one")
    if seed is not None:
        if not _is_int(seed):
            _refuse("seed", "must be an int", repr(seed), "use 0", TypeError)
        if not -(2**63) <= seed < 2**64:
            _refuse("seed", "must fit 64 bits", seed, "use a smaller one")
        return int(seed) % 2**64
    if generator is not None and not isinstance(generator, torch.Generator):
        _refuse("generator", "must be a torch.Generator", type(generator).__name__,
                "or pass seed=", TypeError)
    if uniforms is not None:
        return None
    device = "cpu" if generator is None else generator.device
    word = torch.empty((), dtype=torch.int64, device=device)
    return int(word.random_(-(2**63), None, generator=generator)) % 2**64


def _check_call(fn, shape, likelihood, n, first_index, temperature, batch):
    if not callable(fn):
        _refuse("fn", "must be callable", type(fn).__name__, "pass a module or function", TypeError)
    if isinstance(fn, nn.Module) and fn.training:
        _refuse("fn", "must be in eval mode", "a module in train mode",
                "call .eval() first: dropout and batch norm would change the distribution")
    if len(shape) not in (2, 3) or not all(isinstance(s, int) and s >= 1 for s in shape):
        _refuse("shape", "must be (C, H, W) or (C, L)", tuple(shape), "leave out the batch")
    for name in ("levels", "coupled", "uniforms", "sample"):
        if not hasattr(likelihood, name):
            _refuse("likelihood", f"must have {name!r}", type(likelihood).__name__,
                    "see fastgen.likelihoods", TypeError)
    if not _is_int(n):
        _refuse("n", "must be an int", repr(n), "say how many samples", TypeError)
    if n < 0:
        _refuse("n", "must not be negative", n, "0 gives an empty result")
    if not _is_int(first_index) or not 0 <= first_index <= 2**64 - n:
        _refuse("first_index", "must be an int in 0 .. 2**64 - n", first_index, "start at 0")
    if not temperature > 0 or math.isinf(temperature):
        _refuse("temperature", "must be positive and finite", temperature,
                "1 is the model's own distribution")
    if batch is not None and (not _is_int(batch) or batch < 1):
        _refuse("batch", "must be an int >= 1", batch, "leave it out for the default")


def _is_int(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_uniforms(uniforms, shape):
    if uniforms is None:
        return
    if not isinstance(uniforms, Tensor) or not uniforms.is_floating_point():
        _refuse("uniforms", "must be a floating-point tensor",
                getattr(uniforms, "dtype", type(uniforms).__name__), "use torch.rand", TypeError)
    if tuple(uniforms.shape) != shape:
        _refuse("uniforms", f"must be (n, D, C, ...) = {shape}", tuple(uniforms.shape),
                "D is likelihood.uniforms")
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        _refuse("uniforms", "must lie in [0, 1)", "others", "use torch.rand")


def _check_condition(condition, n):
    if condition is None:
        return
    values = condition
    if isinstance(condition, dict):
        values = condition.values()
    elif isinstance(condition, Tensor):
        values = (condition,)
    elif not isinstance(condition, tuple):
        _refuse("condition", "must be a tensor, or a tuple or dict of tensors",
                type(condition).__name__, "convert it with torch.as_tensor", TypeError)
    for value in values:
        if not isinstance(value, Tensor):
            _refuse("condition", "must consist of tensors", type(value).__name__,
                    "convert it with torch.as_tensor", TypeError)
        if value.dim() < 1 or value.shape[0] != n:
            _refuse("condition", f"must have leading dimension n={n}", tuple(value.shape),
                    "give one row per sample")


def _sliced(condition, part):
    if isinstance(condition, dict):
        return {name: value[part] for name, value in condition.items()}
    if isinstance(condition, tuple):
        return tuple(value[part] for value in condition)
    return condition[part]


def _with_condition(fn, condition):
    return lambda codes: fn(codes, condition)


def _completion(known, known_mask, n, shape, levels, device):
    """known and known_mask as (n, *shape) on the device; nothing known if there are none."""
    if (known is None) != (known_mask is None):
        _refuse("known and known_mask", "go together", "only one",
                "known_mask is True where a code is kept")
    if known is None:
        known = torch.zeros(1, dtype=torch.int64)
        known_mask = torch.zeros(1, dtype=torch.bool)
    else:
        for name, value, dtype in (
            ("known", known, torch.int64), ("known_mask", known_mask, torch.bool)
        ):
            if not isinstance(value, Tensor) or value.dtype != dtype:
                _refuse(name, f"must be a tensor of {dtype}",
                        getattr(value, "dtype", type(value).__name__), "convert it", TypeError)
            if tuple(value.shape) not in (shape, (n, *shape)):
                _refuse(name, f"must have shape {shape} or {(n, *shape)}", tuple(value.shape),
                        "give one for all samples or one for each")
        known, known_mask = known.to(device), known_mask.to(device)
        wrong = known_mask & ((known < 0) | (known >= levels))
        if wrong.any():
            value = int(known.expand(wrong.shape)[wrong][0])
            _refuse("known", f"must lie in 0 .. {levels - 1} where known_mask is True", value,
                    "codes are levels, not scaled values")
    return known.to(device).expand(n, *shape), known_mask.to(device).expand(n, *shape)


def _device_of(fn, condition, uniforms):
    if isinstance(fn, nn.Module):
        for tensor in (*fn.parameters(), *fn.buffers()):
            return tensor.device
    if isinstance(condition, (tuple, dict)):
        values = condition.values() if isinstance(condition, dict) else condition
        condition = next(iter(values), None)
    for value in (condition, uniforms):
        if isinstance(value, Tensor):
            return value.device
    return torch.device("cpu")


def _checked_params(params, likelihood, codes):
    m, colors, *space = codes.shape
    colors = 1 if likelihood.coupled else colors
    if not isinstance(params, Tensor):
        _refuse("fn", "must return a tensor", type(params).__name__,
                "wrap it in a function that returns the parameters", TypeError)
    shape = tuple(params.shape)
    if len(shape) != len(codes.shape) + 1 or shape[0] != m or shape[2:] != (colors, *space):
        expected = ", ".join(map(str, (m, "K", colors, *space)))
        _refuse("fn", f"must return ({expected})", shape, "K counts the parameters of one colour")
    return params


def _check_nan(params, drawn, positions, space, first):
    # a coupled likelihood's parameters have one colour, which stands for all of the pixel's
    bad = params.isnan().any(1) & (drawn if params.shape[2] > 1 else drawn.any(1, keepdim=True))
    if bad.any():
        sample, color, k = (int(i) for i in bad.nonzero()[0])
        index = int(positions[k])
        where = (index,) if len(space) == 1 else (index // space[1], index % space[1])
        raise RuntimeError(
            f"fastgen.naive_sample: fn must not return NaN where a code is drawn, got NaN for "
            f"sample {first + sample}, colour {color}, position {where}; look for the first layer "
            "whose output is NaN"
        )


def _refuse(argument, expected, got, remedy, error=ValueError):
    raise error(f"fastgen.naive_sample: {argument} {expected}, got {got}; {remedy}")
