"""clip_weights_ beside a loop of clamp_, foreach and torch.compile, from one tiny tensor on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import one_pass, update_problems
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table
from fastgen.benchmarks.update_problems import CLIP, CRITICS, LARGE

SIZES = {"1 x 10": [(10,)], "1 x 1000": [(1000,)], "10 x 1000": [(1000,)] * 10}
CASES = (*SIZES, *CRITICS)
QUICK = ("1 x 10", "10 x 1000")
ALSO_AT = ("avx2",)
GOALS = {case: {"over best": 1.0} for case in CASES}
COLUMNS = {
    "over best": ("over the best", "{:.2f}x"),
    "over data": ("over a .data loop", "{:.2f}x"),
    "over foreach": ("over foreach", "{:.2f}x"),
}
NOTE = (
    " Eager: a loop of clamp_ under no_grad; .data: a loop over p.data, which autograd does not "
    "notice; foreach: _foreach_clamp_min_ and _max_; compiled: the foreach calls."
)


def weights(case: str) -> list[torch.Tensor]:
    if case not in SIZES:
        return [p.detach().requires_grad_() for p in update_problems.weights(case)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator).requires_grad_() for s in SIZES[case]]


def problem(case: str, *, compiled: bool) -> Problem:
    def ours(params):
        return fastgen.clip_weights_(params, CLIP)

    def data(params):
        for param in params:
            param.data.clamp_(-CLIP, CLIP)

    functions = {
        "fastgen": ours,
        "eager": update_problems.clamp,
        "data": data,
        "foreach": update_problems.foreach_clamp,
    }
    if compiled:
        functions["compiled"] = one_pass.compiled(update_problems.foreach_clamp)
    steps = {name: partial(function, weights(case)) for name, function in functions.items()}

    def clipped(function):
        params = weights(case)
        function(params)
        return (torch.cat([p.detach().flatten() for p in params]),)

    def results():
        plain = clipped(update_problems.clamp)
        return clipped(ours), plain, (plain[0].double(),)

    count = sum(p.numel() for p in weights(case))
    return Problem(steps, 8 * count, count, results, ("weights",))


def tables(effort: Effort) -> Iterator[Table]:
    found = one_pass.tables(
        "clip_weights_", CASES, QUICK, GOALS, effort, title="float32", note=NOTE
    )
    yield from update_problems.beside(COLUMNS, found)


def threads(effort: Effort) -> Table:
    return update_problems.threads_table("clip_weights_", problem, (LARGE,), effort)


def bench_clip_weights_(benchmark, measured):
    benchmark(measured.step)
