"""Tensors of many shapes, strides, dtypes and values for the updates of many tensors, and what
"the same bits" means."""

import platform

import pytest
import torch

from fastgen._load import EXTENSION

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
nan, inf = float("nan"), float("inf")

# Around the vectors, spans and pieces of the kernels (4 to 32 lanes, 512 elements).
_SIZES = (1, 3, 4, 15, 16, 17, 33, 63, 64, 65, 129, 511, 512, 513, 1030)
_SHAPES = (
    (),
    (0,),
    (2, 0, 3),
    (5, 1),
    (3, 5),
    (2, 3, 4, 5),
    (4, 6, 3, 3),
    (7, 130),
    *((n,) for n in _SIZES),
)


def same_rounding():
    """Whether torch's own code and the kernels agree on fused multiply-adds, which no x86 level but
    the lowest lacks."""
    if EXTENSION is None or platform.machine() not in ("x86_64", "AMD64"):
        return True
    lowest = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    return lowest == (EXTENSION.isa() == "default")


bits = pytest.mark.skipif(
    not same_rounding(), reason="FASTGEN_ISA and ATEN_CPU_CAPABILITY are different levels"
)


def same_bits(a, b):
    """NaN in the same places, and elsewhere the same. (The sign of a 0 that lerp_ gives depends on
    the layout in torch itself.)"""
    if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    return torch.equal(a[~a.isnan()], b[~b.isnan()])


def all_same_bits(ours, theirs):
    return all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))


class Draw:
    """Random tensors: values of `scale` with NaN, infinity and zeros of both signs among them."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, n):
        return int(torch.randint(n, (), generator=self.generator))

    def pick(self, *choices):
        return choices[self.below(len(choices))]

    def shapes(self):
        return [self.pick(*_SHAPES) for _ in range(1 + self.below(5))]

    def dtypes(self, count):
        """One dtype for all as a rule, now and then one for each."""
        if self.below(4):
            return [self.pick(*DTYPES)] * count
        return [self.pick(*DTYPES) for _ in range(count)]

    def values(self, shape, dtype, scale):
        t = (torch.randn(shape, generator=self.generator) * scale).to(dtype)
        if t.numel() and not self.below(3):
            for value in (nan, inf, -inf, 0.0, -0.0):
                t.view(-1)[self.below(t.numel())] = value
        return t

    def laid_out(self, t):
        """The same values at other strides."""
        how = self.below(6)
        if t.dim() == 0 or how < 2:
            return t
        if how == 2:
            return t.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1)
        if how == 3:
            wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), nan, dtype=t.dtype)
            wide[..., 1::2] = t
            return wide[..., 1::2]
        if how == 4 and t.dim() == 4:
            return t.to(memory_format=torch.channels_last)
        rows = torch.full((t.shape[0] + 2, *t.shape[1:]), nan, dtype=t.dtype)
        rows[2:] = t
        return rows[2:]


def copies(lists):
    """Each tensor again, at its own strides, in memory of its own."""
    return [[_copy(t) for t in tensors] for tensors in lists]


def _copy(t):
    spans = [s * (n - 1) for s, n in zip(t.stride(), t.shape, strict=True)]
    memory = torch.zeros(sum(spans) + 1 if t.numel() else 1, dtype=t.dtype)
    out = memory.as_strided(t.shape, t.stride())
    return out.copy_(t)


def on_threads(count, run):
    """What `run` gives with `count` threads."""
    torch.set_num_threads(count)
    try:
        return run()
    finally:
        torch.set_num_threads(1)


needs_kernels = pytest.mark.skipif(EXTENSION is None, reason="no compiled kernels")


def plan(name, *lists):
    return getattr(torch.classes.fastgen, name)(*lists)
