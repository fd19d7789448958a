"""Models trained from scratch by `fastgen.train`, for benchmarks of what they learn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn

from fastgen.train import train


def trained(
    build: Callable[[], nn.Module], data, *, seed: int, **settings
) -> tuple[nn.Module, float]:
    """A model that `fastgen train --seed SEED` gives too, and the CPU seconds its training took."""
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        model = build()
        began = time.process_time()
        train(
            model, data, out=folder, seed=seed, device="cpu", evaluations=1, grids=0,
            progress=False, **settings,
        )  # fmt: skip
        return model.eval(), time.process_time() - began
