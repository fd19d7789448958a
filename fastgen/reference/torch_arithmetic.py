"""The arithmetic of updates where torch's own depends on the machine or on the layout."""

import numpy as np
import torch


def square_root(x):
    """Rounded correctly, which torch's is not everywhere: on AMD's CPUs MKL's is a unit in the last
    place off for one float32 in six."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.asarray(np.sqrt(x.numpy(force=True))))  # of 0 axes too
    return x.sqrt()


def plus(x, y, alpha):
    """x + alpha y. torch rounds alpha y to a half in the last elements of a tensor and in strided
    ones, and nowhere else; here it never is."""
    if x.element_size() != 2:
        return x.add(y, alpha=alpha)
    alpha = torch.tensor(alpha, dtype=x.dtype).item()
    return x.float().add(y.float(), alpha=alpha).to(x.dtype)
