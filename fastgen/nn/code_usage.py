"""How a layer uses its codes, from counts that its forward has made anyway."""

import torch
from torch import Tensor


class CodeUsage:
    """Of a module that keeps how often its last forward chose each code; over all ranks in a
    training step that tracks averages, which has summed them. Nothing is computed before it is
    read."""

    _counts: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """int64 (K,), or (G, K) for separate heads."""
        if self._counts is None:
            raise RuntimeError(
                f"fastgen.nn.{type(self).__name__}: counts must follow a forward, got none yet; "
                "call the layer first"
            )
        return self._counts

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
        """exp of the entropy of the choices, 1 .. K; a scalar, or (G,)."""
        counts = self.counts.double()
        share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
        return torch.special.entr(share).sum(-1).exp().float()
