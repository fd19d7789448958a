"""Critics whose weights are updated and clipped: by fastgen in one pass, and as it is done without,
by an optimiser of torch and a clamp behind it."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import nn

from fastgen import _load
from fastgen.benchmarks import measure, one_pass
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Table

CLIP = 0.01
DCGAN, MANY, LARGE = "DCGAN-like 64x64, 29 tensors", "300 tensors", "4 x 2048x2048"
CRITICS = (DCGAN, MANY, LARGE)
NOTE = (
    " Eager: the optimiser of torch with foreach, then a loop of clamp_; compiled: that step and a "
    "foreach clamp under torch.compile."
)
FLAT_NOTE = (
    " The flat pass, the limit of the memory: three arrays of as many weights are read and two "
    "written back, 20 bytes a weight, with next to no arithmetic."
)


def shapes(case: str) -> list[tuple[int, ...]]:
    if case == MANY:
        return [(64, 16), (64,), (64,)] * 100
    if case == LARGE:
        return [(2048, 2048)] * 4
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 4, 2, 1, bias=False)]
    for _ in range(6):
        layers += [nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)]
    for width in (64, 128, 256):
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width)]
    layers += [nn.Conv2d(512, 1, 4, 1, 0, bias=False)]
    return [tuple(p.shape) for layer in layers for p in layer.parameters()]


def weights(case: str, dtype=torch.float32) -> list[nn.Parameter]:
    """With gradients."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in shapes(case):
        weight, grad = (torch.randn(shape, generator=generator) for _ in range(2))
        found.append(nn.Parameter((weight * CLIP).to(dtype)))
        found[-1].grad = (grad * 1e-3).to(dtype)
    return found


def clamp(params) -> None:
    with torch.no_grad():
        for param in params:
            param.clamp_(-CLIP, CLIP)


def foreach_clamp(params) -> None:
    with torch.no_grad():
        torch._foreach_clamp_min_(params, -CLIP)
        torch._foreach_clamp_max_(params, CLIP)


def problem(
    ours: Callable, torchs: Callable, states: tuple[str, ...], case: str, *, compiled: bool
) -> Problem:
    """`ours(params)` is an optimiser with the clip, `torchs(params)` one without; `states` are the
    keys of their state."""

    def fastgens(params):
        return ours(params).step

    def eager(params):
        optimizer = torchs(params)

        def step():
            optimizer.step()
            clamp(params)

        step.optimizer = optimizer
        return step

    def in_graphs(params):
        optimizer = torchs(params)

        def step():
            optimizer.step()
            foreach_clamp(params)

        torch.compiler.reset()
        return torch.compile(step)

    def after_three(step_of, dtype=torch.float32):
        params = weights(case, dtype)
        step = step_of(params)
        for _ in range(3):
            step()
        state = getattr(step, "optimizer", getattr(step, "__self__", None)).state
        lists = [params, *([state[p][key] for p in params] for key in states)]
        return tuple(torch.cat([t.detach().flatten() for t in tensors]) for tensors in lists)

    steps = {"fastgen": fastgens(weights(case)), "eager": eager(weights(case))}
    if compiled:
        steps["compiled"] = in_graphs(weights(case))
    count = sum(p.numel() for p in weights(case))
    if states == ("square_avg",) and _load.EXTENSION is not None:  # whose bytes are as many
        steps["peer"] = flat_pass(count)
    return Problem(
        steps=steps,
        bytes=(12 + 8 * len(states)) * count,
        elements=count,
        results=lambda: (
            after_three(fastgens),
            after_three(eager),
            after_three(eager, torch.float64),
        ),
        names=("weights", *states),
    )


def flat_pass(count: int) -> Callable[[], None]:
    arrays = [torch.rand(count) for _ in range(3)]

    def step():
        _load.EXTENSION.memory_pass(*(a.data_ptr() for a in arrays), count)

    return step


def tables(stem: str, goals: Mapping, effort: Effort, *, flat: bool) -> Iterator[Table]:
    """`flat`: beside the flat pass."""
    found = one_pass.tables(
        stem, CRITICS, (MANY,), goals, effort, title="a step of the optimiser",
        note=NOTE + (FLAT_NOTE if flat else ""),
    )  # fmt: skip
    shares = {"over peer": ("flat pass's share of it", "{:.2f}")} if flat else {}
    yield from beside({}, found, shares)


def threads_table(title: str, problem: Callable, cases, effort: Effort) -> Table:
    def row(case):
        steps = problem(case, compiled=False).steps
        return measure.threads_row(
            {name: steps[name] for name in ("fastgen", "eager")}, effort, goal=1.7
        )

    return measure.threads_table(title, {case: partial(row, case) for case in cases}, effort)


def beside(first: Mapping, tables: Iterator[Table], last: Mapping = types.MappingProxyType({})):
    """The tables with further columns."""
    for table in tables:
        yield dataclasses.replace(table, columns={**first, **table.columns, **last})
