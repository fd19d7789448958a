"""Which executor runs a program, and in what precision."""

import warnings
from dataclasses import dataclass
from functools import cache

import torch

from fastgen._backends import forced
from fastgen._load import EXTENSION, MISSING
from fastgen.sampling.arguments import refuse
from fastgen.sampling.executors import CpuExecutor, ReferenceExecutor

# why the C++ executor cannot run, or None
_NO_CPU = MISSING
if EXTENSION is not None and not hasattr(EXTENSION, "SamplerEngine"):
    _NO_CPU = "the compiled kernels are older than the sampler; run `pip install .` again"


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
