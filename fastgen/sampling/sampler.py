"""compile_sampler: any causal model samples a whole batch for about one forward of it."""

import math
import weakref
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.progress import Progress
from fastgen.reference.philox import sampling_uniforms
from fastgen.sampling.arguments import (
    check_condition,
    check_draws,
    check_eval,
    check_model,
    check_same_condition,
    check_uniforms,
    completion,
    device_of,
    module_of,
    ranks_of,
    refuse,
    seed_of,
    sliced,
    structure,
    unwrapped,
)
from fastgen.sampling.compiling import GROUP, LOCK, Compiled, Request, compile_request
from fastgen.sampling.executors import Draw
from fastgen.sampling.explain import explanation
from fastgen.sampling.nan import first_nan_module
from fastgen.sampling.targets import Target, chosen_backend

# Uniform numbers, and bytes of conditions or of parameters, at a time: bounds memory for any n.
_UNIFORMS = 1 << 19
_BYTES = 1 << 28
_KEPT = 8  # programs of one callable

# callable -> OrderedDict of key -> _Shared; neither keeps the callable alive
_programs = weakref.WeakKeyDictionary()


def compile_sampler(
    fn: Callable,
    shape: tuple[int, ...],
    likelihood,
    *,
    order="raster",
    condition=None,
    params: Callable | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> "Sampler":
    """Finds out which activation of a causal model can be computed when, and compiles a sampler
    that computes each once.

    Args:
        fn: ``fn(codes)`` or ``fn(codes, condition)`` to the parameters (B, K, C, H, W) of
            `likelihood` (a coupled one: (B, K, 1, H, W)), for int64 codes (B, C, H, W) in
            0 .. levels - 1. Any callable; a module in eval mode. One wrapped by torch.compile or
            DistributedDataParallel is unwrapped.
        shape: (C, H, W), or (C, L) for sequences; then the last axis is dropped everywhere.
        likelihood: see `fastgen.likelihoods`.
        order: "raster", a step per pixel, whose colours may not see each other; "subpixel", a step
            per colour of a pixel; or integer ranks (H, W) or (C, H, W), lowest first. Equal ranks
            are drawn in one step and may not see each other.
        condition: an example of batch 1 for a conditional model: a tensor, tuple or dict of
            tensors, passed on as it is.
        params: turns what fn returns into the parameters.
        dtype: float32, float64, or bfloat16: weights alone are bfloat16, all else is float32. A
            half-precision model is computed in float32.
        device: of the samples; default that of fn's parameters.
        backend: "cpu" (C++), "reference" (plain PyTorch) or "auto".

    Returns:
        A `Sampler`. Programs are kept per callable: compiling the same once more costs nothing.

    Raises:
        UnsupportedModelError: a ValueError; the message names the op, the module and what to do.
        NotCausalError: a ValueError; an output depends on a code drawn with it or after it.
        TypeError, ValueError: an argument is not as above. RuntimeError: backend cannot run here.
    """
    fn = unwrapped(fn)
    check_model(fn, shape, likelihood)
    shape = tuple(shape)
    ranks = ranks_of(order, shape, likelihood.coupled)
    if params is not None and not callable(params):
        refuse("params", "must be callable", type(params).__name__, "pass a function", TypeError)
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        refuse("dtype", "must be float32, float64 or bfloat16", dtype, "float32 is exact")
    check_condition(condition, 1)
    home = device_of(fn, condition, None)
    target = Target(dtype, chosen_backend(backend, dtype, home), home)
    request = Request(fn, shape, likelihood, order, ranks, condition, params, target)
    sampler = Sampler(request, None if device is None else torch.device(device), _shared(request))
    sampler._current()
    return sampler


class Sampler:
    """Draws from a compiled model; made by `compile_sampler`.

    At each call the model's weights are compared with those it was compiled from; where they
    differ, it is compiled anew. Safe from several threads at once, and after a fork.
    """

    def __init__(self, request: Request, device: torch.device | None, shared: "_Shared"):
        self._request, self._device, self._shared = request, device, shared
        self.shape, self.likelihood, self.order = request.shape, request.likelihood, request.order
        self.dtype, self.backend = request.target.dtype, request.target.backend

    @property
    def device(self) -> torch.device:
        """Of the samples."""
        return self._device or self._request.device

    @property
    def program(self):
        """The lowered program, of batches."""
        return self._current().executor(GROUP).program

    def sample(
        self,
        n: int,
        *,
        condition=None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        batch: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draws n samples.

        Args:
            n: how many; memory is bounded for any n.
            condition: like the example it was compiled with, leading dimension n.
            seed, generator, uniforms: at most one. Seed: 64 bit; sample i of this call is sample
                `first_index` + i of its stream, whatever the batch, the threads or the rank.
                Generator: gives the seed; so does the default generator if there is none of the
                three. Uniforms: float (n, D, C, H, W) in [0, 1), the draws themselves; D is
                `likelihood.uniforms`.
            temperature: > 0; 1 is the model's own distribution.
            top_k, top_p: for `Categorical`: draw from the likeliest levels only.
            known, known_mask: completion. int64 codes and bool, (C, H, W) or (n, C, H, W): where
                the mask is True the code is kept, and later ones see it.
            batch: images at a time, which bounds memory; no sample depends on it.
            progress: whether to show a bar.

        Returns:
            int64 (n, C, H, W) on `device`.

        Raises:
            TypeError, ValueError: an argument is not as above, or the model was changed into one
                that cannot be compiled. RuntimeError: the model's parameters are NaN where a code
                is drawn.
        """
        shape, likelihood = self.shape, self.likelihood
        check_draws(likelihood, n, first_index, temperature, top_k, top_p, batch)
        seed = seed_of(seed, generator, uniforms)
        check_uniforms(uniforms, (n, likelihood.uniforms, *shape))
        self._check_condition(condition, n)
        known, mask = completion(known, known_mask, n, shape, likelihood.levels, "cpu")
        codes = torch.zeros(n, math.prod(shape), dtype=torch.int64)
        compiled = self._current()
        with Progress("sample", enabled=progress) as bar:

            def report(done):
                rows = int(done * n * shape[1])
                figures = {"rows": f"{rows}/{n * shape[1]}"} if len(shape) == 3 else {}
                bar.update(done, images=int(done * n), **figures)

            limit = _UNIFORMS // (math.prod(shape) * likelihood.uniforms)
            for part, conditions in self._batches(compiled, condition, n, limit, batch):
                m = part.stop - part.start
                if uniforms is None:
                    noise = sampling_uniforms(
                        seed, first_index + part.start, m, likelihood.uniforms, shape
                    )
                else:
                    noise = uniforms[part].cpu()
                noise = noise.double().flatten(2).contiguous()
                drawn = torch.where(mask[part], known[part], 0).flatten(1).contiguous()
                executor, how = self._passes(compiled, m)
                wrong = executor.run(
                    drawn,
                    **how,
                    conditions=conditions,
                    draw=Draw(likelihood, noise, temperature, top_k, top_p),
                    known=None if known_mask is None else mask[part].flatten(1).contiguous(),
                    tick=lambda done, part=part, m=m: report((part.start + done * m) / n),
                )
                if wrong is not None:
                    self._refuse_nan(compiled, drawn, condition, part.start, *wrong)
                codes[part] = drawn
                report(part.stop / n)
        return codes.view(n, *shape).to(self.device)

    def parameters_at(self, codes: Tensor, condition=None) -> Tensor:
        """The parameters that codes lead to, computed as they are when sampling: step by step.

        Args:
            codes: int64 (n, C, H, W).
            condition: like the example it was compiled with, leading dimension n.

        Returns:
            float32 (float64 for a float64 sampler) (n, K, C or 1, H, W) on `device`: equal to
            ``fn(codes, condition)`` up to rounding.
        """
        compiled = self._checked(codes, condition)
        shape = (len(codes), compiled.parameters, compiled.colors, *self.shape[1:])
        out = torch.empty(shape, dtype=compiled.target.float_dtype, device=self.device)
        for part, values in self._parameters(compiled, codes, condition):
            out[part] = values
        return out

    def log_prob(self, codes: Tensor, condition=None) -> Tensor:
        """log p(codes | condition) in nats, (n,) on `device`; arguments as of `parameters_at`."""
        compiled = self._checked(codes, condition)
        out = torch.empty(len(codes), dtype=compiled.target.float_dtype, device=self.device)
        for part, values in self._parameters(compiled, codes, condition):
            nats = self.likelihood.log_prob(values, codes[part].to(values.device))
            out[part] = nats.flatten(1).sum(1).to(out)
        return out

    def explain(self) -> str:
        """Work beside the naive sampler's, instructions, memory, and what runs where and why."""
        compiled, threads = self._current(), torch.get_num_threads()
        return explanation(self._request, compiled, compiled.executor(GROUP), threads)

    def _current(self) -> Compiled:
        """The program of the weights as they are now."""
        check_eval(self._request.fn)
        compiled = self._shared.compiled
        if compiled is None or compiled.watch.changed():
            with LOCK:
                compiled = self._shared.compiled
                if compiled is None or compiled.watch.changed():
                    compiled = self._shared.compiled = compile_request(self._request)
        return compiled

    def _batches(self, compiled, condition, n, limit, batch=None):
        """(slice, values of the tape) of `batch` images at a time, or by default of at most `limit`
        and so many that the values take little memory."""
        if batch is None and condition is not None and n:
            values = compiled.condition_values(sliced(condition, slice(0, 1)), 1)
            limit = min(limit, _BYTES // max(1, sum(v.nbytes for v in values)))
        size = batch or max(1, limit)
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            one = None if condition is None else sliced(condition, part)
            yield part, compiled.condition_values(one, part.stop - start)

    def _passes(self, compiled, n):
        """(executor for n images, the options that say how to run it)"""
        threads = torch.get_num_threads()
        group = max(1, min(GROUP, -(-n // threads)))
        pair = 2 * n <= threads  # fewer images than would keep the threads busy
        return compiled.executor(group, pair), {"group": group, "threads": threads}

    def _parameters(self, compiled, codes, condition):
        """(slice, parameters) of some of the codes at a time."""
        limit = _BYTES // (8 * compiled.parameters * math.prod(self.shape))
        for part, conditions in self._batches(compiled, condition, len(codes), limit):
            executor, how = self._passes(compiled, part.stop - part.start)
            how["tick"] = lambda done: None  # lets Ctrl-C through
            yield part, compiled.parameters_at(executor, codes[part], conditions, **how)

    def _refuse_nan(self, compiled, codes, condition, first, sample, draw):
        """Tells of the NaN met at a draw of a sample; codes (n, C * positions) are drawn up to
        there."""
        place = int(compiled.executor(GROUP).program.draws.index[draw, 0])
        ranks = self._request.ranks.flatten()
        before = torch.where(ranks < ranks[place], codes[sample], 0).view(1, *self.shape)
        at = first + sample
        one = None if condition is None else sliced(condition, slice(at, at + 1))
        modules = {path: reference() for path, reference in compiled.modules.items()}
        path = first_nan_module(
            lambda: self._request.forward(before, one),
            {path: module for path, module in modules.items() if module is not None},
        )
        color, *position = (int(i) for i in torch.unravel_index(torch.tensor(place), self.shape))
        where = "no module returns NaN for it: look outside of the modules"
        if path is not None:
            where = f"the first module whose output is NaN is {path or 'fn itself'!r}"
        raise RuntimeError(
            "fastgen.Sampler.sample: the model must not give NaN where a code is drawn, got NaN "
            f"for sample {at}, colour {color}, position {tuple(position)}; {where}"
        )

    def _checked(self, codes, condition):
        self._check_codes(codes)
        self._check_condition(condition, len(codes))
        return self._current()

    def _check_condition(self, condition, n):
        check_condition(condition, n)
        check_same_condition(condition, self._request.condition)

    def _check_codes(self, codes):
        if not isinstance(codes, Tensor) or codes.dtype != torch.int64:
            got = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
            refuse("codes", "must be an int64 tensor", got, "convert with .long()", TypeError)
        if tuple(codes.shape[1:]) != self.shape or codes.dim() != len(self.shape) + 1:
            expected = f"must be (n, {', '.join(map(str, self.shape))})"
            refuse("codes", expected, tuple(codes.shape), "or compile for that shape")
        levels = self.likelihood.levels
        if codes.numel() and (codes.min() < 0 or codes.max() >= levels):
            value = int(codes[(codes < 0) | (codes >= levels)][0])
            refuse("codes", f"must lie in 0 .. {levels - 1}", value, "check the data")


class _Shared:
    """The program that all samplers of one request use, so that one compilation serves them."""

    def __init__(self, request):
        self.compiled = None
        # held weakly: it may well refer to the model
        self._params = None if request.params is None else _weak(request.params)

    def serves(self, request):
        params = None if self._params is None else self._params()
        return params is request.params


def _shared(request):
    """The one kept for the request, or a new one."""
    module = module_of(request.fn)
    owner = request.fn if module is None else module
    key = (
        getattr(request.fn, "__func__", None),
        request.shape,
        id(request.likelihood) if request.likelihood.__hash__ is None else request.likelihood,
        tuple(request.ranks.flatten().tolist()),
        repr(structure(request.condition)),
        id(request.params),
        request.target,
    )
    with LOCK:
        try:
            kept = _programs.setdefault(owner, OrderedDict())
        except TypeError:  # neither hashable nor weakly referable
            return _Shared(request)
        shared = kept.get(key)
        if shared is None or not shared.serves(request):
            shared = kept[key] = _Shared(request)
        kept.move_to_end(key)
        while len(kept) > _KEPT:
            kept.popitem(last=False)
        return shared


def _weak(function):
    try:
        return (
            weakref.WeakMethod(function) if hasattr(function, "__self__") else weakref.ref(function)
        )
    except TypeError:
        return lambda: function
