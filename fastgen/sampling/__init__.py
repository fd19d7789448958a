"""Drawing from autoregressive models."""

from fastgen.sampling.naive import naive_sample

__all__ = ["naive_sample"]
