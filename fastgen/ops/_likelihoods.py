"""What the negative log-likelihoods check and return alike."""

import torch

from fastgen.ops import _checks


def check_logits(op, name, params, target, *, integers=True):
    """`params` (B, ...) and a `target` of its shape: of its dtype, float32 or, with `integers`,
    uint8 or bool."""
    _checks.float_tensor(op, name, params)
    _checks.tensor(op, "target", target)
    kinds = (params.dtype, torch.float32) + ((torch.uint8, torch.bool) if integers else ())
    if target.dtype not in kinds:
        words = ", ".join(sorted({str(k).removeprefix("torch.") for k in kinds}))
        raise TypeError(
            f"fastgen.{op}: target must be of {words}, got {target.dtype}; convert it with "
            f"target.to({name}.dtype)"
        )
    if target.dtype in _checks.FLOATS:
        _checks.float_tensor(op, "target", target)
    if params.dim() == 0:
        raise ValueError(
            f"fastgen.{op}: {name} must be (B, ...), got a scalar; add the axis of samples"
        )
    if target.shape != params.shape:
        raise ValueError(
            f"fastgen.{op}: target must have {name}'s shape {tuple(params.shape)}, got "
            f"{tuple(target.shape)}; reshape one of them"
        )
    if target.device != params.device:
        raise ValueError(
            f"fastgen.{op}: target must be on {name}'s device {params.device}, got {target.device};"
            f" move it with target.to({str(params.device)!r})"
        )


def empty_per_sample(params, shape=None):
    """An uninitialised result, (B,) unless told, in the dtype that sums are in."""
    dtype = torch.float64 if params.dtype == torch.float64 else torch.float32
    return params.new_empty(params.shape[:1] if shape is None else shape, dtype=dtype)
