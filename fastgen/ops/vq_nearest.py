"""vq_nearest: the exact nearest code of every row, without a matrix of distances."""

from typing import Literal

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _codebooks
from fastgen.reference import vq_nearest as reference

OP = _backends.define(
    "vq_nearest(Tensor x, Tensor codebook, int dim, bool cosine, bool? filter=None) -> Tensor",
    reference.vq_nearest,
    triton="vq_nearest:vq_nearest",
    example=lambda device: (*_codebooks.example_rows(device), 1, False, None),
)


def vq_nearest(
    x: Tensor,
    codebook: Tensor,
    *,
    dim: int = -1,
    metric: Literal["euclidean", "cosine"] = "euclidean",
) -> Tensor:
    """Index of the nearest code: ``argmin_k |x - codebook[k]|``.

    Exact: the distance of the returned code is the least one up to the rounding of the arithmetic
    (4 eps (|x|^2 + |c|^2), both measured from the mean of the codes, so that a common offset costs
    nothing); among equals the lowest index. Never holds rows x codes scores: the extra memory is
    one packed copy of the codebook and 1 MiB for each thread.

    Args:
        x: (..., D), or any shape whose axis `dim` has D values, such as (B, D, H, W) with dim=1;
            strided and channel-first inputs are read in place. float32, float64, bfloat16 or
            float16; computes in float64 if x or the codebook is float64, else in float32.
        codebook: (K, D), or (G, K, D) for G heads with a codebook each; then x is (..., G, D): the
            axis before `dim` counts the heads. Of any of these dtypes, on x's device.
        dim: the axis of the D values.
        metric: "euclidean", or "cosine": the largest cosine; both sides are normalised here, and
            a zero vector has cosine 0 with everything.

    Returns:
        int64, x's shape without `dim`. A row with NaN or infinity gives 0; a code with NaN or
        infinity is never chosen. Not differentiable.

    Raises:
        TypeError: a dtype is not one of the four.
        ValueError: shapes that do not fit, an empty codebook, mixed devices, an unknown metric.

    Source: the quantiser of van den Oord et al., Neural Discrete Representation Learning, 2017,
    eq. 1.
    """
    axis = _codebooks.checked_rows("vq_nearest", x, codebook, dim)
    if metric not in ("euclidean", "cosine"):
        raise ValueError(
            f"fastgen.vq_nearest: metric must be 'euclidean' or 'cosine', got {metric!r}"
        )
    return torch.ops.fastgen.vq_nearest(x.detach(), codebook.detach(), axis, metric == "cosine")


@torch.library.register_fake("fastgen::vq_nearest")
def _(x, codebook, dim, cosine, filter=None):
    return x.new_empty(_codebooks.index_shape(x, dim), dtype=torch.int64)
