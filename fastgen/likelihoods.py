"""Likelihoods: what an autoregressive network's output means, how to draw from it and score it.

A likelihood has

    levels: int       codes are 0 .. levels - 1
    coupled: bool     whether the colours of a pixel are one joint draw
    uniforms: int     D, the uniform numbers a draw takes per colour
    sample(params (m, K, C), uniforms (m, D, C), temperature) -> codes int64 (m, C)
    log_prob(params (m, K, C, ...), codes (m, C, ...)) -> nats (m, ...), summed over colours

with m pixels, K parameters a colour and C colours; any object with these will do.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Categorical:
    """One softmax over all levels per colour: K = levels logits.

    A draw is the smallest k with cdf(k) > u, where
    cdf(k) = (e_0 + ... + e_k) / (e_0 + ... + e_(K-1)), e_k = exp((l_k - max l) / temperature),
    summed in float64 in ascending order.
    """

    levels: int
    coupled = False
    uniforms = 1

    def __post_init__(self):
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 1:
            raise ValueError(
                "fastgen.likelihoods.Categorical: levels must be an int >= 1, got "
                f"{self.levels!r}; an 8-bit image has 256"
            )

    def sample(self, params: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        self._check(params)
        logits = params.double()
        weights = torch.exp((logits - logits.amax(1, keepdim=True)) / temperature)
        cdf = weights.cumsum(1)
        return (cdf <= uniforms.double() * cdf[:, -1:]).sum(1).clamp_(max=self.levels - 1)

    def log_prob(self, params: Tensor, codes: Tensor) -> Tensor:
        self._check(params)
        params = params.to(torch.promote_types(params.dtype, torch.float32))
        if params.stride(1) != 1:
            return -F.cross_entropy(params, codes, reduction="none").sum(1)
        # channels-last: every softmax is a row of one matrix, without a copy
        rows = params.movedim((1, 2), (-1, -2)).reshape(-1, self.levels)
        chosen = codes.movedim(1, -1)
        nats = F.cross_entropy(rows, chosen.reshape(-1), reduction="none")
        return -nats.view(chosen.shape).sum(-1)

    def _check(self, params):
        if params.dim() < 3 or params.shape[1] != self.levels:
            raise ValueError(
                f"fastgen.likelihoods.Categorical: params must be (m, levels={self.levels}, C, ...)"
                f", got {tuple(params.shape)}; give one logit per level"
            )


@dataclass(frozen=True)
class Bernoulli:
    """Binary pixels: K = 1 logit of p per colour. A draw is 1 if u >= 1 - p."""

    levels = 2
    coupled = False
    uniforms = 1

    def sample(self, params: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        self._check(params)
        p_zero = torch.sigmoid(-params.double() / temperature)
        return (uniforms.double() >= p_zero)[:, 0].long()

    def log_prob(self, params: Tensor, codes: Tensor) -> Tensor:
        self._check(params)
        logits = params[:, 0].to(torch.promote_types(params.dtype, torch.float32))
        return F.logsigmoid(torch.where(codes == 1, logits, -logits)).sum(1)

    def _check(self, params):
        if params.dim() < 3 or params.shape[1] != 1:
            raise ValueError(
                "fastgen.likelihoods.Bernoulli: params must be (m, 1, C, ...), got "
                f"{tuple(params.shape)}; give one logit per colour"
            )
