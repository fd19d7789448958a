"""philox_normal in plain PyTorch."""

import torch

from fastgen.reference.philox import element_normals


def philox_normal_(out, seed):
    out.copy_(element_normals(int(seed), out.numel(), out.device).view(out.shape))


def philox_normal(seed, size, dtype):
    out = torch.empty(size, dtype=dtype, device=seed.device)
    philox_normal_(out, seed)
    return out
