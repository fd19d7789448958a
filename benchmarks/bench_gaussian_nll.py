"""gaussian_nll, forward and backward, beside the same lines in PyTorch: eager and compiled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import one_pass
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table

# whether the log-variance is one learned number, or one for each value
CASES = {
    "256x12288, one log-variance": ((256, 12288), False),
    "256x12288, one for each value": ((256, 12288), True),
    "128x784, one log-variance": ((128, 784), False),
}
QUICK = ("128x784, one log-variance",)
ALSO_AT = ("avx2",)


def plain(mean, target, logvar):
    error = (target - mean).square() * torch.exp(-logvar)
    return 0.5 * (math.log(2 * math.pi) + logvar + error).sum(1)


def problem(case: str, *, compiled: bool) -> Problem:
    shape, each = CASES[case]
    generator = torch.Generator().manual_seed(0)
    mean, target = (torch.randn(shape, generator=generator) for _ in range(2))
    logvar = torch.randn(shape if each else (), generator=generator)
    grad = torch.rand(shape[0], generator=generator)
    functions = {"fastgen": fastgen.gaussian_nll, "eager": plain}
    if compiled:
        functions["compiled"] = one_pass.compiled(plain)

    def step(function, dtype=torch.float32):
        moved = [mean.to(dtype).requires_grad_(), logvar.to(dtype).requires_grad_()]
        return one_pass.with_gradients(
            partial(function, moved[0], target.to(dtype), moved[1]), moved, (grad.to(dtype),)
        )

    return Problem(
        steps={name: step(function) for name, function in functions.items()},
        bytes=(32 if each else 20) * mean.numel(),
        elements=mean.numel(),
        results=lambda: (step(fastgen.gaussian_nll)(), step(plain)(), step(plain, torch.double)()),
        names=("nll", "gradient of mean", "gradient of logvar"),
    )


def tables(effort: Effort) -> Iterator[Table]:
    yield from one_pass.tables("gaussian_nll", CASES, QUICK, {}, effort)


def bench_gaussian_nll(benchmark, measured):
    benchmark(measured.step)
