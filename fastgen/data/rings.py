"""A ring of eight Gaussians: points of the plane as images of two values."""

import math

import numpy as np
import torch
from torch import Tensor

from fastgen.data.pixels import Pixels

MODES, RADIUS, SIGMA = 8, 0.75, 0.02
COUNTS = (10_000, 2_000)  # training and test points, as many of each mode
LEVELS = 256  # of [-1, 1]: sigma is 2.6 of them


def rings(seed: int) -> tuple[Pixels, Pixels]:
    """Training and test points, (N, 1, 2, 1) as x and y; level k is 2 k / (levels - 1) - 1. The
    label is the Gaussian that a point was drawn of, counted counterclockwise from (RADIUS, 0)."""
    rng = np.random.RandomState(seed)  # its stream is frozen: the same points under any NumPy
    return tuple(_points(count, rng) for count in COUNTS)


def centres() -> Tensor:
    """The means of the Gaussians, float64 (MODES, 2)."""
    angles = 2 * math.pi / MODES * torch.arange(MODES, dtype=torch.float64)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], 1)


def places(codes: Tensor) -> Tensor:
    """Points as codes (N, 1, 1, 2) -> as x and y in [-1, 1], float64 (N, 2)."""
    return codes.flatten(1).double() * (2 / (LEVELS - 1)) - 1


def _points(count: int, rng) -> Pixels:
    labels = rng.permutation(np.arange(count) % MODES)
    drawn = centres().numpy()[labels] + SIGMA * rng.standard_normal((count, 2))
    levels = np.rint((drawn + 1) * ((LEVELS - 1) / 2)).clip(0, LEVELS - 1)
    # are_codes: a point can be neither resized nor stretched
    return Pixels(levels.astype(np.uint8)[:, None, :, None], labels, LEVELS, are_codes=True)
