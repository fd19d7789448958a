"""From a callable to a program that has proved equal to it on codes it was not traced with."""

import contextlib
import copy
import os
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fastgen.sampling.arguments import (
    check_eval,
    checked_params,
    device_of,
    each_tensor,
    sliced,
    tensors_of,
)
from fastgen.sampling.causality import not_causal_error, violations
from fastgen.sampling.fingerprint import Watch, settings
from fastgen.sampling.lower import emit, optimize
from fastgen.sampling.targets import Target
from fastgen.sampling.trace import trace
from fastgen.sampling.verify import HALF, check_batches, difference, probe, tolerance, verify

GROUP = 16  # images that share a pass over the weights
# Rows of one call of a chained linear: enough to read its weights once, few enough to stay in L1.
_ROWS = 64
_BATCHED = _ROWS // GROUP


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
    probe: tuple = ()  # codes and values of the tape, to compare executors on
    executors: dict = field(default_factory=dict)  # by chunk, or "pair"
    seconds: float = 0.0
    # relative to max(1, largest value):
    error: float = 0.0  # of the verification
    bfloat16_error: float | None = None  # of rounding the weights to bfloat16
    half_error: float | None = None  # between the float32 program and a half-precision fn

    def executor(self, group: int, pair: bool = False):
        """The one for passes of `group` images, of three; with `pair`, by two threads each."""
        chunk = 0 if group <= 2 else _ROWS // 4 if group <= 8 else _BATCHED
        key = "pair" if pair else chunk
        if key not in self.executors:
            with LOCK:
                if key not in self.executors:
                    made = self.target.executor(emit(self.plan, chunk, pair))
                    self._compare(made, pair)
                    self.executors[key] = made
        return self.executors[key]

    def _compare(self, executor, pair):
        """With the one that was verified; both run the same arithmetic."""
        verified = self.executors.get(_BATCHED)
        if verified is None:
            return
        codes, conditions = self.probe
        values = self.parameters_at(executor, codes, conditions, group=1, threads=1 + pair)
        error = difference(values, self.parameters_at(verified, codes, conditions))
        if not error <= 1e-5:
            raise RuntimeError(
                "fastgen.compile_sampler: two programs of the same model must give the same "
                f"values, got a difference of {error:.2g}; this is a bug of fastgen, please report"
            )

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
    before = settings(request.fn.modules()) if isinstance(request.fn, nn.Module) else {}
    exact = _exact(request)
    codes, condition, expected = probe(exact)
    traced = exact.trace()
    for path, module in traced.modules.items():
        # a pad, a reshape or a slice of a Sequential made on the fly means nothing by its mode
        if any(True for _ in (*module.parameters(False), *module.buffers(False))):
            check_eval(module, f"the module {path or 'fn'}")
    if violations(traced):
        raise not_causal_error(traced, request.shape, request.order)
    half = expected.dtype in HALF or any(leaf.dtype in HALF for leaf in traced.leaves)
    allowed = tolerance(request.target.dtype, expected.dtype, half)
    check_batches(exact, codes, condition, expected, allowed)
    modules, watch = _watched(request, exact, traced, before)
    compiled = Compiled(
        request.target,
        *expected.shape[1:3],
        optimize(traced),
        traced.tape,
        {path: weakref.ref(module) for path, module in modules.items()},
        watch,
        traced.ops,
    )
    conditions = compiled.condition_values(condition, len(codes))
    verify(compiled, codes, conditions, expected, allowed, compiled.executor(GROUP))
    compiled.probe = codes[:2], [source[:2] for source in conditions]
    if exact is not request:
        compiled.half_error = _half_error(request, codes, condition, expected)
    elif half:
        compiled.half_error = compiled.error
    compiled.seconds = time.perf_counter() - began
    return compiled


def _watched(request, exact, traced, before):
    """(path -> module, Watch): of request's own modules, also where a copy was traced."""
    modules, called = traced.modules, list(traced.modules.values())
    watched, like = dict.fromkeys(called), None
    if isinstance(exact.fn, nn.Module):
        watched |= dict.fromkeys(exact.fn.modules())
    if exact is not request:
        original = dict(zip(exact.fn.modules(), request.fn.modules(), strict=True))
        watched = {module: None for module in watched if module in original}
        like = [original[module] for module in watched]
        modules = {path: original.get(module, module) for path, module in modules.items()}
    return modules, Watch(watched, called, traced.leaves, like, before)


def _bytes(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _half_error(request, codes, condition, expected):
    """Of a half-precision fn beside its float32 copy."""
    if not any(t.dtype in HALF for t in request.fn.parameters()):
        return None
    if condition is not None:
        condition = each_tensor(condition, lambda t: t.to(request.device))
    return difference(expected, request.forward(codes, condition))


def _exact(request):
    """The request for a float32 copy on the CPU of a module in half precision or elsewhere; for
    others the request itself."""
    fn = request.fn
    if not isinstance(fn, nn.Module):
        return request
    half, away = any(t.dtype in HALF for t in fn.parameters()), request.device.type != "cpu"
    if not half and not away:
        return request
    condition = request.condition
    if condition is not None:
        condition = each_tensor(condition, Tensor.cpu)
    try:
        twin = copy.deepcopy(fn).cpu()
        twin = replace(request, fn=twin.float() if half else twin, condition=condition)
        probe(twin)
    except RuntimeError:
        if away:
            raise
        return request  # it cannot be copied, or casts to half precision itself
    return twin
