"""Argument checks that several ops share, and the words they are said in."""

import torch
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensor(op, name, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"fastgen.{op}: {name} must be a tensor, got {type(value).__name__}; "
            "pass a torch.Tensor"
        )


def float_tensor(op, name, value):
    tensor(op, name, value)
    if value.dtype not in FLOATS:
        raise TypeError(
            f"fastgen.{op}: {name} must be float32, float64, bfloat16 or float16, "
            f"got {value.dtype}; convert it with {name}.float()"
        )
    # the dispatcher would drop the tangent without a word: a derivative of 0
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        raise NotImplementedError(
            f"fastgen.{op}: {name} must carry no tangent, got one of forward-mode differentiation; "
            "use reverse mode (backward, torch.autograd.grad)"
        )


def same_kind(op, name, value, x, than="x"):
    """`value` shares x's dtype and device."""
    if value.dtype != x.dtype:
        raise TypeError(
            f"fastgen.{op}: {name} must have {than}'s dtype {x.dtype}, got {value.dtype}; "
            f"convert one of them, or use torch.autocast"
        )
    if value.device != x.device:
        raise ValueError(
            f"fastgen.{op}: {name} must be on {than}'s device {x.device}, got {value.device}; "
            f"move it with {name}.to({str(x.device)!r})"
        )


def written(*tensors):
    """Autograd shall notice where it has kept one of these."""
    if not torch.compiler.is_compiling():  # which follows what is written
        torch.autograd.graph.increment_version(tensors)


def autocast_dtype(x):
    """The dtype torch.autocast asks for on x's device, or None when it is off."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # such as meta
        return None
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return None
