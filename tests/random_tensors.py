"""What the tests of the random tensors share."""

import math

import torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [(0,), (), (1,), (3,), (2, 0, 5), (5, 7), (127,), (129,), (3, 1025), (4099,)]
# Philox4x32-10 of key 0 and counter 0, the first of Random123's known answers
KNOWN_WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


def kolmogorov_smirnov(values, cdf):
    """sqrt(n) times the largest distance between the empirical and the exact distribution; above
    1.95 once in a thousand times."""
    below = cdf(values.double().flatten().sort().values)
    steps = torch.arange(len(below) + 1, dtype=torch.float64) / len(below)
    distance = torch.maximum(steps[1:] - below, below - steps[:-1]).max().item()
    return math.sqrt(len(below)) * distance


def correlation(a, b):
    """In standard deviations of what independent numbers have."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return ((a * b).mean() / (a.std() * b.std())).item() * math.sqrt(a.numel())
