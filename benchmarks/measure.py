"""How the benchmarks measure: all contestants in turns, in one process, against a limit measured
in the same rounds.

One-thread figures are CPU seconds of the process, which other work on the machine inflates least.
Figures of several threads can only be wall-clock, and are taken only while nothing else runs: a
busy core makes the barriers of OpenMP collapse, unevenly among the contestants.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import fastgen
from fastgen import _load
from fastgen.benchmarks.table import Row, Table

_SAMPLE = 2e-3  # seconds: 3000 times what reading the clock costs, short enough to miss interrupts
_BUSY = 0.05  # share of a core, taken by others, from which a machine is not idle
_PEAK_ITERATIONS = 200_000
FORMATS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
_CPU_NUMBERS = (("family", "cpu family"), ("model", "model"))


@dataclass(frozen=True)
class Effort:
    """What a run of a benchmark is to measure.

    quick: little time a row, no torch.compile, one thread: shows that it runs, not how fast.
    full: also the tables that take long.
    threads: of the tables about several threads.
    """

    quick: bool = False
    full: bool = False
    threads: int = 2

    @property
    def seconds(self) -> float:
        """For each contestant of a row, about."""
        return 0.05 if self.quick else 0.6

    @property
    def rounds(self) -> int:
        """Fewest turns of each: the best of a slow contestant's few samples would favour the fast
        ones, which have many."""
        return 2 if self.quick else 5


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the best and the median sample of all rounds."""

    best: float
    median: float

    @property
    def spread(self) -> float:
        """How far the median lies above the best: the noise of the machine."""
        return self.median / self.best - 1


def race(
    contestants: dict[str, Callable[[], object]],
    effort: Effort,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Timing]:
    """Times the contestants in turns, A B C A B C, so that a drift of the machine hits all.

    A turn lasts as long as one call of the slowest, at least 20 ms (12 if quick); in it, a faster
    contestant gives many samples of at least 2 ms each.

    Args:
        contestants: functions without arguments.
        effort: says how long.
        clock: time.process_time, or time.perf_counter for several threads.
    """
    once = {name: _warmed_up(call, clock) for name, call in contestants.items()}
    turn = max(*once.values(), min(0.02, effort.seconds / 4), _SAMPLE)
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    # calls of seconds average over the noise themselves
    fewest = effort.rounds if turn < 1 else 3
    for _ in range(max(fewest, round(effort.seconds / turn))):
        for name, call in contestants.items():
            if once[name] < turn / 4:
                call()  # caches hold the other contestants' data
            calls = max(1, round(_SAMPLE / once[name]))
            end = clock() + turn
            while True:
                begin = clock()
                for _ in range(calls):
                    call()
                now = clock()
                samples[name].append((now - begin) / calls)
                if now >= end - 0.5 * (now - begin):
                    break
    return {name: Timing(min(s), statistics.median(s)) for name, s in samples.items()}


def _warmed_up(call, clock) -> float:
    """Seconds of the second call, at least a microsecond."""
    call()
    begin = clock()
    call()
    return max(clock() - begin, 1e-6)


def race_with_peak(contestants, effort: Effort) -> tuple[dict[str, Timing], float | None]:
    """`race` of the contestants and of FMAs in registers at the CPU level in force; the second
    result is their FLOP/s, the limit, or None without the compiled extension."""
    if _load.EXTENSION is None:
        return race(contestants, effort), None

    def fmas():
        return _load.EXTENSION.fma_flops(_PEAK_ITERATIONS)

    timings = race({**contestants, "peak": fmas}, effort)
    return timings, fmas() / timings.pop("peak").best


@contextlib.contextmanager
def threads(count: int):
    """torch runs on `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def watch_for_others():
    """Yields a function that tells whether other processes were at work since the block began."""
    seconds, own, wall = _busy_seconds(), time.process_time(), time.perf_counter()

    def were_others_busy() -> bool:
        if seconds is None:
            return True  # cannot tell
        others = (_busy_seconds() - seconds) - (time.process_time() - own)
        return others > _BUSY * (time.perf_counter() - wall)

    yield were_others_busy


def _busy_seconds() -> float | None:
    """CPU seconds of all processes since boot, with those stolen by the host; None where the
    system does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(f) for f in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


_NOT_MEASURED = "not measured: machine busy"


def threads_row(steps: dict[str, Callable], effort: Effort, *, goal: float | None = None) -> Row:
    """What `effort.threads` threads gain over one, by wall clock on an idle machine; a row without
    figures on any other. The first of `steps` is ours."""
    calls = {(name, n): _on(n, step) for name, step in steps.items() for n in (1, effort.threads)}
    ours, *_ = steps
    with threads(torch.get_num_threads()), watch_for_others() as were_others_busy:
        time.sleep(0.5)
        if not were_others_busy():
            timings = race(calls, effort, clock=time.perf_counter)
        if were_others_busy():
            return Row({"gain": _NOT_MEASURED}, step=steps[ours])
    best = {key: timing.best for key, timing in timings.items()}
    many = effort.threads
    values = {
        "one": 1e3 * best[ours, 1],
        "many": 1e3 * best[ours, many],
        "gain": best[ours, 1] / best[ours, many],
        "spread": timings[ours, many].spread,
    }
    for name in steps:
        if name != ours:
            values[f"over {name}"] = best[name, many] / best[ours, many]
            values[f"of {name}"] = best[ours, many] / best[name, 1]
    return Row(values, {} if goal is None else {"gain": goal}, step=steps[ours])


def threads_table(title: str, cases: dict[str, Callable[[], Row]], effort: Effort) -> Table:
    """The table for rows by `threads_row` with the steps "fastgen" and "eager"."""
    columns = {
        "one": ("1 thread, ms", "{:.3f}"),
        "many": (f"{effort.threads} threads, ms", "{:.3f}"),
        "gain": ("gain".rjust(len(_NOT_MEASURED)), "{:.2f}x"),
        "over eager": (f"over eager on {effort.threads} threads", "{:.2f}x"),
        "spread": ("spread", "{:.0%}"),
    }
    return Table(f"{title}, wall clock", columns, cases)


def _on(count: int, step: Callable) -> Callable:
    def run():
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
        return step()

    return run


def backend(*stems: str) -> str:
    """What serves these ops on the CPU, such as "cpu"."""
    found = [b.name for stem in stems for b in fastgen.backends(stem) if "cpu" in b.runs_on]
    return ", ".join(dict.fromkeys(found)) or "none"


def isa() -> str | None:
    """The CPU level in force, None without the compiled extension."""
    return None if _load.EXTENSION is None else _load.EXTENSION.isa()


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Largest error over the largest value of `exact` (float64)."""
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)}, not {tuple(exact.shape)}"
    if exact.numel() == 0:
        return 0.0
    scale = max(exact.abs().max().item(), 1e-30)
    return (actual.double() - exact).abs().max().item() / scale


def checked_errors(ours: list, plain: list, exact, names) -> dict[str, float]:
    """The largest relative errors against float64, ours under "error" and PyTorch's under "eager
    error", once ours are small enough: a wrong kernel has no speed.

    Args:
        ours, plain: results of our contestants and of eager PyTorch in the same dtype, each a tuple
            of tensors.
        exact: the same in float64.
        names: of the tensors.

    Raises:
        AssertionError: one of our tensors is more than twice as far off as the worse of `plain`,
            and more than a few roundings.
    """
    worst = {"error": 0.0, "eager error": 0.0}
    for i, name in enumerate(names):
        error = max(relative_error(result[i], exact[i]) for result in ours)
        plain_error = max(relative_error(result[i], exact[i]) for result in plain)
        allowed = 2 * plain_error + 1e-6
        assert error <= allowed, f"{name} is {error:.2g} off float64, allowed are {allowed:.2g}"
        worst["error"] = max(worst["error"], error)
        worst["eager error"] = max(worst["eager error"], plain_error)
    return worst


def check_steps(steps: dict[str, Callable], exact, names) -> dict[str, float]:
    """`checked_errors` of contestants by name: those of fastgen begin with neither "eager" nor
    "compiled"."""
    eager = [step() for name, step in steps.items() if name.startswith("eager")]
    peers = ("eager", "compiled")
    ours = [step() for name, step in steps.items() if not name.startswith(peers)]
    return checked_errors(ours, eager, exact, names[: len(exact)])


def machine() -> dict[str, str]:
    """What the figures depend on."""
    built = "no compiled kernels"
    if _load.EXTENSION is not None:
        built = f"CPU level {isa()}, compiler {_load.EXTENSION.compiler()}"
    return {
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores",
        "fastgen": f"{fastgen.__version__}, {built}",
        "torch": f"{torch.__version__}, CPU level {torch.backends.cpu.get_cpu_capability()}, "
        f"oneDNN held to {os.environ.get('ONEDNN_MAX_CPU_ISA', 'nothing')}",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def cpu_model() -> str:
    """Such as "AMD EPYC, family 25, model 17": the name alone can mean several generations."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    words = (f"{word} {found[key]}" for word, key in _CPU_NUMBERS if key in found)
    return ", ".join([found["model name"].strip(), *words])
