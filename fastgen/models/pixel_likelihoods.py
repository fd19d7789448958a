"""What a decoder's numbers say of pixels: Bernoulli, Gaussian, or a mixture of discretised
logistics.

Each is a module with

    out: int                     numbers that the decoder gives for each pixel, (B, out, H, W)
    low, high: float             the scale that pixels are on, where the encoder sees them too
    nll_is_of_levels: bool       whether `nll` is of the images' levels, not a density
    nll(params, images) -> nats (B,), what training minimises
    log_mass(params, images) -> nats (B,), log p(levels | z)
    check_mass()                 ValueError where there is no such thing
    mean(params) -> (B, C, H, W), and draw(params, seed, temperature), both on that scale

where images are integer levels 0 .. levels - 1 or floats on that scale.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.likelihoods import DiscretizedLogisticMixture
from fastgen.ops.bernoulli_nll import bernoulli_nll
from fastgen.ops.dmol_nll import dmol_nll
from fastgen.ops.gaussian_nll import gaussian_nll
from fastgen.ops.philox_normal import randn
from fastgen.ops.philox_uniform import rand
from fastgen.reference.dmol_nll import split

_TOLERANCE = 1e-3  # of a float pixel from its level, as in dmol_nll


class PixelLikelihood(nn.Module):
    """Args: shape (C, H, W); levels, None for real-valued images."""

    low, high = -1.0, 1.0
    nll_is_of_levels = True

    def __init__(self, shape, levels):
        super().__init__()
        self.shape, self.levels, self.out = shape, levels, shape[0]

    @property
    def has_mass(self) -> bool:
        return self.levels is not None

    def check_mass(self) -> None:
        if not self.has_mass:
            raise ValueError(
                "fastgen.models: real-valued images have a density, no probability, and its "
                "logarithm changes with their unit, got levels=None; give levels= for bits per "
                "dimension, or use log_prob(), of a gaussian likelihood the density's"
            )

    def scaled(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Levels, or floats that are on the scale already, as floats on the scale."""
        if images.is_floating_point():
            return images.to(dtype)
        width = (self.high - self.low) / max(self.levels - 1, 1)
        return images.to(dtype) * width + self.low

    def images(self, x: Tensor) -> Tensor:
        """Floats on the scale as the nearest levels; real-valued images stay as they are."""
        if self.levels is None:
            return x
        # NaN, as of a network that has diverged, is no level: the middle stands for it
        unit = ((x.double() - self.low) / (self.high - self.low)).nan_to_num(0.5)
        return (unit * (self.levels - 1)).round().clamp(0, self.levels - 1).long()

    def log_mass(self, params: Tensor, images: Tensor) -> Tensor:
        self.check_mass()
        return -self.nll(params, self._on_levels(images))

    def _on_levels(self, images):
        x = self.scaled(images, torch.float64)
        nearest = self.scaled(self.images(x), torch.float64)
        if ((x - nearest).abs() > _TOLERANCE).any():
            raise ValueError(
                "fastgen.models: the probability of levels needs pixels on these, got floats more "
                f"than {_TOLERANCE:g} from one; give integer levels, or build the model with "
                "levels=None for real-valued images"
            )
        return nearest


class BernoulliPixels(PixelLikelihood):
    """Logits of pixels in [0, 1]. With more than two levels a brightness counts as the expected
    value of a black or white pixel: a loss, and no probability of the levels."""

    low, high = 0.0, 1.0

    @property
    def has_mass(self):
        return self.levels is not None and self.levels <= 2

    def nll(self, params, images):
        return bernoulli_nll(params, self.scaled(images, _accumulation(params)))

    def check_mass(self):
        if not self.has_mass:
            got = "real-valued ones" if self.levels is None else f"{self.levels} levels"
            raise ValueError(
                "fastgen.models: likelihood='bernoulli' gives probabilities of images of 2 levels "
                f"alone, got {got}; use likelihood='dmol' or 'gaussian', or black and white images"
            )

    def mean(self, params):
        return torch.sigmoid(params)

    def draw(self, params, seed, temperature=1.0):
        uniforms = rand(params.shape, seed=seed, device=params.device, dtype=torch.float32)
        return (uniforms < torch.sigmoid(params / temperature)).to(params.dtype)


class GaussianPixels(PixelLikelihood):
    """Means of pixels in [-1, 1]. The variance is one for all pixels, learned ("learned", the
    sigma-VAE of Rybkin et al., 2021) or fixed (a number, its logarithm), or the decoder's ("pixel",
    C log-variances behind C means).

    Variances stay above that of a uniform distribution over a level's bin: a narrower Gaussian
    would raise the density without saying more about levels.
    """

    nll_is_of_levels = False

    def __init__(self, shape, levels, logvar="learned"):
        super().__init__(shape, levels)
        self.half_bin = 0.0 if levels is None else 1 / max(levels - 1, 1)
        self.least = -14.0 if levels is None else 2 * math.log(self.half_bin) - math.log(3)
        self.kind = logvar
        if logvar == "learned":
            self.logvar = nn.Parameter(torch.zeros(()))
        elif logvar == "pixel":
            self.out = 2 * shape[0]

    def nll(self, params, images):
        mean, logvar = self._split(params)
        return gaussian_nll(mean, self.scaled(images, _accumulation(params)), logvar)

    def log_mass(self, params, images):
        self.check_mass()
        mean, logvar = self._split(params.double())
        logvar = torch.as_tensor(logvar, dtype=torch.float64, device=mean.device)
        x, scale = self._on_levels(images), torch.exp(-logvar / 2)
        # the bin's bounds; the lowest and the highest level also have all mass beyond
        low = (x - self.half_bin - mean) * scale
        high = (x + self.half_bin - mean) * scale
        low = low.masked_fill(x <= -1 + self.half_bin, -math.inf)
        high = high.masked_fill(x >= 1 - self.half_bin, math.inf)
        return _log_normal_mass(low, high).flatten(1).sum(1).to(_accumulation(params))

    def mean(self, params):
        return self._split(params)[0]

    def draw(self, params, seed, temperature=1.0):
        mean, logvar = self._split(params)
        std = torch.exp(torch.as_tensor(logvar, dtype=mean.dtype, device=mean.device) / 2)
        noise = randn(mean.shape, seed=seed, device=mean.device, dtype=mean.dtype)
        return mean + temperature * std * noise

    def _split(self, params):
        if self.kind == "learned":
            return params, self._bounded(self.logvar)
        if self.kind == "pixel":
            mean, logvar = params.chunk(2, 1)
            return mean, self._bounded(logvar)
        return params, self.kind

    def _bounded(self, logvar):
        return self.least + F.softplus(logvar - self.least)


class LogisticMixturePixels(PixelLikelihood):
    """Parameters of `fastgen.dmol_nll` for pixels in [-1, 1]: coupled for 1 and 3 colours, 3 or 10
    numbers for each component; else uncoupled, 3 for each component and colour."""

    def __init__(self, shape, levels, components=5):
        super().__init__(shape, levels)
        colors = shape[0]
        self.components, self.coupled = components, colors in (1, 3)
        self.mixture = DiscretizedLogisticMixture(components, levels, self.coupled)
        self.out = self.mixture.parameters(colors) * (1 if self.coupled else colors)

    def nll(self, params, images):
        return dmol_nll(
            params if self.coupled else self._with_colours(params),
            images,
            components=self.components,
            coupled=self.coupled,
            levels=self.levels,
        )

    def mean(self, params):
        """Of the mixture, before the bins are cut; coupled colours at the others' means."""
        params = params if self.coupled else self._with_colours(params)
        logits, means, _, coefficients = split(params, self.components, self.coupled, self.shape[0])
        weights = torch.softmax(logits, 1)
        if coefficients is None:
            return (weights * means).sum(1).clamp(-1, 1)
        c = torch.tanh(coefficients)
        first = means[:, :, 0].clamp(-1, 1)
        second = (means[:, :, 1] + c[:, :, 0] * first).clamp(-1, 1)
        third = (means[:, :, 2] + c[:, :, 1] * first + c[:, :, 2] * second).clamp(-1, 1)
        return (weights * torch.stack((first, second, third), 2)).sum(1)

    def draw(self, params, seed, temperature=1.0):
        b, (colors, h, w) = len(params), self.shape
        params = params.unsqueeze(2) if self.coupled else self._with_colours(params)
        pixels = params.movedim((3, 4), (1, 2)).flatten(0, 2)  # (B H W, K, C or 1)
        size = (len(pixels), 2, colors)
        uniforms = rand(size, seed=seed, device=params.device, dtype=torch.float32)
        codes = self.mixture.sample(pixels, uniforms, temperature)
        return self.scaled(codes.view(b, h, w, colors).movedim(3, 1), params.dtype)

    def _with_colours(self, params):
        return params.unflatten(1, (3 * self.components, self.shape[0]))


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), in whichever tail it loses no digits."""
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    below, above = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return above + torch.log(-torch.expm1(below - above))


def _accumulation(params: Tensor) -> torch.dtype:
    return torch.float64 if params.dtype == torch.float64 else torch.float32
