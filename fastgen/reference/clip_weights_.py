"""clip_weights_ in plain PyTorch."""

import torch


@torch.no_grad()
def clip_weights_(tensors, low, high):
    for tensor in tensors:
        tensor.clamp_(low, high)  # NaN stays NaN
    at_bound = [_at_bound(tensor, low, high) for tensor in tensors]
    return torch.stack(at_bound).sum()


def _at_bound(tensor, low, high):
    low, high = torch.tensor([low, high], dtype=torch.float64).to(tensor.dtype).tolist()
    return ((tensor == low) | (tensor == high)).sum()
