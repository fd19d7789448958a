"""rmsprop_clip_, as ClippedRMSprop runs it, beside torch.optim.RMSprop and a loop of clamp_."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from fastgen.benchmarks import update_problems
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table
from fastgen.benchmarks.update_problems import CLIP, DCGAN, LARGE, MANY
from fastgen.optim import ClippedRMSprop

ALSO_AT = ("avx2",)
GOALS = {
    DCGAN: {"over eager": 5.7, "over compiled": 1.5, "over peer": 0.95},
    MANY: {"over eager": 60, "over compiled": 18, "over peer": 0.4},
    LARGE: {"over eager": 5.3, "over compiled": 1.4, "over peer": 0.97},
}


def problem(case: str, *, compiled: bool) -> Problem:
    return update_problems.problem(
        partial(ClippedRMSprop, lr=5e-5, clip=CLIP),
        partial(torch.optim.RMSprop, lr=5e-5, foreach=True),
        ("square_avg",),
        case,
        compiled=compiled,
    )


def tables(effort: Effort) -> Iterator[Table]:
    yield from update_problems.tables("rmsprop_clip_", GOALS, effort, flat=True)


def bench_rmsprop_clip_(benchmark, measured):
    benchmark(measured.step)
