"""Drawing from autoregressive models."""

from fastgen.sampling.causality import CausalityReport, check_causal
from fastgen.sampling.errors import NotCausalError, UnsupportedModelError
from fastgen.sampling.naive import naive_sample
from fastgen.sampling.sampler import Sampler, compile_sampler

__all__ = [
    "CausalityReport",
    "NotCausalError",
    "Sampler",
    "UnsupportedModelError",
    "check_causal",
    "compile_sampler",
    "naive_sample",
]
