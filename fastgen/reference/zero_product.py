"""A product in which 0 wins over infinity."""

import torch


def zero_product(a, b):
    """a b, and 0 wherever a is 0: a sure and right answer costs nothing."""
    return torch.where(a == 0, 0, a * b)
