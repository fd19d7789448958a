"""The clip alone, on one thread and on several."""

from __future__ import annotations

from collections.abc import Iterator

from fastgen.benchmarks import bench_clip_weights_
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.table import Table

ALSO_AT = ("avx2",)


def tables(effort: Effort) -> Iterator[Table]:
    yield from bench_clip_weights_.tables(effort)
    if effort.threads > 1 and not effort.quick:
        yield bench_clip_weights_.threads(effort)


def bench_clip(benchmark, measured):
    benchmark(measured.step)
