"""Silent errors of a tracer or a lowering show only on codes other than the traced ones: every
program is compared with its model on some before anybody gets it."""

import math
from dataclasses import replace

import torch

from fastgen.sampling.arguments import each_tensor, sliced
from fastgen.sampling.errors import UnsupportedModelError

HALF = (torch.float16, torch.bfloat16)


def probe(request):
    """(codes, condition, fn's own parameters) of three images: all levels, the lower half of them,
    one level."""
    generator = torch.Generator().manual_seed(987654321)
    shape, levels = request.shape, request.likelihood.levels
    codes = torch.stack(
        [
            torch.randint(levels, shape, generator=generator),
            torch.randint(max(levels // 2, 1), shape, generator=generator),
            torch.full(shape, levels - 1),
        ]
    )
    example = request.condition
    if example is None:
        return codes, None, request.forward(codes)
    try:
        condition = each_tensor(example, lambda t: _variations(t, generator))
        return codes, condition, request.forward(codes, condition)
    except Exception:  # it does not take those: the example alone, and what it says of that
        condition = each_tensor(example, lambda t: torch.cat([t] * len(codes)))
        return codes, condition, request.forward(codes, condition)


def _variations(example, generator):
    """The example, and two conditions that should be as valid."""
    if example.is_floating_point():
        noise = torch.randn((2, *example.shape[1:]), generator=generator)
        return torch.cat([example, example + 0.5 * noise.to(example)])
    other = example if example.dtype == torch.bool else torch.zeros_like(example)
    return torch.cat([example, other, example])


def check_batches(request, codes, condition, expected, tolerance):
    """Each image by itself must have its values in the batch: not if fn decides by the largest
    code of all, say, which the tracer takes for a check of their range."""
    try:
        alone = [
            request.forward(
                codes[i : i + 1],
                None if condition is None else sliced(condition, slice(i, i + 1)),
            )
            for i in range(len(codes))
        ]
    except Exception:
        return  # a squeeze that does not expect a batch of one
    error = difference(torch.cat(alone), expected)
    if not error <= tolerance:
        raise UnsupportedModelError(
            "fastgen.compile_sampler: fn must give an image the same values in any batch, got "
            f"values that differ by {error:.2g} of the largest; fn may mix the images of a batch, "
            "decide by the values of all its codes, or keep a state: compute each image by itself, "
            "with tensors"
        )


def verify(compiled, codes, conditions, expected, allowed, executor):
    """Notes how far the program's values are from fn's own, and refuses more than `allowed`."""
    target = compiled.target
    values = compiled.parameters_at(executor, codes, conditions)
    if target.dtype == torch.bfloat16:  # rounding the weights is no error
        rounded, full = values, replace(target, dtype=torch.float32).executor(executor.program)
        values = compiled.parameters_at(full, codes, conditions)
        compiled.bfloat16_error = difference(rounded, values)
    compiled.error = difference(values, expected)
    if not compiled.error <= allowed:
        raise UnsupportedModelError(
            "fastgen.compile_sampler: the compiled program must equal fn on codes it was not "
            f"traced with, got values that differ by {compiled.error:.2g} of the largest; fn may "
            "decide by the values of its codes, mix the images of a batch, or keep a state; "
            "fastgen.sampling.naive_sample draws from any model, and this one as an example makes "
            "a good bug report"
        )


def tolerance(dtype, fn_dtype, half):
    """Of the difference between the program's values and fn's own: both have errors."""
    if half:
        return 0.05
    return 1e-9 if dtype == fn_dtype == torch.float64 else 2e-4


def difference(values, expected):
    """Largest difference, relative to max(1, largest value); equal infinities and NaN agree."""
    values, expected = values.cpu().double(), expected.cpu().double()
    apart = (values - expected).abs()
    apart[(values == expected) | (values.isnan() & expected.isnan())] = 0
    finite = expected[expected.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    error = apart.max().item() / max(1.0, largest) if apart.numel() else 0.0
    return math.inf if math.isnan(error) else error
