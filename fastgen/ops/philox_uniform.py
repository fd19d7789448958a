"""philox_uniform: numbers of a counter-based generator, uniform in [0, 1)."""

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _random
from fastgen.reference import philox_uniform as reference


def _seed(device):
    return torch.full((), 7, dtype=torch.int64, device=device)


OP = _backends.define(
    "philox_uniform(Tensor seed, SymInt[] size, ScalarType dtype) -> Tensor",
    reference.philox_uniform,
    triton="philox_uniform:philox_uniform",
    example=lambda device: (_seed(device), [3, 37], torch.float32),
)
FILL = _backends.define(
    "philox_uniform_(Tensor(a!) out, Tensor seed) -> ()",
    reference.philox_uniform_,
    stem="philox_uniform",
    triton="philox_uniform:philox_uniform_",
)


def philox_uniform(
    size,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1), each a function of (seed, its index) alone: the same bits on every
    device and backend and for any number of threads.

    Element i, counted in row-major order, is ``(word >> 8) * 2**-24`` with word the lane i % 4 of
    the Philox4x32-10 block of key `seed` and counter i // 4. Not differentiable.

    Args:
        size: of the result; an int or a tuple of ints.
        seed: 64 bit.
        generator: gives the seed instead, as 64 bits drawn from it. Of neither, the device's
            default generator does: `torch.manual_seed` works.
        dtype: float32, float64, bfloat16 or float16; default torch's default. Halves keep the upper
            8 (bfloat16) or 11 bits, so 1 does not occur.
        device: default the generator's, else torch's default device.
        out: a tensor of `size` to fill instead of a new one; memory that has been used before is
            two to five times as fast to write.

    Returns:
        The numbers, of `size`.

    Raises:
        TypeError: a dtype is not one of the four; seed is no int.
        ValueError: a negative size, seed and generator both, a generator on another device, an
            `out` of another size, dtype or device.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011.
    """
    return _random.drawn("philox_uniform", OP, FILL, size, seed, generator, dtype, device, out)


def rand(
    *size,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`philox_uniform` with torch.rand's signature: ``rand(2, 3)`` or ``rand((2, 3))``."""
    size = _random.size_of(size)
    return _random.drawn("rand", OP, FILL, size, seed, generator, dtype, device, out)


@torch.library.register_fake("fastgen::philox_uniform")
def _(seed, size, dtype):
    return torch.empty(size, dtype=dtype, device=seed.device)


@torch.library.register_fake("fastgen::philox_uniform_")
def _(out, seed):
    return None
