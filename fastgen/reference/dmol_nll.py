"""dmol_nll in plain PyTorch, in float64.

With inverse scale s = exp(-log_scale), half bin h and t = x - mean, a bin has the mass

    sigmoid(s (t + h)) - sigmoid(s (t - h))
        = sigmoid(s (t + h)) sigmoid(s (h - t)) (1 - exp(-2 h s))

whose logarithm loses no digits. The lowest bin has all mass below it, sigmoid(s (t + h)), the
highest all above, sigmoid(s (h - t)).
"""

import math

import torch
import torch.nn.functional as F

from fastgen.reference.memory_format import in_format_of

MIN_LOG_SCALE = -7.0
TOLERANCE = 1e-3  # of a float pixel from its level


def pixel_codes(x, levels):
    """int64 codes of integer codes or of floats in [-1, 1]."""
    if x.dtype.is_floating_point:
        codes = ((x.double() + 1) * ((levels - 1) / 2)).round()
        off = ~((x.double() - (codes * 2 / (levels - 1) - 1)).abs() <= TOLERANCE)
        off |= (codes < 0) | (codes >= levels)
        expected = f"floats within {TOLERANCE:g} of the {levels} levels 2 k / {levels - 1} - 1"
        remedy = "scale images to [-1, 1], or pass integer codes"
    else:
        codes = x.long()
        off = (codes < 0) | (codes >= levels)
        expected, remedy = f"codes in 0 .. {levels - 1}", "pass the levels= of the data"
    if off.any():
        raise ValueError(
            f"fastgen.dmol_nll: x must hold {expected}, got {x[off][0].item():g}; {remedy}"
        )
    return codes.long()


def split(params, components, coupled, colors):
    """params (B, P, ...) -> component logits (B, K, C or 1, ...), means, log-scales and, of coupled
    colours, raw coefficients (B, K, C, ...), else None."""
    if not coupled:
        return *params.split(components, 1), None
    if colors == 1:
        return *params.unsqueeze(2).split(components, 1), None
    logits, rest = params[:, :components], params[:, components:]
    means, log_scales, coefficients = rest.unflatten(1, (3, 3, components)).movedim(1, 3).unbind(1)
    return logits.unsqueeze(2), means, log_scales, coefficients


class _Mixture:
    """The log-likelihood of pixels, and its derivatives; B, K and C as in `split`."""

    def __init__(self, params, x, components, coupled, levels, exact):
        codes = pixel_codes(x, levels)
        parts = split(params, components, coupled, x.shape[1])
        self.logits, means, self.raw_log_scales, coefficients = parts
        self.coupled, self.x = coupled, codes.to(params.dtype) * (2 / (levels - 1)) - 1
        self.tanh = None
        if coefficients is not None:
            self.tanh = c = torch.tanh(coefficients)
            x0, x1 = self.x[:, None, 0], self.x[:, None, 1]
            second = c[:, :, 0] * x0
            third = c[:, :, 1] * x0 + c[:, :, 2] * x1
            means = means + torch.stack((torch.zeros_like(second), second, third), 2)
        form = _exact_bins if exact else _bins_of_2017
        log_scales = self.raw_log_scales.clamp_min(MIN_LOG_SCALE)
        self.bins, self.by_t, self.by_log_scale = form(
            self.x[:, None] - means, log_scales, codes[:, None], levels
        )
        joint = self.bins.sum(2, keepdim=True) if coupled else self.bins
        self.joint = F.log_softmax(self.logits, 1) + joint  # (B, K, C or 1, H, W)

    def log_prob(self):
        """(B, H, W)"""
        return torch.logsumexp(self.joint, 1).sum(1)

    def gradient(self, grad):
        """Of <grad, -log_prob>, grad (B, H, W), by the parameters, (B, P, H, W) or with colours."""
        grad = grad[:, None, None]
        share = torch.softmax(self.joint, 1)
        by_logits = grad * (torch.softmax(self.logits, 1) - share)
        by_means = grad * share * self.by_t
        by_log_scales = -grad * share * self.by_log_scale
        by_log_scales = by_log_scales.masked_fill(self.raw_log_scales < MIN_LOG_SCALE, 0)
        if not self.coupled:
            return torch.cat((by_logits, by_means, by_log_scales), 1)
        if self.tanh is None:
            return torch.cat((by_logits, by_means, by_log_scales), 1).squeeze(2)
        x0, x1 = self.x[:, None, 0], self.x[:, None, 1]
        by_shift = torch.stack((by_means[:, :, 1] * x0, by_means[:, :, 2] * x0,
                                by_means[:, :, 2] * x1), 2)  # fmt: skip
        by_coefficients = by_shift * (1 - self.tanh**2)
        rest = torch.stack((by_means, by_log_scales, by_coefficients), 2)  # (B, K, 3, C, H, W)
        rest = rest.movedim(1, 3).movedim(1, 2)  # (B, C, 3, K, H, W)
        return torch.cat((by_logits.squeeze(2), rest.flatten(1, 3)), 1)


def _exact_bins(t, log_scales, codes, levels):
    """log of the mass of a bin, its derivative by t and by the log-scale."""
    s, half = torch.exp(-log_scales), 1 / (levels - 1)
    a, b, width = s * (t + half), s * (half - t), 2 * half * s
    lowest, highest = codes == 0, codes == levels - 1
    edge = lowest | highest
    below, above = F.logsigmoid(a), F.logsigmoid(b)
    # for tiny s the mass between is 2 h s; its logarithm must not pass through 0
    safe = width.clamp_min(1e-9)
    log_width = math.log(2 * half) - log_scales
    inside = torch.where(width < 1e-9, log_width, torch.log(-torch.expm1(-safe)))
    slope = torch.where(width < 1e-9, 1, safe * torch.exp(-safe) / -torch.expm1(-safe))
    bins = below.masked_fill(highest, 0) + above.masked_fill(lowest, 0)
    right, left = (
        torch.sigmoid(-a).masked_fill(highest, 0),
        torch.sigmoid(-b).masked_fill(lowest, 0),
    )
    return (
        bins + inside.masked_fill(edge, 0),
        s * (right - left),
        -(a * right) - b * left - slope.masked_fill(edge, 0),
    )


def _bins_of_2017(t, log_scales, codes, levels):
    """The same as in the code of PixelCNN++: where the difference is below 1e-5, the density times
    the width of a bin."""
    s, half = torch.exp(-log_scales), 1 / (levels - 1)
    plus, minus, middle = s * (t + half), s * (t - half), s * t
    high, low, mid = torch.sigmoid(plus), torch.sigmoid(minus), torch.sigmoid(middle)
    difference = high - low
    is_large = difference > 1e-5
    safe = torch.where(is_large, difference, 1)
    density = middle - log_scales - 2 * F.softplus(middle) - math.log((levels - 1) / 2)
    p, m = high * (1 - high), low * (1 - low)
    inner = (
        torch.where(is_large, torch.log(safe), density),
        torch.where(is_large, s * (p - m) / safe, s * (1 - 2 * mid)),
        torch.where(is_large, (minus * m - plus * p) / safe, middle * (2 * mid - 1) - 1),
    )
    lowest = (F.logsigmoid(plus), s * (1 - high), -plus * (1 - high))
    highest = (F.logsigmoid(-minus), -s * low, minus * low)
    is_lowest, is_highest = codes == 0, codes == levels - 1
    return tuple(
        torch.where(is_lowest, x, torch.where(is_highest, y, z))
        for x, y, z in zip(lowest, highest, inner, strict=True)
    )


def _channels_first(params, x, coupled, channels_last):
    if not channels_last:
        return params, x
    x = x.movedim(-1, 1)
    params = params.movedim(-1, 1)
    return params if coupled else params.unflatten(1, (-1, x.shape[1])), x


def dmol_nll(params, x, components, coupled, levels, exact, channels_last, per_pixel):
    wide, x = _channels_first(params.double(), x, coupled, channels_last)
    nll = -_Mixture(wide, x, components, coupled, levels, exact).log_prob()
    accumulation = torch.float64 if params.dtype == torch.float64 else torch.float32
    return (nll if per_pixel else nll.sum((1, 2))).to(accumulation)


def dmol_nll_backward(
    grad_nll, params, x, components, coupled, levels, exact, channels_last, per_pixel
):
    wide, x = _channels_first(params.double(), x, coupled, channels_last)
    mixture = _Mixture(wide, x, components, coupled, levels, exact)
    grad = grad_nll.double()
    grad = grad if per_pixel else grad[:, None, None].expand(len(x), *x.shape[2:])
    grad = mixture.gradient(grad)
    if channels_last:
        grad = (grad if coupled else grad.flatten(1, 2)).movedim(1, -1)
    return in_format_of(grad, params)
