"""vq_nearest beside torch.mm alone, torch's ways to the same indices, faiss and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import measure
from fastgen.benchmarks import vq_problems as problems
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.own_process import extra_megabytes, in_own_process
from fastgen.benchmarks.table import Row, Table
from fastgen.benchmarks.vq_problems import QUICK_SHAPES, SHAPES, Shape

ALSO_AT = ("avx2",)
_SCORES = 1 << 26  # rows x codes that a peer is given at most; all of them are linear in N
_TORCH = ("cdist", "addmm", "compiled")
_WIDE = 128  # values from which the filter has a goal

# share of the FMA peak by CPU level; over peers with huge pages on
SHARES = {
    "avx512": dict(zip(SHAPES, (0.90, 0.92, 0.90, 0.78), strict=True)),
    "avx2": dict(zip(SHAPES, (0.80, 0.80, 0.80, 0.70), strict=True)),
}
FILTER_GOAL = 1.5

COLUMNS = {
    "share": ("share of FMA peak", "{:.2f}"),
    "over mm": ("over torch.mm alone", "{:.2f}x"),
    "over torch": ("over best of torch", "{:.2f}x"),
    "over cdist": ("cdist", "{:.2f}x"),
    "over addmm": ("addmm", "{:.2f}x"),
    "over compiled": ("compiled", "{:.2f}x"),
    "over faiss": ("over faiss", "{:.2f}x"),
    "over sklearn": ("over scikit-learn", "{:.2f}x"),
    "filter": ("filter over none", "{:.2f}x"),
    "ms": ("ms", "{:.2f}"),
    "limit": ("limit ms", "{:.2f}"),
    "spread": ("spread", "{:.0%}"),
    "memory": ("extra MiB", "{:.2f}"),
    "packed": ("packed codebook MiB", "{:.2f}"),
    "addmm memory": ("addmm's", "{:.0f}"),
    "differ": ("ties that float64 breaks otherwise", "{:.0f} ✓"),
    "backend": ("backend", "{}"),
}
NOTE = (
    "Rows are codes with noise of 0.3 sigma. Share: of exact float32 without the bfloat16 filter, "
    "whose gain stands beside it; ms and all ratios are of the public op, which filters where that "
    "pays. Limit: 2 N K D at the measured FMA peak. Best of torch: cdist, addmm and torch.compile "
    "of addmm, each with argmin; peers get at most 2^26 rows x codes, scaled up. Extra memory: the "
    "rise of the peak of resident memory in a process of its own, less the result. Checked against "
    "float64 on the first rows."
)


def _with_peers() -> bool:
    """At lower CPU levels only our own share of the peak is asked for."""
    return measure.isa() != "avx2"


def contestants(shape: Shape, *, compiled: bool, peers: bool) -> dict[str, tuple[Callable, float]]:
    """name -> (call, by what its time is multiplied)."""
    x, codebook = problems.data(shape)

    def raw(filter):
        return torch.ops.fastgen.vq_nearest(x, codebook, 1, False, filter)

    found = {
        "fastgen": (lambda: fastgen.vq_nearest(x, codebook), 1.0),
        "float32": (partial(raw, False), 1.0),
    }
    if problems.can_filter():
        found["filter"] = (partial(raw, True), 1.0)
    if not peers:
        return found
    fewer = shape.fewer_rows(_SCORES)
    part, scale, transposed = x[: fewer.n], shape.n / fewer.n, codebook.t()
    half_norm = -0.5 * codebook.square().sum(1)

    def plain(part):
        return torch.addmm(half_norm, part, transposed).argmax(1)

    calls = {
        "mm": lambda: torch.mm(part, transposed),
        "cdist": lambda: torch.cdist(part, codebook).argmin(1),
        "addmm": partial(plain, part),
    }
    if compiled:
        torch.compiler.reset()
        calls["compiled"] = partial(torch.compile(plain, fullgraph=True, dynamic=False), part)
    rows, codes = part.numpy(), codebook.numpy()
    if (faiss := problems.peer("faiss")) is not None:
        index = faiss.IndexFlatL2(shape.d)
        index.add(codes)
        calls["faiss"] = lambda: index.search(rows, 1)
    if (metrics := problems.peer("sklearn.metrics")) is not None:
        calls["sklearn"] = lambda: metrics.pairwise_distances_argmin(rows, codes)
    return found | {name: (call, scale) for name, call in calls.items()}


def figures(shape, effort) -> dict:
    """Everything about a shape on one thread, in this process."""
    shape, effort = Shape(*shape), Effort(**effort)
    with problems.one_thread():
        calls = contestants(shape, compiled=not effort.quick, peers=_with_peers())
        x, codebook = problems.data(shape)
        ours = [name for name in ("fastgen", "float32", "filter") if name in calls]
        differ = [problems.check_nearest(calls[name][0](), x, codebook) for name in ours]
        timings, peak = measure.race_with_peak({n: call for n, (call, _) in calls.items()}, effort)
    seconds = {name: timings[name].best * scale for name, (_, scale) in calls.items()}
    values = {f"over {name}": t / seconds["fastgen"] for name, t in seconds.items()}
    if (best := problems.best(seconds, _TORCH)) is not None:
        values["over torch"] = best / seconds["fastgen"]
    if "filter" in seconds:
        values["filter"] = seconds["float32"] / seconds["filter"]
    values |= {
        "ms": 1e3 * seconds["fastgen"],
        "spread": timings["fastgen"].spread,
        "packed": problems.megabytes(4 * shape.k * shape.d),
        "differ": float(max(differ)),
        "backend": measure.backend("vq_nearest"),
    }
    if peak is not None:
        limit = shape.flops / peak
        values |= {"limit": 1e3 * limit, "share": limit / seconds["float32"]}
    return values


def memory(shape, name: str) -> float | None:
    """MiB beside inputs and result of one contestant's call; asked in a process of its own."""
    shape = Shape(*shape)
    with problems.one_thread():
        small = contestants(Shape(64, 16, shape.d), compiled=False, peers=True)
        small[name][0]()  # what is allocated once a process
        call, _ = contestants(shape, compiled=False, peers=True)[name]
        return extra_megabytes(call)


def row(shape: Shape, effort: Effort, *, huge_pages: bool, goals: dict) -> Row:
    if huge_pages:
        values = in_own_process(figures, shape, asdict(effort), THP_MEM_ALLOC_ENABLE="1")
    else:
        values = figures(shape, asdict(effort))
    if not effort.quick and not huge_pages and _with_peers():
        values["memory"] = in_own_process(memory, shape, "fastgen")
        values["addmm memory"] = in_own_process(memory, shape, "addmm")
    x, codebook = problems.data(shape)
    return Row(values, goals, step=lambda: fastgen.vq_nearest(x, codebook))


def threads_row(shape: Shape, effort: Effort) -> Row:
    calls = contestants(shape.fewer_rows(_SCORES), compiled=False, peers=True)
    steps = {"fastgen": calls["fastgen"][0], "eager": calls["addmm"][0]}
    return measure.threads_row(steps, effort, goal=1.8)


def goals_of(name: str) -> dict[str, float]:
    shares = SHARES.get(measure.isa(), {})
    goals = {"share": shares[name]} if name in shares else {}
    wide = SHAPES[name].d >= _WIDE if name in SHAPES else False
    return goals | ({"filter": FILTER_GOAL} if wide and problems.can_filter() else {})


def tables(effort: Effort) -> Iterator[Table]:
    shapes = QUICK_SHAPES if effort.quick else SHAPES
    title = "vq_nearest, 1 thread, CPU seconds"
    settings = {f"{title}, torch with huge pages": True, f"{title}, torch as it comes": False}
    if effort.quick or not _with_peers():
        settings = {title: False}
    for words, huge_pages in settings.items():
        cases = {
            name: partial(row, shape, effort, huge_pages=huge_pages, goals=goals_of(name))
            for name, shape in shapes.items()
        }
        yield Table(words, COLUMNS, cases, NOTE + problems.missing_note())
    if effort.threads > 1 and not effort.quick:
        yield measure.threads_table(
            "vq_nearest, eager: addmm and argmax",
            {name: partial(threads_row, shape, effort) for name, shape in shapes.items()},
            effort,
        )


def bench_vq_nearest(benchmark, measured):
    benchmark(measured.step)
