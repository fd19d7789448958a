"""vq_ema_update_ in plain PyTorch."""

from torch import Tensor


def vq_ema_update_(
    embed: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
) -> None:
    # in float64: no rounding between the steps
    count = counts.double()
    seen = count.sum(-1, keepdim=True) > 0  # a batch without rows changes nothing
    size = cluster_size.double() * decay + count * (1 - decay)
    average = embed_avg.double() * decay + sums * (1 - decay)
    total = size.sum(-1, keepdim=True)
    # Laplace smoothing: a code that nothing chose does not divide by 0
    smoothed = (size + eps) / (total + size.shape[-1] * eps) * total
    cluster_size.copy_(size.where(seen, cluster_size.double()))
    embed_avg.copy_(average.where(seen.unsqueeze(-1), embed_avg.double()))
    embed.copy_((average / smoothed.unsqueeze(-1)).where(seen.unsqueeze(-1), embed.double()))
