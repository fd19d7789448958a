"""add_noise, forward, beside the same lines in PyTorch: eager and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import one_pass
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table
from fastgen.reference import add_noise as reference

SHAPES = {"256x12288, 64x64 colour": (256, 12288), "128x784, MNIST": (128, 784)}
KINDS = ("mask", "gaussian", "salt_pepper")
CASES = [f"{kind}, {shape}" for shape in SHAPES for kind in KINDS]
QUICK = CASES[-3:]
ALSO_AT = ("avx2",)
_AMOUNT = 0.3


def plain(x, kind):
    if kind == "gaussian":
        return x + _AMOUNT * torch.randn_like(x)
    u = torch.rand_like(x)
    kept = torch.where(u < _AMOUNT, 0.0, x)
    if kind == "mask":
        return kept
    return torch.where(u < _AMOUNT / 2, 0.0, torch.where(u < _AMOUNT, 1.0, x))


def problem(case: str, *, compiled: bool) -> Problem:
    kind, _, shape = case.partition(", ")
    x = torch.rand(SHAPES[shape], generator=torch.Generator().manual_seed(0))
    steps = {
        "fastgen": partial(fastgen.add_noise, x, kind, _AMOUNT),
        "eager": partial(plain, x, kind),
    }
    if compiled:
        steps["compiled"] = partial(one_pass.compiled(plain), x, kind)

    def results():
        part = x[:16]
        number, seed = KINDS.index(kind), torch.tensor(5)
        exact, *_ = reference.add_noise(part.double(), number, _AMOUNT, 0.0, 1.0, seed, False)
        return (fastgen.add_noise(part, kind, _AMOUNT, seed=5),), (exact.float(),), (exact,)

    return Problem(steps, 8 * x.numel(), x.numel(), results, ("noisy",))


def tables(effort: Effort) -> Iterator[Table]:
    yield from one_pass.tables("add_noise", CASES, QUICK, {}, effort, title="forward")


def bench_add_noise(benchmark, measured):
    benchmark(measured.step)
