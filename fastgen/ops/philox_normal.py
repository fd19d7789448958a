"""philox_normal: standard normal numbers of a counter-based generator."""

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _random
from fastgen.reference import philox_normal as reference


def _seed(device):
    return torch.full((), 7, dtype=torch.int64, device=device)


OP = _backends.define(
    "philox_normal(Tensor seed, SymInt[] size, ScalarType dtype) -> Tensor",
    reference.philox_normal,
    triton="philox_normal:philox_normal",
    example=lambda device: (_seed(device), [3, 37], torch.float32),
)
FILL = _backends.define(
    "philox_normal_(Tensor(a!) out, Tensor seed) -> ()",
    reference.philox_normal_,
    stem="philox_normal",
    triton="philox_normal:philox_normal_",
)


def philox_normal(
    size,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Standard normal numbers, each a function of (seed, its index) alone: for any number of
    threads the same bits, across devices and backends equal to a few units in the last place.

    Box and Muller's transform of `philox_uniform`'s numbers of the same seed: elements 2 j and
    2 j + 1 are ``sqrt(-2 log(1 - u))`` times the cosine and the sine of ``2 pi v``, with u and v
    those two uniforms. The largest is 5.77. Not differentiable.

    Args:
        size: of the result; an int or a tuple of ints.
        seed: 64 bit.
        generator: gives the seed instead, as 64 bits drawn from it. Of neither, the device's
            default generator does: `torch.manual_seed` works.
        dtype: float32, float64, bfloat16 or float16; default torch's default. All are the same
            numbers, rounded.
        device: default the generator's, else torch's default device.
        out: a tensor of `size` to fill instead of a new one; memory that has been used before is
            two to five times as fast to write.

    Returns:
        The numbers, of `size`.

    Raises:
        TypeError: a dtype is not one of the four; seed is no int.
        ValueError: a negative size, seed and generator both, a generator on another device, an
            `out` of another size, dtype or device.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011; Box and Muller, A Note
    on the Generation of Random Normal Deviates, 1958.
    """
    return _random.drawn("philox_normal", OP, FILL, size, seed, generator, dtype, device, out)


def randn(
    *size,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`philox_normal` with torch.randn's signature: ``randn(2, 3)`` or ``randn((2, 3))``."""
    size = _random.size_of(size)
    return _random.drawn("randn", OP, FILL, size, seed, generator, dtype, device, out)


@torch.library.register_fake("fastgen::philox_normal")
def _(seed, size, dtype):
    return torch.empty(size, dtype=dtype, device=seed.device)


@torch.library.register_fake("fastgen::philox_normal_")
def _(out, seed):
    return None
