"""Where an op's random numbers come from: a seed, a generator, the noise itself, or the device's
default generator."""

import numbers

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.reference.seeds import seed_or_draw

_DRAW = _backends.define(
    "draw_seed(Device? device) -> Tensor",
    lambda device: seed_or_draw(None, device),
    every_device=True,
    tags=(torch.Tag.nondeterministic_seeded,),
)


def drawn_seed(device) -> Tensor:
    """64 bits of the device's default generator, int64 (). torch.compile does not know a draw of
    all 64: for it this is an op of its own."""
    return _DRAW(device) if torch.compiler.is_compiling() else seed_or_draw(None, device)


@torch.library.register_fake("fastgen::draw_seed")
def _(device):
    return torch.empty((), dtype=torch.int64, device=device)


def given_seed(op, seed, generator, device, **noise):
    """The seed as an int64 tensor () on `device`, or None: then the op draws it itself. `noise`, by
    its name, may be given instead."""
    if seed is None and generator is None:
        return None
    sources = {"seed": seed, "generator": generator} | noise
    given = [name for name, source in sources.items() if source is not None]
    if len(given) > 1:
        raise ValueError(
            f"fastgen.{op}: {', '.join(sources)} exclude each other, got {' and '.join(given)}; "
            "keep one"
        )
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"fastgen.{op}: generator must be a torch.Generator, got "
                f"{type(generator).__name__}; or pass seed="
            )
        if device is not None and generator.device.type != device.type:
            raise ValueError(
                f"fastgen.{op}: generator must be on the device {device}, got one on "
                f"{generator.device}; make it with torch.Generator({str(device)!r})"
            )
        return seed_or_draw(None, device, generator)
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"fastgen.{op}: seed must be an int, got {seed!r}; use 0")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"fastgen.{op}: seed must fit 64 bits, got {seed}; use a smaller one")
    signed = int(seed) - (2**64 if seed >= 2**63 else 0)
    return torch.full((), signed, dtype=torch.int64, device=device)
