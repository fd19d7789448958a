"""ema_update_ in plain PyTorch."""

import torch


@torch.no_grad()
def ema_update_(targets, sources, decay):
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source.to(target.dtype), 1 - decay)
