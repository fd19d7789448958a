"""naive_sample: one full forward per step of the order; slow, plain, right."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.progress import Progress
from fastgen.reference.philox import sampling_uniforms
from fastgen.sampling.arguments import (
    check_condition,
    check_draws,
    check_model,
    check_uniforms,
    checked_params,
    completion,
    device_of,
    ranks_of,
    seed_of,
    sliced,
)

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
    top_k: int | None = None,
    top_p: float | None = None,
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
        top_k, top_p: for `Categorical`: draw from the likeliest levels only.
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
    check_model(fn, shape, likelihood)
    check_draws(likelihood, n, first_index, temperature, top_k, top_p, batch)
    shape = tuple(shape)
    device = device_of(fn, condition, uniforms)
    steps = _steps(ranks_of(order, shape, likelihood.coupled).to(device))
    seed = seed_of(seed, generator, uniforms)
    check_uniforms(uniforms, (n, likelihood.uniforms, *shape))
    check_condition(condition, n)
    known, known_mask = completion(known, known_mask, n, shape, likelihood.levels, device)

    limits = {"top_k": top_k, "top_p": top_p}
    limits = {name: value for name, value in limits.items() if value is not None}

    def sample(params, noise):
        return likelihood.sample(params, noise, temperature, **limits)

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
                call = _with_condition(fn, sliced(condition, part))

            def report(fraction, start=start, part=part):
                images = part.stop if fraction == 1 else start
                bar.update((start + fraction * (part.stop - start)) / n, images=images)

            codes[part] = _sample_batch(
                call,
                likelihood,
                sample,
                steps,
                draws,
                known[part],
                known_mask[part],
                start,
                report,
            )
    return codes


def _sample_batch(fn, likelihood, sample, steps, uniforms, known, known_mask, first, report):
    codes = torch.where(known_mask, known, 0).contiguous()
    m, colors = codes.shape[:2]
    flat_codes, flat_known = codes.view(m, colors, -1), known_mask.reshape(m, colors, -1)
    flat_uniforms = uniforms.flatten(3)
    for done, (step, positions) in enumerate(steps):
        drawn = step & ~flat_known[..., positions]
        if drawn.any():  # a step that is all known needs no forward
            params = checked_params(fn(codes), likelihood, codes).flatten(3)[..., positions]
            _check_nan(params, drawn, positions, codes.shape[2:], first)
            # a row per (sample, position): the form a likelihood draws in
            noise = flat_uniforms[..., positions]
            new = sample(_rows(params), _rows(noise))
            new = new.view(m, len(positions), colors).transpose(1, 2)
            flat_codes[..., positions] = torch.where(drawn, new, flat_codes[..., positions])
        report((done + 1) / len(steps))
    return codes


def _rows(x):
    """(m, K, C, positions) to (m * positions, K, C)."""
    return x.movedim(-1, 1).flatten(0, 1)


def _steps(ranks):
    """[(bool (C, k), positions (k,))] in order: which colours are drawn where."""
    steps = []
    for rank in ranks.unique():
        now = ranks == rank
        positions = now.any(0).nonzero()[:, 0]
        steps.append((now[:, positions], positions))
    return steps


def _with_condition(fn, condition):
    return lambda codes: fn(codes, condition)


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
