"""What a model of the zoo comes with, and how its parameters are made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """build() makes a small instance; condition(n, generator) makes conditions for n images."""

    name: str
    build: Callable[[], Any]
    shape: tuple
    likelihood: Any
    order: Any = "raster"
    condition: Callable | None = None
    params: Callable | None = None

    def model(self, seed=0):
        """An instance in eval mode whose parameters and statistics hide no dependency."""
        torch.manual_seed(seed)
        fn = self.build()
        if isinstance(fn, nn.Module):
            randomise(fn, seed)
        return fn

    def conditions(self, n, seed=0):
        if self.condition is None:
            return None
        return self.condition(n, torch.Generator().manual_seed(seed))

    def codes(self, n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.likelihood.levels, (n, *self.shape), generator=generator)

    def call(self, fn, codes, condition=None):
        """The parameters, (B, K, C or 1, ...)."""
        out = fn(codes) if self.condition is None else fn(codes, condition)
        return out if self.params is None else self.params(out)

    def __str__(self):
        return self.name


def randomise(model, seed):
    """Zero-initialised parameters and untrained statistics would hide dependencies; zeros among
    other values stay, for they may be masks."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like):
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if (parameter == parameter.flatten()[0]).all():
                parameter.copy_(parameter + 0.4 * normal(parameter))
            else:
                parameter.mul_(1 + 0.5 * normal(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(0.5 * normal(module.running_mean))
                module.running_var.copy_(0.5 + normal(module.running_var).square())
    model.eval()
