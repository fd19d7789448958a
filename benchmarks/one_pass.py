"""Ops that need no more than one pass over memory: ours beside eager and compiled PyTorch, and a
copy of as many bytes, with and without the allocator keeping memory that was freed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

import torch

from fastgen.benchmarks import measure
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.own_process import in_own_process
from fastgen.benchmarks.table import Row, Table

# By default glibc gives freed memory above 32 MiB back, and then page faults are most of what
# everybody's time goes into.
KEPT = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736",
}
MEMORY = {"freed memory kept": KEPT, "memory as torch takes it by default": {}}
AVX2_SHARE = 0.7  # of the goals, where PyTorch is held to AVX2 too

COLUMNS = {
    "over eager": ("over eager", "{:.2f}x"),
    "over compiled": ("over compiled", "{:.2f}x"),
    "us": ("us", "{:.1f}"),
    "ns": ("ns an element", "{:.3f}"),
    "copy": ("a copy's share of it", "{:.2f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
    "eager error": ("eager's", "{:.0e}"),
    "backend": ("backend", "{}"),
}
NOTE = (
    "A copy: Tensor.copy_ of as many bytes as the op must read and write, both ways where there is "
    "a gradient. Errors are relative to the largest value, in float64, of results and gradients."
)


@dataclass(frozen=True)
class Problem:
    """One row.

    steps: what is timed, by name: "fastgen", "eager", and others such as "compiled".
    bytes: what must be read and written in a step.
    elements: what the time is divided by.
    results: () -> (ours, eager's, exact), tuples of tensors of one dtype and float64.
    names: of those tensors.
    extra: further figures.
    """

    steps: dict[str, Callable[[], object]]
    bytes: int
    elements: int
    results: Callable[[], tuple[tuple, tuple, tuple]]
    names: tuple[str, ...]
    extra: dict[str, float] = field(default_factory=dict)


def tables(
    stem: str,
    cases: Iterable[str],
    quick: Iterable[str],
    goals: Mapping[str, Mapping[str, float]],
    effort: Effort,
    *,
    title: str = "forward + backward",
    peer: str = "",
    note: str = "",
) -> Iterator[Table]:
    """A table for each way of taking memory; goals are for memory that is kept. The benchmark of
    the op `stem` has ``problem(case, *, compiled) -> Problem``. `peer` is the heading of the
    contestant of that name, if there is one."""
    over_peer = {"over peer": (f"over {peer}", "{:.2f}x")} if peer else {}
    columns = COLUMNS | over_peer
    share = AVX2_SHARE if measure.isa() == "avx2" else 1.0
    for words, environment in MEMORY.items():
        if effort.quick and not environment:
            continue
        rows = {}
        for case in quick if effort.quick else cases:
            wanted = goals.get(case, {}) if environment else {}
            wanted = {name: share * goal for name, goal in wanted.items()}
            rows[case] = partial(row, stem, case, effort, environment, wanted)
        yield Table(f"{stem}, {title}, 1 thread, CPU seconds, {words}", columns, rows, NOTE + note)


def row(stem: str, case: str, effort: Effort, environment: dict, goals: dict) -> Row:
    compiled = bool(environment) and not effort.quick  # it takes longer than all the rest
    try:
        found = in_own_process(figures, stem, case, asdict(effort), compiled, **environment)
    except RuntimeError as error:  # torch.compile held to AVX2 has taken the process down
        if not compiled:
            raise
        print(f"left out, compiled: {error}", file=sys.stderr)
        found = in_own_process(figures, stem, case, asdict(effort), False, **environment)
    step = _problem(stem, case, compiled=False).steps["fastgen"]
    return Row(found, goals, step=step)


def figures(stem: str, case: str, effort: dict, compiled: bool) -> dict:
    """All figures of a row, in this process."""
    effort = Effort(**effort)
    with measure.threads(1):
        problem = _problem(stem, case, compiled=compiled)
        ours, plain, exact = problem.results()
        errors = measure.checked_errors([ours], [plain], exact, problem.names)
        source = torch.zeros(max(1, problem.bytes // 8))
        target = torch.empty_like(source)
        steps = {name: step for name, step in problem.steps.items() if _works(name, step)}
        steps["copy"] = partial(target.copy_, source)
        timings = measure.race(steps, effort)
    seconds = {name: timing.best for name, timing in timings.items()}
    own = seconds["fastgen"]
    peers = {name: t for name, t in seconds.items() if name not in ("fastgen", "copy")}
    over = {f"over {name}": t / own for name, t in peers.items()}
    over["over best"] = min(peers.values()) / own
    return (
        over
        | errors
        | problem.extra
        | {
            "us": 1e6 * own,
            "ns": 1e9 * own / problem.elements,
            "copy": seconds["copy"] / own,
            "spread": timings["fastgen"].spread,
            "backend": measure.backend(stem),
        }
    )


def _works(name: str, step: Callable) -> bool:
    """False for what torch.compile cannot compile, as happens at lower CPU levels."""
    if not name.startswith("compiled"):
        return True
    try:
        step()
    except Exception as error:
        print(f"left out, {name}: {type(error).__name__}", file=sys.stderr)
        return False
    return True


def _problem(stem: str, case: str, *, compiled: bool) -> Problem:
    benchmark = importlib.import_module(f"fastgen.benchmarks.bench_{stem}")
    return benchmark.problem(case, compiled=compiled)


def with_gradients(function: Callable, wanted: list, grads) -> Callable:
    """A step: `function()` and the gradients of `wanted` for the gradients `grads` of its
    results."""

    def run():
        results = function()
        results = results if isinstance(results, tuple) else (results,)
        return (*(r.detach() for r in results), *torch.autograd.grad(results, wanted, grads))

    return run


def compiled(function: Callable) -> Callable:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)
