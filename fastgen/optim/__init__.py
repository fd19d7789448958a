"""Optimisers whose update and weight clip are one pass over memory."""

from fastgen.optim.adam import ClippedAdam
from fastgen.optim.rmsprop import ClippedRMSprop

__all__ = ["ClippedAdam", "ClippedRMSprop"]
