"""Whole batches of images from the sampling compiler, in units of one forward of the network."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

import fastgen
from fastgen.benchmarks import measure
from fastgen.benchmarks import sampling_nets as nets
from fastgen.benchmarks.cached_eager import CachedTwoStacks
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.table import Row, Table
from fastgen.likelihoods import Categorical

ALSO_AT = ("avx2",)


@dataclass(frozen=True)
class Case:
    """A network and, by batch size, the goals: forwards at most, share of the FMA peak at least
    (a second one for AVX2)."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    forwards: dict[int, float]
    share: dict[int, float] = None
    share_avx2: dict[int, float] = None
    levels: int = 256
    order: str = "raster"


_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)
CASES = {
    "gated, 64 channels": Case(
        nets.TwoStacks,
        _GREY,
        {1: 0.85, 16: 0.48, 64: 0.38},
        {16: 0.84, 64: 0.86},
        {16: 0.78, 64: 0.80},
    ),
    "gated, 128 channels": Case(
        partial(nets.TwoStacks, 128), _GREY, {1: 1.12, 16: 0.54, 64: 0.37}, {16: 0.84, 64: 0.86}
    ),
    "7x7 with batch norm": Case(nets.PlainBatchNorm, _GREY, {1: 0.65, 16: 0.55, 64: 0.52}),
    "colour groups": Case(
        nets.ColourGroups, _COLOUR, {1: 1.25, 16: 0.44, 64: 0.33}, order="subpixel"
    ),
    "shifts, strides": Case(nets.ShiftedStreams, (1, 32, 32), {1: 0.8, 16: 0.32}),
    "pixel transformer 16x16": Case(nets.PixelTransformer, (1, 16, 16), {1: 10, 16: 3}, levels=16),
}
COLUMNS = {
    "forwards": ("of one eager forward", "{:.2f}"),
    "of compiled": ("of a compiled one", "{:.2f}"),
    "of bfloat16": ("of a bfloat16 channels-last one", "{:.2f}"),
    "share": ("share of FMA peak", "{:.2f}"),
    "over naive": ("over naive", "{:.0f}x"),
    "over naive compiled": ("over naive compiled", "{:.0f}x"),
    "over cached": ("over hand-cached eager", "{:.1f}x"),
    "fastgen": ("ms", "{:.1f}"),
    "limit": ("limit ms", "{:.1f}"),
    "eager": ("eager forward ms", "{:.1f}"),
    "eager spread": ("its spread", "{:.0%}"),
    "memory": ("MB an image", "{:.2f}"),
    "error": ("error", "{:.0e} ✓"),
    "backend": ("backend", "{}"),
}
NOTE = (
    "Naive: as many forwards as there are steps, without the time for drawing; compiled: by "
    "torch.compile, up to batch 16. Hand-cached: benchmarks/cached_eager.py. Limit and share count "
    "the products of unmasked weights alone. Memory: activations in flight. Error: of the "
    "parameters for random codes against one forward, over the largest."
)


class Problem:
    """A network, its sampler, and a batch of codes and of uniform numbers."""

    def __init__(self, case: Case, batch: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nets.randomise(case.make())
            self.codes = torch.randint(case.levels, (batch, *case.shape))
            self.uniforms = torch.rand(batch, 1, *case.shape)
        self.sampler = fastgen.compile_sampler(
            self.net, case.shape, Categorical(case.levels), order=case.order
        )

    def sample(self):
        return self.sampler.sample(len(self.codes), uniforms=self.uniforms)

    def forwards(self, *, compiled: bool) -> dict[str, Callable]:
        found = {"eager": self._forward(self.net)}
        half = copy.deepcopy(self.net).to(memory_format=torch.channels_last)
        found["bfloat16"] = self._forward(half, torch.bfloat16)
        if compiled:
            torch.compiler.reset()
            found["compiled"] = self._forward(torch.compile(self.net, dynamic=False))
        return found

    def _forward(self, net, autocast=None):
        def run():
            with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
                return net(self.codes)

        return run

    def check(self) -> float:
        """The error of the parameters; AssertionError if it is more than rounding."""
        codes = self.codes[:4]
        with torch.no_grad():
            exact = self.net(codes).double()
        error = measure.relative_error(self.sampler.parameters_at(codes), exact)
        assert error <= 5e-5, f"parameters are {error:.2g} off the forward's"
        return error


def row(case: Case, batch: int, effort: Effort) -> Row:
    with measure.threads(1):
        problem = Problem(case, batch)
        error = problem.check()
        compiled = not effort.quick and batch <= 16  # larger batches tell nothing new
        contestants = {"fastgen": problem.sample, **problem.forwards(compiled=compiled)}
        timings, peak = measure.race_with_peak(contestants, effort)
        cached = _cached_seconds(problem, effort)
    seconds = {name: timing.best for name, timing in timings.items()}
    ours, program = seconds["fastgen"], problem.sampler.program
    values = {
        "forwards": ours / seconds["eager"],
        "of bfloat16": ours / seconds["bfloat16"],
        "over naive": program.steps * seconds["eager"] / ours,
        "fastgen": 1e3 * ours,
        "eager": 1e3 * seconds["eager"],
        "eager spread": timings["eager"].spread,
        "memory": program.floats * 4e-6,
        "error": error,
        "backend": problem.sampler.backend,
    }
    if "compiled" in seconds:
        values["of compiled"] = ours / seconds["compiled"]
        values["over naive compiled"] = program.steps * seconds["compiled"] / ours
    if cached is not None:
        values["over cached"] = cached / ours
    if peak is not None:
        limit = 2 * batch * program.multiply_adds / peak
        values |= {"limit": 1e3 * limit, "share": limit / ours}
    shares = (case.share_avx2 if measure.isa() == "avx2" else case.share) or {}
    least = {"share": shares[batch]} if batch in shares else {}
    most = {"forwards": case.forwards[batch]} if batch in case.forwards else {}
    return Row(values, least, step=problem.sample, most=most)


def _cached_seconds(problem, effort):
    if effort.quick or not isinstance(problem.net, nets.TwoStacks):
        return None
    cached = CachedTwoStacks(problem.net)
    best = float("inf")
    for _ in range(2):
        begin = time.process_time()
        cached.sample(problem.uniforms)
        best = min(best, time.process_time() - begin)
    return best


def threads_row(case: Case, batch: int, effort: Effort) -> Row:
    problem = Problem(case, batch)
    problem.check()
    steps = {"fastgen": problem.sample, "eager": problem.forwards(compiled=False)["eager"]}
    row = measure.threads_row(steps, effort, goal=1.85 if batch >= 16 else 1.0)
    return replace(row, most={"of eager": 0.62} if batch == 1 else {})


def tables(effort: Effort) -> Iterator[Table]:
    batches = (1,) if effort.quick else (1, 16, 64, 256) if effort.full else (1, 16, 64)
    avx2 = measure.isa() == "avx2"
    names = [name for name in CASES if not avx2 or CASES[name].share_avx2]
    cases = {
        f"{name}, batch {batch}": partial(row, CASES[name], batch, effort)
        for name in names
        for batch in batches
    }
    yield Table("a whole batch drawn, 1 thread, CPU seconds", COLUMNS, cases, NOTE)
    if effort.threads > 1 and not effort.quick:
        name = "gated, 64 channels"
        several = {
            f"{name}, batch {batch}": partial(threads_row, CASES[name], batch, effort)
            for batch in batches
        }
        table = measure.threads_table("a whole batch drawn, eager: one forward", several, effort)
        heading = "of one eager forward on 1 thread"
        yield replace(table, columns=table.columns | {"of eager": (heading, "{:.2f}")})


def bench_sampling(benchmark, measured):
    benchmark(measured.step)
