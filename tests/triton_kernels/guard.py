"""Tensors inside a larger allocation of NaN: reading beside them poisons the result, and writing
beside them is seen. The interpreter itself checks no bounds."""

import torch

MARGIN = 4096  # elements on each side; more than any tile reaches


def guarded(value, spread=1):
    """A copy of `value` with its strides (times `spread`), NaN around and between its elements."""
    value = value.detach()
    strides = [s * spread for s in value.stride()]
    extent = 1 + sum((n - 1) * s for n, s in zip(value.shape, strides, strict=True))
    store = torch.full((extent + 2 * MARGIN,), float("nan"), dtype=value.dtype)
    return store.as_strided(value.shape, strides, MARGIN).copy_(value)


class Outputs:
    """Hands out guarded output tensors in place of the launchers' own, and checks them later."""

    def __init__(self, allocate):
        self.allocate, self.made = allocate, []

    def __call__(self, x, shape):
        out = guarded(self.allocate(x, shape).fill_(float("nan")))
        self.made.append(out)
        return out

    def check(self):
        for out in self.made:
            store = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())
            assert store[:MARGIN].isnan().all(), "wrote before its first element"
            assert store[-MARGIN:].isnan().all(), "wrote behind its last element"
