"""vq_ema_update_: a codebook follows the moving averages of what chose its codes, in place."""

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _checks
from fastgen.reference import vq_ema_update_ as reference


def _example(device):
    embed = torch.linspace(-2, 2, 28, device=device).reshape(7, 4)
    counts = torch.arange(7, device=device)
    sums = embed.double() * counts.unsqueeze(1) + 0.1
    return embed, torch.ones(7, device=device), embed.clone(), counts, sums, 0.9, 1e-5


OP = _backends.define(
    "vq_ema_update_(Tensor(a!) embed, Tensor(b!) cluster_size, Tensor(c!) embed_avg, "
    "Tensor counts, Tensor sums, float decay, float eps) -> ()",
    reference.vq_ema_update_,
    triton="vq_ema_update_:vq_ema_update_",
    example=_example,
)


def vq_ema_update_(
    embed: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    counts: Tensor,
    sums: Tensor,
    *,
    decay: float,
    eps: float = 1e-5,
) -> None:
    """One step of the exponential moving averages of a codebook, in place.

    1. ``cluster_size = decay cluster_size + (1 - decay) counts``
    2. ``embed_avg = decay embed_avg + (1 - decay) sums``
    3. ``embed = embed_avg / size`` with ``size = (cluster_size + eps) / (n + K eps) n`` and
       ``n = cluster_size.sum()`` (Laplace smoothing)

    Without rows (all counts of a head 0) nothing changes. Nothing waits for the device.
    Not differentiable.

    Args:
        embed: (K, D) or (G, K, D), the codebook, written; float32, float64, bfloat16 or float16.
        cluster_size: (K,) or (G, K), written.
        embed_avg: embed's shape, written.
        counts: int64 in cluster_size's shape, of `vq_quantize`.
        sums: float64 in embed's shape, of `vq_quantize`.
        decay: in [0, 1].
        eps: positive.

    Returns:
        None.

    Raises:
        TypeError: no tensor, or a dtype that is none of these.
        ValueError: shapes or devices that differ, decay outside [0, 1], eps not positive; two of
            the written tensors at one address (not read inside torch.compile).

    Source: van den Oord et al., Neural Discrete Representation Learning, 2017, appendix A.1.
    """
    name = "vq_ema_update_"
    for argument, value in (
        ("embed", embed),
        ("cluster_size", cluster_size),
        ("embed_avg", embed_avg),
    ):
        _checks.float_tensor(name, argument, value)
    _checks.tensor(name, "counts", counts)
    _checks.tensor(name, "sums", sums)
    if embed.dim() not in (2, 3):
        raise ValueError(
            f"fastgen.{name}: embed must be (K, D) or (G, K, D), got shape {tuple(embed.shape)}"
        )
    for argument, value, shape in (
        ("cluster_size", cluster_size, embed.shape[:-1]),
        ("embed_avg", embed_avg, embed.shape),
        ("counts", counts, embed.shape[:-1]),
        ("sums", sums, embed.shape),
    ):
        if value.shape != shape:
            raise ValueError(
                f"fastgen.{name}: {argument} must be {tuple(shape)} for an embed "
                f"{tuple(embed.shape)}, got {tuple(value.shape)}"
            )
        if value.device != embed.device:
            raise ValueError(
                f"fastgen.{name}: {argument} must be on embed's device {embed.device}, got "
                f"{value.device}; move it with {argument}.to({str(embed.device)!r})"
            )
    for argument, value, dtype in (("counts", counts, torch.int64), ("sums", sums, torch.float64)):
        if value.dtype != dtype:
            raise TypeError(
                f"fastgen.{name}: {argument} must be {dtype}, got {value.dtype}; pass what "
                "vq_quantize returned"
            )
    if not 0 <= decay <= 1:
        raise ValueError(f"fastgen.{name}: decay must be in [0, 1], got {decay}")
    if not eps > 0:
        raise ValueError(f"fastgen.{name}: eps must be positive, got {eps}")
    if not torch.compiler.is_compiling():
        _check_apart(name, embed=embed, cluster_size=cluster_size, embed_avg=embed_avg)
    torch.ops.fastgen.vq_ema_update_(
        embed.detach(), cluster_size.detach(), embed_avg.detach(), counts, sums, decay, eps
    )
    _checks.written(embed, cluster_size, embed_avg)


def _check_apart(name, **written):
    seen = {}
    for argument, value in written.items():
        address = value.data_ptr()  # 0 without memory, as on meta
        if address and address in seen:
            raise ValueError(
                f"fastgen.{name}: {argument} must have memory of its own, got that of "
                f"{seen[address]}; pass a clone"
            )
        seen[address] = argument


@torch.library.register_fake("fastgen::vq_ema_update_")
def _(embed, cluster_size, embed_avg, counts, sums, decay, eps):
    return None
