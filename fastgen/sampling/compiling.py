"""From a callable to a program that has proved equal to it on codes it was not traced with."""

import contextlib
import copy
import math
import os
import sys
import threading
import time
import warnings
import weakref
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor, nn

from fastgen._backends import forced
from fastgen._load import EXTENSION, MISSING
from fastgen.sampling.arguments import (
    check_eval,
    checked_params,
    device_of,
    each_tensor,
    refuse,
    sliced,
    tensors_of,
)
from fastgen.sampling.causality import not_causal_error, violations
from fastgen.sampling.errors import UnsupportedModelError
from fastgen.sampling.executors import CpuExecutor, ReferenceExecutor
from fastgen.sampling.fingerprint import Watch
from fastgen.sampling.lower import emit, optimize
from fastgen.sampling.trace import trace

# why the C++ executor cannot run, or None
_NO_CPU = MISSING
if EXTENSION is not None and not hasattr(EXTENSION, "SamplerEngine"):
    _NO_CPU = "the compiled kernels are older than the sampler; run `pip install .` again"
GROUP = 16  # images that share a pass over the weights
# Rows of one call of a chained linear: enough to read its weights once, few enough to stay in L1.
_ROWS = 64
_HALF = (torch.float16, torch.bfloat16)


class _Lock:
    """One compilation at a time, however many threads ask; a forked child finds it open."""

    def __init__(self):
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self):
        self._lock = threading.RLock()

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *_):
        self._lock.release()


LOCK = _Lock()


@dataclass(frozen=True)
class Target:
    """How a program is run."""

    dtype: torch.dtype  # float32, float64, or bfloat16: weights alone, all else in float32
    backend: str  # "cpu" or "reference"
    device: torch.device  # where the reference runs

    @property
    def float_dtype(self) -> torch.dtype:
        """Of activations, and of the parameters an executor gives."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def executor(self, program):
        if self.backend == "reference":
            return ReferenceExecutor(program, self.dtype, self.device)
        return CpuExecutor(program, self.dtype)


@dataclass(frozen=True)
class Request:
    """What is to be compiled; every field checked."""

    fn: object
    shape: tuple
    likelihood: object
    order: object
    ranks: Tensor
    condition: object  # an example of batch 1, or None
    params: object
    target: Target

    @property
    def device(self) -> torch.device:
        """Of fn, wherever it may have gone since."""
        return device_of(self.fn, self.condition, None)

    @torch.no_grad()
    def forward(self, codes: Tensor, condition=None) -> Tensor:
        """The parameters by fn itself, in eager mode where parts of it are compiled."""
        codes = codes.to(self.device)
        with _eager():
            result = self.fn(codes) if condition is None else self.fn(codes, condition)
            result = result if self.params is None else self.params(result)
        return checked_params(result, self.likelihood, codes)

    def trace(self):
        with _eager():
            return trace(
                self.fn,
                self.shape,
                self.ranks,
                levels=self.likelihood.levels,
                condition=self.condition,
                params=self.params,
            )


def _eager():
    """Runs what torch.compile has wrapped somewhere inside as it was written."""
    if "torch._dynamo" not in sys.modules:  # takes seconds to load, and nothing is compiled
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


@dataclass
class Compiled:
    """What sampling needs of a model, and good until its weights change. Does not keep the model
    alive."""

    target: Target
    parameters: int  # K
    colors: int  # of the parameters: 1 with a coupled likelihood
    plan: object
    tape: object
    modules: dict  # path -> weak reference
    watch: Watch
    ops: dict
    executors: dict = field(default_factory=dict)  # by chunk, or "pair"
    seconds: float = 0.0
    # relative to max(1, largest value):
    error: float = 0.0  # of the verification
    bfloat16_error: float | None = None  # of rounding the weights to bfloat16
    half_error: float | None = None  # between the float32 program and a half-precision fn

    def executor(self, group: int, pair: bool = False):
        """The one for passes of `group` images, of three; with `pair`, by two threads each."""
        chunk = 0 if group <= 2 else _ROWS // 4 if group <= 8 else _ROWS // GROUP
        key = "pair" if pair else chunk
        if key not in self.executors:
            with LOCK:
                if key not in self.executors:
                    program = emit(self.plan, chunk, pair)
                    self.executors[key] = self.target.executor(program)
        return self.executors[key]

    def condition_values(self, condition, n: int) -> list[Tensor]:
        """One tensor (n, numel) per source of the tape, which runs once for each distinct
        condition."""
        if condition is None:
            return []
        condition = each_tensor(condition, Tensor.cpu)
        number, rows, values = {}, [], []
        for i in range(n):
            one = sliced(condition, slice(i, i + 1))
            key = tuple(_bytes(t) for t in tensors_of(one))
            if key not in number:
                number[key] = len(values)
                values.append([v.to(self.target.float_dtype) for v in self.tape.run(one)])
            rows.append(number[key])
        return [torch.stack(source)[rows] for source in zip(*values, strict=True)]

    def parameters_at(self, executor, codes: Tensor, conditions, **options) -> Tensor:
        """What executor's run gives for codes (n, C, *space): (n, K, C or 1, *space)."""
        n, index = len(codes), torch.from_numpy(executor.program.draws.index).long()
        params = torch.empty(n, len(index), self.parameters, dtype=self.target.float_dtype)
        flat = codes.reshape(n, -1).cpu().contiguous()
        executor.run(flat, conditions=conditions, params=params, **options)
        place = index[:, 0].argsort()  # the first code of a draw says where its parameters stand
        return params[:, place].mT.reshape(n, self.parameters, self.colors, *codes.shape[2:])


def compile_request(request: Request) -> Compiled:
    began = time.perf_counter()
    exact = _exact(request)
    codes, condition = _probe(exact)
    expected = exact.forward(codes, condition)
    traced = exact.trace()
    for path, module in traced.modules.items():
        # a pad, a reshape or a slice of a Sequential made on the fly means nothing by its mode
        if not any(True for _ in (*module.parameters(False), *module.buffers(False))):
            continue
        check_eval(module, f"the module {path or 'fn'}")
    if violations(traced):
        raise not_causal_error(traced, request.shape, request.order)
    modules, called = traced.modules, list(traced.modules.values())
    watched, like = dict.fromkeys(called), None
    if isinstance(exact.fn, nn.Module):
        watched |= dict.fromkeys(exact.fn.modules())
    if exact is not request:  # the copy goes, its original stays
        original = dict(zip(exact.fn.modules(), request.fn.modules(), strict=True))
        watched = {module: None for module in watched if module in original}
        like = [original[module] for module in watched]
        modules = {path: original.get(module, module) for path, module in modules.items()}
    compiled = Compiled(
        request.target,
        *expected.shape[1:3],
        optimize(traced),
        traced.tape,
        {path: weakref.ref(module) for path, module in modules.items()},
        Watch(watched, called, traced.leaves, like),
        traced.ops,
    )
    half = expected.dtype in _HALF or any(leaf.dtype in _HALF for leaf in traced.leaves)
    _check_batches(
        exact, codes, condition, expected, _tolerance(request.target.dtype, expected.dtype, half)
    )
    _verify(compiled, codes, condition, expected, half)
    if exact is not request:
        compiled.half_error = _half_error(request, codes, condition, expected)
    compiled.seconds = time.perf_counter() - began
    return compiled


def _bytes(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _half_error(request, codes, condition, expected):
    """Of a half-precision fn beside its float32 copy."""
    if not any(t.dtype in _HALF for t in request.fn.parameters()):
        return None
    if condition is not None:
        condition = each_tensor(condition, lambda t: t.to(request.device))
    return _difference(expected, request.forward(codes, condition))


def _exact(request):
    """The request for a float32 copy on the CPU of a module in half precision or elsewhere; for
    others the request itself."""
    fn = request.fn
    if not isinstance(fn, nn.Module):
        return request
    half, away = any(t.dtype in _HALF for t in fn.parameters()), request.device.type != "cpu"
    if not half and not away:
        return request
    condition = request.condition
    if condition is not None:
        condition = each_tensor(condition, Tensor.cpu)
    try:
        twin = copy.deepcopy(fn).cpu()
        twin = replace(request, fn=twin.float() if half else twin, condition=condition)
        twin.forward(*_probe(twin))
    except RuntimeError:
        if away:
            raise
        return request  # it cannot be copied, or casts to half precision itself
    return twin


def _probe(request):
    """(codes, condition) of three images: all levels, the lower half of them, one level."""
    generator = torch.Generator().manual_seed(987654321)
    shape, levels = request.shape, request.likelihood.levels
    codes = [
        torch.randint(high, shape, generator=generator) for high in (levels, max(levels // 2, 1))
    ]
    codes.append(torch.full(shape, levels - 1))
    condition = request.condition
    if condition is None:
        return torch.stack(codes), None

    def rows(example):
        """The example, then others that must be as valid."""
        others = [example, example]
        if example.is_floating_point():
            noise = torch.randn((2, *example.shape[1:]), generator=generator)
            others = (example + 0.5 * noise.to(example)).split(1)
        elif example.dtype != torch.bool:
            others = [torch.zeros_like(example), example]
        return torch.cat([example, *others])

    return torch.stack(codes), each_tensor(condition, rows)


def _check_batches(request, codes, condition, expected, tolerance):
    """Each image by itself must have its values in the batch: not if fn decides by the largest
    code of all, say, which the tracer takes for a check of their range."""
    try:
        alone = [
            request.forward(
                codes[i : i + 1],
                None if condition is None else sliced(condition, slice(i, i + 1)),
            )
            for i in range(len(codes))
        ]
    except Exception:
        return  # a squeeze that does not expect a batch of one
    error = _difference(torch.cat(alone), expected)
    if not error <= tolerance:
        raise UnsupportedModelError(
            "fastgen.compile_sampler: fn must give an image the same values in any batch, got "
            f"values that differ by {error:.2g} of the largest; fn may mix the images of a batch, "
            "decide by the values of all its codes, or keep a state: compute each image by itself, "
            "with tensors"
        )


def _verify(compiled, codes, condition, expected, half):
    """Silent errors of a tracer or a lowering show only on codes other than the traced ones."""
    target = compiled.target
    conditions = compiled.condition_values(condition, len(codes))
    executor = compiled.executor(GROUP)
    if target.dtype == torch.bfloat16:
        full = replace(target, dtype=torch.float32).executor(executor.program)
        rounded = compiled.parameters_at(executor, codes, conditions)
        executor = full
    values = compiled.parameters_at(executor, codes, conditions)
    if target.dtype == torch.bfloat16:
        compiled.bfloat16_error = _difference(rounded, values)
    compiled.error = _difference(values, expected)
    if half:
        compiled.half_error = compiled.error
    if not compiled.error <= _tolerance(target.dtype, expected.dtype, half):
        raise UnsupportedModelError(
            "fastgen.compile_sampler: the compiled program must equal fn on codes it was not "
            f"traced with, got values that differ by {compiled.error:.2g} of the largest; fn may "
            "decide by the values of its codes, mix the images of a batch, or keep a state; "
            "fastgen.sampling.naive_sample draws from any model, and this one as an example makes "
            "a good bug report"
        )


def _tolerance(dtype, fn_dtype, half):
    """Of the difference between the program's values and fn's own: both have errors."""
    if half:
        return 0.05
    return 1e-9 if dtype == fn_dtype == torch.float64 else 2e-4


def _difference(values, expected):
    """Largest difference, relative to max(1, largest value); equal infinities and NaN agree."""
    values, expected = values.cpu().double(), expected.cpu().double()
    apart = (values - expected).abs()
    apart[(values == expected) | (values.isnan() & expected.isnan())] = 0
    finite = expected[expected.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    error = apart.max().item() / max(1.0, largest) if apart.numel() else 0.0
    return math.inf if math.isnan(error) else error


def executors() -> list[tuple[str, str]]:
    """(name, why it cannot run or ""), the first that can is the one that "auto" takes."""
    return [
        ("cuda", "not written yet: models on a GPU are sampled on the CPU"),
        ("cpu", _NO_CPU or ""),
        ("reference", ""),
    ]


def chosen_backend(backend: str, dtype: torch.dtype, device: torch.device) -> str:
    """ "cpu" or "reference"; what stands in for another is said once, aloud.

    Raises:
        ValueError: an unknown backend, or a dtype it does not have.
        RuntimeError: a backend that cannot run here.
    """
    if backend == "auto" and (name := forced()) is not None:
        backend = name
    elif backend == "auto":
        backend = "cpu" if _NO_CPU is None else "reference"
        if _NO_CPU is not None:
            _say_once(f"fastgen.compile_sampler: running the plain PyTorch reference: {_NO_CPU}")
        elif device.type != "cpu":
            _say_once(
                f"fastgen.compile_sampler: there is no executor for {device.type} devices yet; the "
                "C++ executor draws on the CPU (backend='reference' would run plain PyTorch there)"
            )
    if backend in ("cuda", "triton"):
        raise RuntimeError(
            f"fastgen.compile_sampler: there is no {backend} executor yet; use backend='auto'"
        )
    if backend not in ("cpu", "reference"):
        refuse("backend", "must be 'auto', 'cpu' or 'reference'", repr(backend), "use 'auto'")
    if backend == "cpu" and _NO_CPU is not None:
        raise RuntimeError(f"fastgen.compile_sampler: backend 'cpu' cannot run: {_NO_CPU}")
    if backend == "reference" and dtype == torch.bfloat16:
        refuse("dtype", "must be float32 or float64 for the reference", dtype, "use backend='cpu'")
    return backend


@cache
def _say_once(text):
    warnings.warn(text, stacklevel=5)
