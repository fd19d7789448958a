"""All of vector quantisation: lookup, training step, moving averages, residual stages, k-means."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import bench_vq_ema_update_, bench_vq_nearest, bench_vq_quantize, measure
from fastgen.benchmarks import vq_problems as problems
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.table import Row, Table
from fastgen.benchmarks.vq_problems import Shape
from fastgen.cluster import KMeans
from fastgen.nn import ResidualVQ

ALSO_AT = bench_vq_nearest.ALSO_AT
_STAGES = 8
RESIDUAL = problems.named((65536, 1024, 64), (16384, 4096, 128), (256, 1024, 64))
QUICK_RESIDUAL = problems.named((1024, 1024, 64), (256, 1024, 64))
RESIDUAL_GOALS = {"65536x1024x64": {"share": 0.86}, "256x1024x64": {"over calls": 1.4}}
_PEER_SCORES = 1 << 24

RESIDUAL_COLUMNS = {
    "share": ("share of FMA peak", "{:.2f}"),
    "over calls": ("over separate calls", "{:.2f}x"),
    "over peer": ("over vector-quantize-pytorch", "{:.1f}x"),
    "ms": ("ms", "{:.2f}"),
    "limit": ("limit ms", "{:.2f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
}
RESIDUAL_NOTE = (
    f"{_STAGES} stages, eval mode, without gradients. Separate calls: vq_quantize and a "
    "subtraction for each stage. Limit: 2 N K D for each stage at the measured FMA peak. The peer "
    "gets at most 2^24 rows x codes, scaled up. Error: of quantized against the separate calls."
)

KMEANS = {"100000x1024x64": Shape(100_000, 1024, 64)}
QUICK_KMEANS = {"4000x128x16": Shape(4000, 128, 16)}
KMEANS_GOALS = {"100000x1024x64": {"over scikit-learn": 3.0, "over faiss": 1.5}}
_ITERATIONS = (1, 4)  # an iteration is the difference, so that starting and ending cost nothing

KMEANS_COLUMNS = {
    "over scikit-learn": ("over scikit-learn", "{:.2f}x"),
    "over faiss": ("over faiss", "{:.2f}x"),
    "ms": ("ms an iteration", "{:.1f}"),
    "limit": ("limit ms", "{:.1f}"),
    "share": ("share of FMA peak", "{:.2f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("inertia off", "{:.0e} ✓"),
}
KMEANS_NOTE = (
    f"One Lloyd iteration, from the difference of {_ITERATIONS[1]} iterations and "
    f"{_ITERATIONS[0]}, all from the same centres on Gaussian rows. Limit: 2 N K D at the measured "
    "FMA peak, and beside a goal beyond it the ratio at that limit. Error: of the inertia against "
    "scikit-learn's."
)


def residual_row(shape: Shape, effort: Effort, goals: dict[str, float]) -> Row:
    with problems.one_thread(), torch.no_grad():
        torch.manual_seed(0)
        options = {"dim": shape.d, "num_quantizers": _STAGES, "codebook_size": shape.k}
        x, _ = problems.data(shape)
        ours = ResidualVQ(**options).eval()
        for stage, layer in enumerate(ours.layers):  # stages of falling size, as after training
            layer._codebook.embed.normal_(std=0.7**stage)
        codebooks = [layer._codebook.embed[0].clone() for layer in ours.layers]

        def separate_calls():
            rest, total = x, torch.zeros_like(x)
            for codebook in codebooks:
                quantized = fastgen.vq_quantize(rest, codebook).quantized
                rest, total = rest - quantized, total + quantized
            return total

        error = measure.relative_error(ours(x[None])[0][0], separate_calls().double())
        assert error < 1e-5, f"quantized is {error:.2g} off the separate calls"
        calls: dict[str, Callable] = {"fastgen": lambda: ours(x[None]), "calls": separate_calls}
        fewer = shape.fewer_rows(_PEER_SCORES)
        if (package := problems.peer("vector_quantize_pytorch")) is not None:
            theirs = package.ResidualVQ(**options).eval()
            theirs.load_state_dict(ours.state_dict())
            calls["peer"] = partial(theirs, x[None, : fewer.n])
        timings, peak = measure.race_with_peak(calls, effort)
    seconds = {name: timing.best for name, timing in timings.items()}
    values = {
        "over calls": seconds["calls"] / seconds["fastgen"],
        "ms": 1e3 * seconds["fastgen"],
        "spread": timings["fastgen"].spread,
        "error": error,
    }
    if "peer" in seconds:
        values["over peer"] = seconds["peer"] * shape.n / fewer.n / seconds["fastgen"]
    bounds = {}
    if peak is not None:
        limit = _STAGES * shape.flops / peak
        values |= {"limit": 1e3 * limit, "share": limit / seconds["fastgen"]}
        bounds = {"over calls": seconds["calls"] / limit}
    return Row(values, goals, bounds, partial(ours, x[None]))


def kmeans_row(shape: Shape, effort: Effort, goals: dict[str, float]) -> Row:
    with problems.one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody is to converge here
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape.n, shape.d, generator=generator)
        start = x[: shape.k].clone()
        fits = _kmeans_fits(x, start)
        inertia = {name: fit(_ITERATIONS[1]) for name, fit in fits.items()}
        error = abs(inertia["fastgen"] / inertia.get("scikit-learn", inertia["fastgen"]) - 1)
        assert error < 1e-4, f"the inertia is {error:.2g} off scikit-learn's"
        calls = {(name, n): partial(fit, n) for name, fit in fits.items() for n in _ITERATIONS}
        timings, peak = measure.race_with_peak(calls, effort)
    few, many = _ITERATIONS
    seconds = {
        name: (timings[name, many].best - timings[name, few].best) / (many - few) for name in fits
    }
    values = {f"over {name}": t / seconds["fastgen"] for name, t in seconds.items()}
    values |= {
        "ms": 1e3 * seconds["fastgen"],
        "spread": timings["fastgen", many].spread,
        "error": error,
    }
    bounds = {}
    if peak is not None:
        limit = shape.flops / peak
        values |= {"limit": 1e3 * limit, "share": limit / seconds["fastgen"]}
        bounds = {f"over {name}": t / limit for name, t in seconds.items()}
    return Row(values, goals, bounds, partial(fits["fastgen"], 1))


def _kmeans_fits(x, start) -> dict[str, Callable[[int], float]]:
    """Functions from a number of iterations to the inertia."""
    rows, centers, k = x.numpy(), start.numpy(), len(start)

    def fastgen_fit(iterations):
        return KMeans(k, init=start, max_iter=iterations, tol=0.0).fit(x).inertia_

    fits = {"fastgen": fastgen_fit}
    if (cluster := problems.peer("sklearn.cluster")) is not None:

        def sklearn_fit(iterations):
            model = cluster.KMeans(k, init=centers, n_init=1, max_iter=iterations, tol=0.0)
            return model.fit(rows).inertia_

        fits["scikit-learn"] = sklearn_fit
    if (faiss := problems.peer("faiss")) is not None:

        def faiss_fit(iterations):
            points = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
            model = faiss.Kmeans(x.shape[1], k, niter=iterations, **points)
            return model.train(rows, init_centroids=centers)

        fits["faiss"] = faiss_fit
    return fits


def tables(effort: Effort) -> Iterator[Table]:
    yield from bench_vq_nearest.tables(effort)
    if measure.isa() in ALSO_AT:
        return
    yield from bench_vq_quantize.tables(effort)
    yield from bench_vq_ema_update_.tables(effort)
    shapes = QUICK_RESIDUAL if effort.quick else RESIDUAL
    cases = {
        name: partial(residual_row, shape, effort, RESIDUAL_GOALS.get(name, {}))
        for name, shape in shapes.items()
    }
    note = RESIDUAL_NOTE + problems.missing_note()
    yield Table(
        f"ResidualVQ, {_STAGES} stages, 1 thread, CPU seconds", RESIDUAL_COLUMNS, cases, note
    )
    shapes = QUICK_KMEANS if effort.quick else KMEANS
    cases = {
        name: partial(kmeans_row, shape, effort, KMEANS_GOALS.get(name, {}))
        for name, shape in shapes.items()
    }
    note = KMEANS_NOTE + problems.missing_note()
    yield Table("KMeans, an iteration, 1 thread, CPU seconds", KMEANS_COLUMNS, cases, note)


def bench_vq(benchmark, measured):
    benchmark(measured.step)
