"""The optimisers with a clip, ClippedRMSprop and ClippedAdam, beside torch's own and a clamp."""

from __future__ import annotations

from collections.abc import Iterator

from fastgen.benchmarks import bench_adam_clip_, bench_rmsprop_clip_, update_problems
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.table import Table
from fastgen.benchmarks.update_problems import DCGAN, LARGE

PARTS = (bench_rmsprop_clip_, bench_adam_clip_)
ALSO_AT = ("avx2",)


def tables(effort: Effort) -> Iterator[Table]:
    for part in PARTS:
        yield from part.tables(effort)
    if effort.threads > 1 and not effort.quick:
        yield update_problems.threads_table(
            "ClippedRMSprop", bench_rmsprop_clip_.problem, (DCGAN, LARGE), effort
        )


def bench_optim(benchmark, measured):
    benchmark(measured.step)
