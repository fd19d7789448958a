"""What the vector-quantisation benchmarks share: shapes, data, the peers that are installed."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen import _load


class Shape(NamedTuple):
    """Rows, codes, values."""

    n: int
    k: int
    d: int

    @property
    def flops(self) -> float:
        """Of the scores of all rows with all codes."""
        return 2.0 * self.n * self.k * self.d

    def fewer_rows(self, scores: int) -> Shape:
        """The same with at most so many rows x codes: what is linear in N need not be run whole."""
        return self._replace(n=min(self.n, max(1, scores // self.k)))


def named(*shapes: tuple[int, int, int]) -> dict[str, Shape]:
    return {"x".join(map(str, shape)): Shape(*shape) for shape in shapes}


SHAPES = named((65536, 512, 64), (16384, 8192, 256), (131072, 1024, 32), (4096, 16384, 8))
QUICK_SHAPES = named((2048, 512, 64), (512, 2048, 256), (1024, 1024, 32), (1024, 4096, 8))


def data(shape: Shape) -> tuple[Tensor, Tensor]:
    """x (N, D) and a codebook (K, D) as after training: rows are codes with noise of 0.3 sigma."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(shape.k, shape.d, generator=generator)
    chosen = torch.randint(shape.k, (shape.n,), generator=generator)
    return codebook[chosen] + 0.3 * torch.randn(shape.n, shape.d, generator=generator), codebook


def peer(module: str):
    """A peer's module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


@contextlib.contextmanager
def one_thread():
    """Also for what brings its own threads."""
    threadpoolctl, faiss = peer("threadpoolctl"), peer("faiss")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if faiss is not None:
        faiss.omp_set_num_threads(1)
    limits = threadpoolctl.threadpool_limits(1) if threadpoolctl else contextlib.nullcontext()
    try:
        with limits:
            yield
    finally:
        torch.set_num_threads(before)


def check_nearest(indices: Tensor, x: Tensor, codebook: Tensor) -> int:
    """How many of the first rows have another code than float64 finds.

    Raises:
        AssertionError: by more than rounding: 4 eps (|x|^2 + |c|^2) from the mean of the codes.
    """
    rows = max(1, (1 << 23) // len(codebook))
    center = codebook.double().mean(0)
    rows_, codes = x[:rows].double() - center, codebook.double() - center
    distance = codes.square().sum(1) - 2 * rows_ @ codes.t()
    got = distance.gather(1, indices[:rows, None]).squeeze(1)
    least, nearest = distance.min(1)
    size = rows_.square().sum(1) + codes[indices[:rows]].square().sum(1)
    worst = ((got - least) / size).max().item()
    allowed = 4 * torch.finfo(x.dtype).eps
    assert worst <= allowed, f"a code is {worst:.2g} |x|^2 too far, allowed are {allowed:.2g}"
    return int((nearest != indices[:rows]).sum())


def can_filter() -> bool:
    """Whether the lookup may compute scores in bfloat16 first."""
    return _load.EXTENSION is not None and _load.EXTENSION.multiplies_bfloat16()


def best(times: dict[str, float], names) -> float | None:
    found = [times[name] for name in names if name in times]
    return min(found, default=None)


@functools.cache
def missing_note() -> str:
    """Which peers have no column here."""
    peers = {"faiss": "faiss-cpu", "sklearn": "scikit-learn"}
    peers["vector_quantize_pytorch"] = "vector-quantize-pytorch"
    absent = [name for module, name in peers.items() if peer(module) is None]
    return f" Not installed: {', '.join(absent)}." if absent else ""


def megabytes(count: float) -> float:
    return math.ceil(count / 2**17) / 8
