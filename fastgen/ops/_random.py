"""What the public functions that make random tensors share."""

import operator

import torch

from fastgen.ops import _checks, _seeds


def size_of(arguments):
    """The size in `f(2, 3)` or `f((2, 3))`."""
    if len(arguments) == 1 and not isinstance(arguments[0], (int, torch.SymInt)):
        return arguments[0]
    return arguments


def drawn(name, op, fill, size, seed, generator, dtype, device, out):
    """The result of the public function `name`: by `op`, or into `out` by `fill`."""
    size = _checked_size(name, size)
    if out is not None:
        _check_out(name, out, size, dtype, device)
        device = out.device
    elif device is not None:
        device = torch.device(device)
    elif isinstance(generator, torch.Generator):
        device = generator.device
    else:
        device = torch.empty(0).device  # a fifth of what torch.get_default_device takes
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in _checks.FLOATS:
        raise TypeError(
            f"fastgen.{name}: dtype must be float32, float64, bfloat16 or float16, got {dtype}; "
            "draw float32 and convert"
        )
    seed = _seeds.given_seed(name, seed, generator, device)
    if seed is None:
        seed = _seeds.drawn_seed(device)
    if out is None:
        return op(seed, size, dtype)
    fill(out, seed)
    _checks.written(out)
    return out


def _checked_size(name, size):
    try:
        size = [size] if isinstance(size, (int, torch.SymInt)) else list(size)
        size = [n if isinstance(n, torch.SymInt) else operator.index(n) for n in size]
    except TypeError:
        raise TypeError(
            f"fastgen.{name}: size must be ints, got {size!r}; such as {name}((2, 3))"
        ) from None
    if any(n < 0 for n in size):
        raise ValueError(f"fastgen.{name}: size must not be negative, got {size}; 0 is empty")
    return size


def _check_out(name, out, size, dtype, device):
    _checks.float_tensor(name, "out", out)
    for what, got, wanted in (
        ("shape", list(out.shape), size),
        ("dtype", out.dtype, dtype),
        ("device", out.device, device and torch.device(device)),
    ):
        if wanted is not None and got != wanted:
            raise ValueError(
                f"fastgen.{name}: out must have {what} {wanted}, got {got}; give one that has"
            )
    if out.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"fastgen.{name}: out must not require gradients, got one that does; pass out.detach()"
        )
