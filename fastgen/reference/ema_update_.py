"""ema_update_ in plain PyTorch."""

import torch


@torch.no_grad()
def ema_update_(targets, sources, decay):
    for target, source in zip(targets, sources, strict=True):
        if source.shape != target.shape:  # which lerp_ would spread
            raise ValueError(
                f"fastgen.ema_update_: sources must have the shapes of targets, got "
                f"{tuple(source.shape)} for {tuple(target.shape)}; give both in the same order"
            )
        target.lerp_(source.to(target.dtype), 1 - decay)
