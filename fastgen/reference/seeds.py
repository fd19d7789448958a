"""The seed that an op draws for itself when it is given none."""

import torch


def seed_or_draw(seed, device, generator=None):
    """A copy of `seed`, or else 64 bits of the generator, by default the device's own: int64 ()."""
    if seed is not None:
        return seed.clone()
    word = torch.empty((), dtype=torch.int64, device=device)
    return word.random_(-(2**63), None, generator=generator)
