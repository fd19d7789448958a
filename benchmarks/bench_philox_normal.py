"""philox_normal, counter-based normal numbers, beside torch.randn and numpy's generator."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

import fastgen
from fastgen.benchmarks import measure, one_pass
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table
from fastgen.reference.philox import element_normals

COUNTS = {"16 M": 1 << 24, "1 M": 1 << 20, "10 k": 10_000}
QUICK = ("10 k",)
ALSO_AT = ("avx2",)
GOALS = {"16 M": {"over eager": 5.0}}
THREADS_GOAL = 1.9
NOTE = " numpy: standard_normal of default_rng. All write into memory they were given."
_CHECKED = 4096


def problem(case: str, *, compiled: bool) -> Problem:
    count = COUNTS[case]
    out, other = torch.empty(count), np.empty(count, np.float32)
    eager = partial(torch.randn, count, out=out)
    generator = np.random.default_rng(0)
    steps = {
        "fastgen": partial(fastgen.randn, count, out=out),
        "eager": eager,
        "peer": partial(generator.standard_normal, dtype=np.float32, out=other),
    }
    if compiled:
        steps["compiled"] = one_pass.compiled(lambda: torch.randn(count))

    def results():
        exact = element_normals(5, _CHECKED)
        ours = fastgen.randn(count, seed=5)[:_CHECKED]
        return (ours,), (exact.float(),), (exact,)

    return Problem(steps, 4 * count, count, results, ("normals",))


def thread_steps() -> dict:
    out = torch.empty(COUNTS["16 M"])
    return {
        "fastgen": lambda: fastgen.randn(len(out), out=out),
        "eager": lambda: torch.randn(len(out), out=out),
    }


def tables(effort: Effort) -> Iterator[Table]:
    yield from one_pass.tables(
        "philox_normal", COUNTS, QUICK, GOALS, effort, title="float32", peer="numpy", note=NOTE
    )
    if effort.threads > 1 and not effort.quick and measure.isa() not in ALSO_AT:
        case = partial(measure.threads_row, thread_steps(), effort, goal=THREADS_GOAL)
        yield measure.threads_table("philox_normal", {"16 M": case}, effort)


def bench_philox_normal(benchmark, measured):
    benchmark(measured.step)
