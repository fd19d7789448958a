"""add_noise: what a denoising autoencoder is given, in one pass."""

import math
import numbers

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _autograd, _checks, _seeds
from fastgen.reference import add_noise as reference
from fastgen.reference.memory_format import empty_in_format_of

KINDS = ("mask", "gaussian", "salt_pepper")


def _example(device):
    x = torch.linspace(0, 1, 105, device=device).reshape(3, 35)
    return x, 2, 0.5, 0.0, 1.0, torch.full((), 7, dtype=torch.int64, device=device), True


def _example_backward(device):
    x, kind, amount, _, _, seed, _ = _example(device)
    return x.cos(), kind, amount, seed


OP = _backends.define(
    "add_noise(Tensor x, int kind, float amount, float low, float high, Tensor? seed, "
    "bool return_mask) -> (Tensor noisy, Tensor mask, Tensor used_seed)",
    reference.add_noise,
    triton="add_noise:add_noise",
    example=_example,
    tags=(torch.Tag.nondeterministic_seeded,),
)
BACKWARD = _backends.define(
    "add_noise_backward(Tensor grad_noisy, int kind, float amount, Tensor used_seed)"
    " -> Tensor grad_x",
    reference.add_noise_backward,
    stem="add_noise",
    triton="add_noise:add_noise_backward",
    example=_example_backward,
)


def add_noise(
    x: Tensor,
    kind: str = "mask",
    amount: float = 0.5,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    return_mask: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """A corrupted copy of x. With u = `rand` and e = `randn` of x's shape and the seed:

    - "mask": 0 where ``u < amount``;
    - "gaussian": ``x + amount e``;
    - "salt_pepper": `low` where ``u < amount / 2``, else `high` where ``u < amount``.

    Gradients pass where x was kept; the noise is not stored but made again from the seed.

    Args:
        x: any shape; float32, float64, bfloat16 or float16 (halves compute in float32).
        kind: one of the three.
        amount: the share of values that are replaced, in [0, 1]; of "gaussian" the standard
            deviation, at least 0.
        low, high: what pepper and salt are.
        seed: 64 bit; generator: gives the seed. With neither the device's default generator does.
        return_mask: also return where x was replaced, bool in x's shape ("gaussian": everywhere).

    Returns:
        The noisy x in its shape, dtype and memory format, or (noisy, mask).

    Raises:
        TypeError: a dtype that is none of these.
        ValueError: an unknown kind, an amount out of its range, seed and generator both, a
            generator on another device.

    Source: Vincent et al., Stacked Denoising Autoencoders, 2010, section 3.3.
    """
    _checks.float_tensor("add_noise", "x", x)
    if kind not in KINDS:
        raise ValueError(
            f"fastgen.add_noise: kind must be one of {', '.join(KINDS)}, got {kind!r}; choose one"
        )
    most = math.inf if kind == "gaussian" else 1.0
    is_number = isinstance(amount, numbers.Real) and not isinstance(amount, bool)
    if not is_number or not 0 <= amount <= most or math.isinf(amount):
        expected = "a number >= 0" if kind == "gaussian" else "in [0, 1]"
        raise ValueError(
            f"fastgen.add_noise: amount must be {expected} for {kind!r}, got {amount!r}; 0 changes "
            "nothing"
        )
    for name, value in (("low", low), ("high", high)):
        if not isinstance(value, numbers.Real):
            raise TypeError(
                f"fastgen.add_noise: {name} must be a number, got {value!r}; pixels in [0, 1] "
                "have 0 and 1"
            )
    if seed is not None or generator is not None:
        seed = _seeds.given_seed("add_noise", seed, generator, x.device)
    noisy, mask, _ = OP(
        x, KINDS.index(kind), float(amount), float(low), float(high), seed, return_mask
    )
    return (noisy, mask) if return_mask else noisy


@torch.library.register_fake("fastgen::add_noise")
def _(x, kind, amount, low, high, seed, return_mask):
    mask = x.new_empty(x.shape if return_mask else (0,), dtype=torch.bool)
    return empty_in_format_of(x, x.shape), mask, x.new_empty((), dtype=torch.int64)


@torch.library.register_fake("fastgen::add_noise_backward")
def _(grad_noisy, kind, amount, used_seed):
    return torch.empty_like(grad_noisy)


_autograd.by_backward_op("add_noise")
_autograd.second_derivatives("add_noise", reference.add_noise_backward)
