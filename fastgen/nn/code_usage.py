"""How a layer uses its codes, from counts that its forward has made anyway."""

import torch
from torch import Tensor


class CodeUsage:
    """Of a module over a `_codebook` that keeps how often its last forward chose each code; over
    all ranks in a training step that tracks averages, which has summed them. Before any forward
    nothing is chosen. Nothing is computed before it is read."""

    _counts: Tensor | None = None  # None: nothing chosen

    @property
    def counts(self) -> Tensor:
        """int64 (K,), or (G, K) for separate heads."""
        if self._counts is None:
            return torch.zeros_like(self._codebook.codes[..., 0], dtype=torch.int64)
        return self._counts

    def forget_counts(self) -> None:
        """As if nothing had been chosen: a forward has left this module out."""
        self._counts = None

    @property
    def usage(self) -> Tensor:
        """The share of codes that were chosen; a scalar, or (G,)."""
        return (self.counts > 0).float().mean(-1)

    @property
    def dead_codes(self) -> Tensor:
        """How many codes were not chosen; an int64 scalar, or (G,)."""
        return (self.counts == 0).sum(-1)

    @property
    def perplexity(self) -> Tensor:
        """exp of the entropy of the choices, 1 .. K; a scalar, or (G,). 1 if nothing was chosen."""
        counts = self.counts.double()
        share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
        return torch.special.entr(share).sum(-1).exp().float()
