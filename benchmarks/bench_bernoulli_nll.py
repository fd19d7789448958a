"""bernoulli_nll, forward and backward, beside binary cross-entropy with logits summed per image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

import fastgen
from fastgen.benchmarks import one_pass
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table

SHAPES = {
    "256x12288, 64x64 colour": (256, 12288),
    "128x784, MNIST": (128, 784),
    "8192x784": (8192, 784),
}
QUICK = ("128x784, MNIST",)
ALSO_AT = ("avx2",)
GOALS = {"256x12288, 64x64 colour": {"over eager": 3.0, "over compiled": 2.0}}


def plain(logits, target):
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)


def problem(case: str, *, compiled: bool) -> Problem:
    shape = SHAPES[case]
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=generator)
    target, grad = torch.rand(shape, generator=generator), torch.rand(shape[0], generator=generator)
    functions = {"fastgen": fastgen.bernoulli_nll, "eager": plain}
    if compiled:
        functions["compiled"] = one_pass.compiled(plain)

    def step(function, dtype=torch.float32):
        x = logits.to(dtype).requires_grad_()
        return one_pass.with_gradients(
            partial(function, x, target.to(dtype)), [x], (grad.to(dtype),)
        )

    return Problem(
        steps={name: step(function) for name, function in functions.items()},
        bytes=20 * logits.numel(),  # logits and target twice, the gradient
        elements=logits.numel(),
        results=lambda: (step(fastgen.bernoulli_nll)(), step(plain)(), step(plain, torch.double)()),
        names=("nll", "gradient of logits"),
    )


def tables(effort: Effort) -> Iterator[Table]:
    yield from one_pass.tables("bernoulli_nll", SHAPES, QUICK, GOALS, effort)


def bench_bernoulli_nll(benchmark, measured):
    benchmark(measured.step)
