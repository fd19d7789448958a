"""Likelihoods: what an autoregressive network's output means, how to draw from it and score it.

A likelihood has

    levels: int       codes are 0 .. levels - 1
    coupled: bool     whether the colours of a pixel are one joint draw
    uniforms: int     D, the uniform numbers a draw takes per colour
    sample(params (m, K, C), uniforms (m, D, C), temperature) -> codes int64 (m, C)
    log_prob(params (m, K, C, ...), codes (m, C, ...)) -> nats (m, ...), summed over colours

with m pixels, K parameters a colour and C colours (of a coupled likelihood: K parameters in all,
as one colour); any object with these will do. If it also has `parameters(colors) -> K`, a model
with another number of parameters is refused.

Draws are computed in float64, whatever the dtype of the parameters.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.dmol_nll import dmol_nll

_MIN_UNIFORM = 2.0**-24  # of the logistic draw, and 1 - it the largest: logit stays finite


@dataclass(frozen=True)
class Categorical:
    """One softmax over all levels per colour: K = levels logits.

    A draw is the smallest k with cdf(k) > u, where
    cdf(k) = (e_0 + ... + e_k) / (e_0 + ... + e_(K-1)), e_k = exp((l_k - max l) / temperature),
    summed in float64 in ascending order.

    `top_k` keeps the k largest e, of equal ones those of lower index. `top_p` then keeps, in the
    same order, the fewest whose sum is at least top_p times the sum of those left. The others
    become 0.
    """

    levels: int
    coupled = False
    uniforms = 1

    def __post_init__(self):
        _check_int(self, "levels", self.levels, 1, "an 8-bit image has 256")

    def parameters(self, colors: int) -> int:
        return self.levels

    def sample(
        self,
        params: Tensor,
        uniforms: Tensor,
        temperature: float = 1.0,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        _check_params(self, params, self.levels, "one logit per level")
        weights = _truncated(_weights(params.double(), temperature), top_k, top_p)
        return _inverse_cdf(weights, uniforms.double())

    def log_prob(self, params: Tensor, codes: Tensor) -> Tensor:
        _check_params(self, params, self.levels, "one logit per level")
        params = _at_least_float32(params)
        if params.stride(1) != 1:
            return -F.cross_entropy(params, codes, reduction="none").sum(1)
        # channels-last: every softmax is a row of one matrix, without a copy
        rows = params.movedim((1, 2), (-1, -2)).reshape(-1, self.levels)
        chosen = codes.movedim(1, -1)
        nats = F.cross_entropy(rows, chosen.reshape(-1), reduction="none")
        return -nats.view(chosen.shape).sum(-1)


@dataclass(frozen=True)
class Bernoulli:
    """Binary pixels: K = 1 logit of p per colour. A draw is 1 if u >= 1 - p."""

    levels = 2
    coupled = False
    uniforms = 1

    def parameters(self, colors: int) -> int:
        return 1

    def sample(self, params: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        _check_params(self, params, 1, "one logit per colour")
        p_zero = torch.sigmoid(-params.double() / temperature)
        return (uniforms.double() >= p_zero)[:, 0].long()

    def log_prob(self, params: Tensor, codes: Tensor) -> Tensor:
        _check_params(self, params, 1, "one logit per colour")
        logits = _at_least_float32(params)[:, 0]
        return F.logsigmoid(torch.where(codes == 1, logits, -logits)).sum(1)


@dataclass(frozen=True)
class DiscretizedLogisticMixture:
    """A mixture of logistic distributions over [-1, 1], cut into `levels` bins.

    Source: Salimans et al., PixelCNN++, 2017, section 2.1 and 2.2, and its published code.

    Code k stands for x = 2 k / (levels - 1) - 1 and has the mass between x - h and x + h,
    h = 1 / (levels - 1); the lowest and the highest code also have all mass beyond.

    Parameters, with M = components:

    - coupled, 3 colours: K = 10 M, (m, K, 1, ...), in the order of the code of 2017: M component
      logits; then for each colour M means, M log-scales, M coefficients. One component for all
      colours of a pixel. The mean of colour 1 gets + tanh(coefficient of colour 0) * x_0, that of
      colour 2 + tanh(coefficient of colour 1) * x_0 + tanh(coefficient of colour 2) * x_1.
    - coupled, 1 colour: K = 3 M: M logits, M means, M log-scales.
    - uncoupled: K = 3 M in the same order for each colour, (m, K, C, ...).

    Log-scales are at least -7, as in the code of 2017.

    A draw takes two uniforms: the component by inverse CDF of the softmax of its logits with the
    first (coupled: that of colour 0), as `Categorical` does; then, colour by colour, with the
    second clamped to [2^-24, 1 - 2^-24],

        y = mean + exp(log-scale) * temperature * (log(u) - log1p(-u))
        code = round((min(max(y, -1), 1) + 1) * ((levels - 1) / 2)), half to even

    and x = 2 code / (levels - 1) - 1 enters the next colours' means. Logits are divided by the
    temperature.

    `log_prob` is the logarithm of the exact mass, also in the tails, where the code of 2017 takes
    the density.
    """

    components: int
    levels: int = 256
    coupled: bool = True
    uniforms = 2

    def __post_init__(self):
        _check_int(self, "components", self.components, 1, "PixelCNN++ has 10")
        _check_int(self, "levels", self.levels, 2, "an 8-bit image has 256")

    def parameters(self, colors: int) -> int:
        if not self.coupled or colors == 1:
            return 3 * self.components
        if colors != 3:
            raise ValueError(
                "fastgen.likelihoods.DiscretizedLogisticMixture: coupled needs images of 1 or 3 "
                f"colours, got {colors}; use coupled=False"
            )
        return 10 * self.components

    def sample(self, params: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        colors = uniforms.shape[2]
        logits, means, log_scales, coefficients = self._split(params.double(), colors)
        pick, noise = uniforms.double().unbind(1)  # (m, C) each
        component = _inverse_cdf(_weights(logits, temperature), pick[:, None, : logits.shape[2]])
        chosen = component[:, None].expand(-1, 1, colors)  # one for all colours, or one for each
        mean = means.gather(1, chosen)[:, 0]
        scale = log_scales.gather(1, chosen)[:, 0].exp() * temperature
        noise = noise.clamp(_MIN_UNIFORM, 1 - _MIN_UNIFORM)
        y = mean + scale * (noise.log() - torch.log1p(-noise))
        if coefficients is None:
            return self._nearest(y)
        c = coefficients.gather(1, chosen)[:, 0]
        first = self._nearest(y[:, 0])
        x0 = self._value(first, c.dtype)
        second = self._nearest(y[:, 1] + c[:, 0] * x0)
        x1 = self._value(second, c.dtype)
        third = self._nearest(y[:, 2] + c[:, 1] * x0 + c[:, 2] * x1)
        return torch.stack((first, second, third), 1)

    def log_prob(self, params: Tensor, codes: Tensor) -> Tensor:
        self._check(params, codes.shape[1])
        space = codes.shape[2:]
        rows, pixels = (params.squeeze(2) if self.coupled else params), codes.long()
        if not space:  # the pixels are one row, their parameters adjacent
            rows, pixels = rows.flatten(1)[None, None], pixels[None, None]
        elif len(space) != 2:
            rows, pixels = (t.flatten(t.dim() - len(space)).unsqueeze(-2) for t in (rows, pixels))
        nll = dmol_nll(
            rows,
            pixels,
            components=self.components,
            coupled=self.coupled,
            levels=self.levels,
            channels_last=not space,
            per_pixel=True,
        )
        # float32 may round the logarithm of a mass of 1 to 1e-6
        return -nll.clamp_min(0).view(len(codes), *space)

    def _split(self, params, colors):
        """Component logits (m, M, C or 1, ...); means, log-scales and (coupled colours) the tanh
        of the coefficients, (m, M, C, ...)."""
        self._check(params, colors)
        m = self.components
        if not self.coupled or colors == 1:
            logits, means, log_scales = params.split(m, 1)
            return logits, means, log_scales.clamp_min(-7.0), None
        logits, rest = params[:, :m], params[:, m:, 0].unflatten(1, (colors, 3, m))
        means, log_scales, coefficients = rest.movedim(1, 3).unbind(1)
        return logits, means, log_scales.clamp_min(-7.0), torch.tanh(coefficients)

    def _check(self, params, colors):
        _check_params(self, params, self.parameters(colors), "see the order in its docstring")
        given, expected = params.shape[2], 1 if self.coupled else colors
        if given != expected:
            _refuse(
                self,
                "params",
                f"must be (m, K, {expected}, ...)",
                tuple(params.shape),
                "a coupled mixture's have one colour, an uncoupled one's all",
            )

    def _nearest(self, y):
        return torch.round((y.clamp(-1, 1) + 1) * ((self.levels - 1) / 2)).long()

    def _value(self, codes, dtype):
        return codes.to(dtype) * 2 / (self.levels - 1) - 1


def _weights(logits, temperature):
    """exp((l - max l) / temperature) along dimension 1."""
    return torch.exp((logits - logits.amax(1, keepdim=True)) / temperature)


def _inverse_cdf(weights, uniforms):
    """The smallest k with cdf(k) > u: weights (m, K, C), uniforms (m, 1, C) to int64 (m, C)."""
    cdf = weights.cumsum(1)
    return (cdf <= uniforms * cdf[:, -1:]).sum(1).clamp_(max=weights.shape[1] - 1)


def _truncated(weights, top_k, top_p):
    if top_k is None and top_p is None:
        return weights
    ordered, index = weights.sort(dim=1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = 0
    if top_p is not None:
        sums = ordered.cumsum(1)
        full = sums[:, :-1] >= top_p * sums[:, -1:]  # without the next one
        ordered[:, 1:].masked_fill_(full, 0)
    return torch.zeros_like(weights).scatter_(1, index, ordered)


def _at_least_float32(params):
    return params.to(torch.promote_types(params.dtype, torch.float32))


def _check_params(likelihood, params, count, remedy):
    if params.dim() < 3 or params.shape[1] != count:
        expected = f"must be (m, K={count}, C, ...)"
        _refuse(likelihood, "params", expected, tuple(params.shape), f"give {remedy}")


def _check_int(likelihood, argument, value, least, remedy):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        _refuse(likelihood, argument, f"must be an int >= {least}", repr(value), remedy)


def _refuse(likelihood, argument, expected, got, remedy):
    name = type(likelihood).__name__
    raise ValueError(f"fastgen.likelihoods.{name}: {argument} {expected}, got {got}; {remedy}")
