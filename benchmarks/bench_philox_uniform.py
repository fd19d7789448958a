"""philox_uniform, counter-based uniform numbers, beside torch.rand and numpy's generator."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

import fastgen
from fastgen.benchmarks import one_pass
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table
from fastgen.reference.philox import element_words, to_uniform

COUNTS = {"16 M": 1 << 24, "1 M": 1 << 20, "10 k": 10_000}
QUICK = ("10 k",)
ALSO_AT = ("avx2",)
NOTE = " numpy: random of default_rng. All write into memory they were given."
_CHECKED = 4096


def problem(case: str, *, compiled: bool) -> Problem:
    count = COUNTS[case]
    out, other = torch.empty(count), np.empty(count, np.float32)
    generator = np.random.default_rng(0)
    steps = {
        "fastgen": partial(fastgen.rand, count, out=out),
        "eager": partial(torch.rand, count, out=out),
        "peer": partial(generator.random, dtype=np.float32, out=other),
    }
    if compiled:
        steps["compiled"] = one_pass.compiled(lambda: torch.rand(count))

    def results():
        exact = to_uniform(element_words(5, _CHECKED))
        ours = fastgen.rand(count, seed=5)[:_CHECKED]
        return (ours,), (exact,), (exact.double(),)

    return Problem(steps, 4 * count, count, results, ("uniforms",))


def tables(effort: Effort) -> Iterator[Table]:
    yield from one_pass.tables(
        "philox_uniform", COUNTS, QUICK, {}, effort, title="float32", peer="numpy", note=NOTE
    )


def bench_philox_uniform(benchmark, measured):
    benchmark(measured.step)
