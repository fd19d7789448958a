"""What the quantiser layers check of their inputs."""

import torch
from torch import Tensor

from fastgen.nn.vq_options import refuse

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_float(layer: str, x) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"fastgen.nn.{layer}: x must be a float tensor, got {got}; convert it with x.float()"
        )


def feature_axis(layer: str, x: Tensor, dim: int, space: int | None, channel_last: bool) -> int:
    """The axis of x that holds its `dim` values, from the front; `space` is the number of axes
    behind the channels of a feature map, None if x is none."""
    check_float(layer, x)
    if x.dim() < 2 or (space is not None and x.dim() != space + 2):
        shape = {2: "(B, D, H, W)", 3: "(B, D, T, H, W)", None: "(..., D)"}[space]
        remedy = "see accept_image_fmap and accept_3d_fmap"
        refuse(layer, "x", f"must be {shape}", tuple(x.shape), remedy)
    axis = 1 if space is not None or (not channel_last and x.dim() > 2) else x.dim() - 1
    if x.shape[axis] != dim:
        refuse(
            layer,
            "x",
            f"must have {dim} values along axis {axis}",
            tuple(x.shape),
            "build the layer with that dim, or see channel_last and accept_image_fmap",
        )
    return axis


def row_mask(
    layer: str, x: Tensor, axis: int, mask: Tensor | None, lens: Tensor | None
) -> Tensor | None:
    """bool, x's shape without `axis`, from either form; None from none."""
    shape = [*x.shape[:axis], *x.shape[axis + 1 :]]
    for argument, value in (("mask", mask), ("lens", lens)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"fastgen.nn.{layer}: {argument} must be a tensor, got {type(value).__name__}; "
                f"pass torch.tensor({argument})"
            )
    if lens is None:
        if mask is not None and (mask.dtype != torch.bool or list(mask.shape) != shape):
            got = f"{mask.dtype} {tuple(mask.shape)}"
            refuse(layer, "mask", f"must be bool {tuple(shape)}", got, "one entry for each vector")
        return mask
    if mask is not None:
        refuse(layer, "lens", "must be None beside a mask", "both", "give one of them")
    if len(shape) != 2 or lens.shape != (shape[0],) or lens.is_floating_point():
        got = f"{lens.dtype} {tuple(lens.shape)} for x {tuple(x.shape)}"
        refuse(layer, "lens", "must be int (B,) for x of B sequences", got, "give their lengths")
    return torch.arange(shape[1], device=x.device) < lens.to(x.device).unsqueeze(1)


def checked_indices(
    layer: str, indices, codes: int | tuple[int, ...], last: int | None = None
) -> Tensor:
    """As int64 what has any integer dtype, in -1 .. codes - 1, with a last axis of size `last`; of
    a tuple, one number of codes for each index of that axis. Values are not read inside
    torch.compile."""
    if not isinstance(indices, Tensor) or indices.dtype not in _INTEGERS:
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(
            f"fastgen.nn.{layer}: indices must be an int tensor, got {got}; convert with .long()"
        )
    indices = indices.long()
    if last is not None and (indices.dim() == 0 or indices.shape[-1] != last):
        remedy = "pass what a forward returned"
        refuse(layer, "indices", f"must have a last axis of {last}", tuple(indices.shape), remedy)
    if torch.compiler.is_compiling() or indices.numel() == 0:
        return indices
    parts = [(codes, indices)]
    if isinstance(codes, tuple):
        parts = zip(codes, indices.unbind(-1), strict=False)  # the first stages alone will do
    for size, part in parts:
        low, high = (int(v) for v in torch.aminmax(part))
        if low < -1 or high >= size:
            raise IndexError(
                f"fastgen.nn.{layer}: indices must be in -1 .. {size - 1}, got "
                f"{low if low < -1 else high}; they belong to another codebook"
            )
    return indices
