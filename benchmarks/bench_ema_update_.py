"""ema_update_, a generator's weight average, beside a loop of lerp_, foreach and torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import one_pass, update_problems
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table
from fastgen.benchmarks.update_problems import CRITICS, MANY

DECAY = 0.999
ALSO_AT = ("avx2",)
COLUMNS = {"over foreach": ("over foreach", "{:.2f}x")}
NOTE = " Eager: a loop of lerp_; foreach and compiled: _foreach_lerp_. 12 bytes a weight."


def lerp(targets, sources) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source, 1 - DECAY)


def foreach(targets, sources) -> None:
    torch._foreach_lerp_(targets, sources, 1 - DECAY)


def ours(targets, sources) -> None:
    fastgen.ema_update_(targets, sources, DECAY)


def pairs(case: str, dtype=torch.float32):
    params = update_problems.weights(case, dtype)
    return [p.grad for p in params], [p.detach() for p in params]


def problem(case: str, *, compiled: bool) -> Problem:
    functions = {"fastgen": ours, "eager": lerp, "foreach": foreach}
    if compiled:
        functions["compiled"] = one_pass.compiled(foreach)
    steps = {name: partial(function, *pairs(case)) for name, function in functions.items()}

    def averaged(function, dtype=torch.float32):
        targets, sources = pairs(case, dtype)
        function(targets, sources)
        return (torch.cat([t.flatten() for t in targets]),)

    count = sum(t.numel() for t in pairs(case)[0])
    return Problem(
        steps,
        12 * count,
        count,
        results=lambda: (averaged(ours), averaged(lerp), averaged(lerp, torch.float64)),
        names=("average",),
    )


def tables(effort: Effort) -> Iterator[Table]:
    found = one_pass.tables("ema_update_", CRITICS, (MANY,), {}, effort, title="float32", note=NOTE)
    yield from update_problems.beside(COLUMNS, found)


def bench_ema_update_(benchmark, measured):
    benchmark(measured.step)
