"""The one table of tolerances. A kernel may be at most twice as far from float64 as the same
computation in plain PyTorch of the same dtype, plus a floor for when that one is luckily exact.

FLOOR[kind][dtype]: relative to the largest exact value.
"""

import torch

FLOOR = {
    # a handful of roundings per value
    "elementwise": {
        torch.float32: 5e-7,
        torch.float64: 1e-15,
        torch.bfloat16: 2**-8,
        torch.float16: 2**-10,
    },
    # sums of up to a few thousand products: another order of additions moves the last digits
    "reduction": {
        torch.float32: 1e-6,
        torch.float64: 2e-15,  # plain PyTorch is float64 itself: no error of its own to add
        torch.bfloat16: 2**-8,  # float32 inside, one rounding at the end
        torch.float16: 2**-10,
    },
}


def assert_as_exact_as_torch(actual, plain, exact, kind):
    """`actual` and `plain` (ours and PyTorch's, one dtype) against `exact` (float64)."""
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)}, not {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    error = (actual.double() - exact).abs().max().item()
    plain_error = (plain.double() - exact).abs().max().item()
    floor = FLOOR[kind][actual.dtype] * max(exact.abs().max().item(), 1e-30)
    assert error <= 2 * plain_error + floor, (
        f"{error:.3g} from float64, plain PyTorch {plain_error:.3g}, floor {floor:.3g}"
    )
