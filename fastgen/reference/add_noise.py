"""add_noise in plain PyTorch."""

import torch

from fastgen.reference.memory_format import in_format_of
from fastgen.reference.philox import element_normals, element_words, to_uniform
from fastgen.reference.seeds import seed_or_draw

MASK, GAUSSIAN, SALT_PEPPER = range(3)


def _uniforms(x, seed):
    return to_uniform(element_words(int(seed), x.numel(), x.device)).view(x.shape)


def _float32(amount):
    """The threshold as float32 has it: every backend decides on the same bits."""
    return torch.tensor(amount, dtype=torch.float32)


def add_noise(x, kind, amount, low, high, seed, return_mask):
    used_seed = seed_or_draw(seed, x.device)
    if kind == GAUSSIAN:
        eps = element_normals(int(used_seed), x.numel(), x.device).view(x.shape)
        noisy, changed = x.double() + amount * eps, torch.ones_like(x, dtype=torch.bool)
    else:
        u = _uniforms(x, used_seed)
        changed = u < _float32(amount).to(x.device)
        noisy = x.double().masked_fill(changed, 0.0)
        if kind == SALT_PEPPER:
            pepper = u < _float32(amount / 2).to(x.device)
            noisy = torch.where(pepper, low, noisy.masked_fill(changed, high))
    mask = changed if return_mask else torch.empty(0, dtype=torch.bool, device=x.device)
    return in_format_of(noisy, x), mask, used_seed


def add_noise_backward(grad_noisy, kind, amount, used_seed):
    if kind == GAUSSIAN:
        return grad_noisy.clone()
    u = _uniforms(grad_noisy, used_seed)
    return grad_noisy.masked_fill(u < _float32(amount).to(u.device), 0)
