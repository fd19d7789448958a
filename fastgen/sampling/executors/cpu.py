"""The C++ engine behind the executors' interface."""

import math

import torch
from torch import Tensor

from fastgen import _load, likelihoods
from fastgen.sampling.executors.stepping import StepDraws, run_steps

_STORAGE = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


class CpuExecutor:
    """Runs a program on the CPU.

    dtype: of weights and arithmetic; torch.bfloat16 stores weights so and computes in float32.
    isa: an instruction-set level other than the one in force, for tests.
    """

    def __init__(self, program, dtype=torch.float32, isa: str = ""):
        if _load.EXTENSION is None:
            raise RuntimeError(f"fastgen: {_load.MISSING}; or sample with backend='reference'")
        if dtype not in _STORAGE:
            raise ValueError(
                f"fastgen: dtype must be torch.float32, float64 or bfloat16, got {dtype}"
            )
        self.program = program
        self.dtype = torch.float32 if dtype == torch.bfloat16 else dtype  # of parameters
        self._engine = _load.EXTENSION.SamplerEngine(program, _STORAGE[dtype], isa)
        sources = [0] * (1 + max((c[0] for c in program.conditions), default=-1))
        for source, _, _, elements in program.conditions:
            if elements.size:
                sources[source] = max(sources[source], int(elements.max()) + 1)
        self._elements = sources  # that are read of each condition

    @property
    def floats_per_image(self) -> int:
        return self.program.floats

    @property
    def weight_bytes(self) -> int:
        return self._engine.weight_bytes

    @property
    def table_bytes(self) -> int:
        return self._engine.table_bytes

    @torch.no_grad()
    def run(
        self,
        codes: Tensor,
        *,
        conditions=(),
        draw=None,
        known: Tensor | None = None,
        params: Tensor | None = None,
        group: int = 16,
        threads: int = 1,
        tick=None,
    ):
        """As ReferenceExecutor.run. Images are worked on in groups of at most `group`, groups by
        `threads` threads that live as long as the call; neither shows in the result. Releases the
        GIL; answers KeyboardInterrupt within 100 ms."""
        program, n = self.program, len(codes)
        _check(codes, "codes", torch.int64, (n, program.codes))
        if known is not None:
            _check(known, "known", torch.bool, (n, program.codes))
        drawing = None
        if draw is not None:
            _check(
                draw.uniforms,
                "uniforms",
                torch.float64,
                (n, draw.likelihood.uniforms, program.codes),
            )
            drawing = _drawing(draw, program)
            if drawing is None:
                return run_steps(
                    self,
                    codes,
                    conditions=conditions,
                    draw=draw,
                    known=known,
                    params=params,
                    group=group,
                    tick=tick,
                )
        own_params = params
        if params is not None:
            shape = (n, len(program.draws.param), program.parameters)
            if tuple(params.shape) != shape:
                raise ValueError(f"fastgen: params must be {shape}, got {tuple(params.shape)}")
            if params.dtype != self.dtype or not params.is_contiguous():
                own_params = torch.empty(shape, dtype=self.dtype)
        conditions = self._conditions(conditions, n)
        found = self._engine.run(
            n,
            codes.data_ptr(),
            [(c.data_ptr(), c.shape[1]) for c in conditions],
            drawing,
            0 if known is None else known.data_ptr(),
            0 if params is None else own_params.data_ptr(),
            max(int(group), 1),
            max(int(threads), 1),
            tick,
        )
        if own_params is not params:
            params.copy_(own_params)
        return found

    def stepper(self, n: int, conditions=()):
        """As ReferenceExecutor.stepper."""
        return _Stepper(self, n, self._conditions(conditions, n))

    def _conditions(self, conditions, n):
        """Dense, in the arithmetic's dtype. Copies stay alive as long as the list does."""
        dense = [c.to("cpu", self.dtype).contiguous() for c in conditions]
        for source, elements in enumerate(self._elements):
            if source >= len(dense) or dense[source].dim() != 2 or len(dense[source]) != n:
                raise ValueError(f"fastgen: condition {source} must be (n={n}, elements)")
            if dense[source].shape[1] < elements:
                raise ValueError(f"fastgen: condition {source} has fewer than {elements} elements")
        return dense


class _Stepper:
    def __init__(self, executor, n, conditions):
        self._executor, self._n = executor, n
        self._steps = executor._engine.stepper(n, [(c.data_ptr(), c.shape[1]) for c in conditions])

    def advance(self, step) -> Tensor:
        program = self._executor.program
        start = program.draws.step_start
        shape = (self._n, int(start[step + 1] - start[step]), program.parameters)
        params = torch.empty(shape, dtype=self._executor.dtype)
        self._steps.advance(step, params.data_ptr())
        return params

    def put(self, step, codes):
        codes = codes.long().contiguous()
        shape = (self._n, *StepDraws(self._executor.program, step).index.shape)
        _check(codes, "codes", torch.int64, shape)
        self._steps.put(step, codes.data_ptr())


def _drawing(draw, program):
    """The likelihood as the engine takes it; None if it has none like it. Subclasses may mean
    something else."""
    likelihood = draw.likelihood
    codes = program.draws.index.shape[1]
    levels, components, top_k, top_p = 2, 0, draw.top_k, draw.top_p
    if type(likelihood) is likelihoods.Categorical and codes == 1:
        kind, levels, expected = "categorical", likelihood.levels, likelihood.levels
    elif top_k is not None or top_p is not None:
        return None
    elif type(likelihood) is likelihoods.Bernoulli and codes == 1:
        kind, expected = "bernoulli", 1
    elif type(likelihood) is likelihoods.DiscretizedLogisticMixture and codes in (1, 3):
        kind, levels, components = "mixture", likelihood.levels, likelihood.components
        expected = likelihood.parameters(codes)
    else:
        return None
    if expected != program.parameters:
        raise ValueError(
            f"fastgen: {likelihood} draws from {expected} parameters, the program has "
            f"{program.parameters}"
        )
    if not (draw.temperature > 0 and math.isfinite(draw.temperature)):
        raise ValueError(f"fastgen: temperature must be positive, got {draw.temperature}")
    return (
        kind,
        levels,
        components,
        float(draw.temperature),
        top_k or 0,
        top_p or 0.0,
        draw.uniforms.data_ptr(),
        likelihood.uniforms,
    )


def _check(tensor, name, dtype, shape):
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device.type != "cpu":
        raise ValueError(
            f"fastgen: {name} must be {dtype} {shape} on the CPU, got {tensor.dtype} "
            f"{tuple(tensor.shape)} on {tensor.device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"fastgen: {name} must be contiguous; call .contiguous()")
