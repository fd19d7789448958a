"""A copy for the backward pass of what may be written before it."""

import torch
from torch import Tensor

from fastgen import _backends

_OP = _backends.define("snapshot(Tensor x) -> Tensor", torch.clone, every_device=True)


def snapshot(x: Tensor) -> Tensor:
    """A copy of x, with x's gradient.

    torch.compile saves memory by making a `clone` again in the backward pass, from what has been
    written into x by then. The result of an op that it does not know it keeps, if forward uses it.
    """
    return _OP(x)


@torch.library.register_fake("fastgen::snapshot")
def _(x):
    return torch.empty_like(x)


torch.library.register_autograd("fastgen::snapshot", lambda ctx, grad: grad)
