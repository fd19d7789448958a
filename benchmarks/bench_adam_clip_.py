"""adam_clip_, as ClippedAdam runs it, beside torch.optim.Adam and a loop of clamp_."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from fastgen.benchmarks import update_problems
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table
from fastgen.benchmarks.update_problems import CLIP
from fastgen.optim import ClippedAdam

ALSO_AT = ("avx2",)


def problem(case: str, *, compiled: bool) -> Problem:
    return update_problems.problem(
        partial(ClippedAdam, lr=2e-4, clip=CLIP),
        partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), foreach=True),
        ("exp_avg", "exp_avg_sq"),
        case,
        compiled=compiled,
    )


def tables(effort: Effort) -> Iterator[Table]:
    yield from update_problems.tables("adam_clip_", {}, effort, flat=False)


def bench_adam_clip_(benchmark, measured):
    benchmark(measured.step)
