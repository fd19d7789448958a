"""VAE, of "Auto-Encoding Variational Bayes" (2014), and the beta-VAE."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastgen.models.encoder_decoder import EncoderDecoder
from fastgen.models.evidence import ACTIVE, Evidence
from fastgen.models.image_nets import Net
from fastgen.models.latent_priors import Laplace, StandardNormal, gaussian_log_prob, widened
from fastgen.models.latent_space import LatentSpace
from fastgen.models.pixel_likelihoods import GaussianPixels, PixelLikelihood
from fastgen.models.seeded_blocks import BLOCK, STREAM, in_blocks, labels_of_samples
from fastgen.ops.philox_normal import randn
from fastgen.ops.reparam_kl import reparam_kl
from fastgen.sampling.arguments import check_draws, seed_of

Likelihood = Literal["bernoulli", "gaussian", "dmol"]
_PRIORS = {"normal": StandardNormal, "laplace": Laplace}


@dataclass
class VAEOutput:
    """What a VAE says of images, in nats per image, float32 (B,); float64 of a float64 model.

    nll: -log p(x | z), mean over the draws of z.
    kl: KL(q(z | x) || p(z)); of a Laplace prior its estimate by the draws.
    elbo: -(nll + kl), a lower bound of log p(x).
    counted_kl: kl with free bits: what the loss weighs by beta.
    z: (B, D), or (samples, B, D). mu, logvar: of q(z | x), (B, D).
    params: what the decoder gave.
    recon: mean of p(x | z) on the likelihood's scale, (B, C, H, W), or (samples, B, C, H, W).
    """

    nll: Tensor
    kl: Tensor
    counted_kl: Tensor
    z: Tensor
    mu: Tensor
    logvar: Tensor
    params: Tensor
    pixels: PixelLikelihood

    @property
    def elbo(self) -> Tensor:
        return -(self.nll + self.kl)

    @property
    def recon(self) -> Tensor:
        x = self.pixels.mean(self.params)
        return x if self.z.dim() == 2 else x.unflatten(0, self.z.shape[:2])


class VAE(LatentSpace, EncoderDecoder):
    """A variational autoencoder around your encoder and decoder, or around default ones.

    The loss is the mean over images of ``nll + beta kl``, both in nats per image: no factor of
    the batch, the data set or the number of pixels. beta = 4 is a beta-VAE.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014; Higgins et al., beta-VAE,
    2017; importance-weighted bound by Burda et al., Importance Weighted Autoencoders, 2016.

    Args:
        encoder: a module, images as floats (B, C, H, W) -> (B, 2 * latent_dim), means and then
            log-variances, or a pair of these; None for the default.
        decoder: a module, z (B, latent_dim) -> (B, model.pixels.out, H, W), the likelihood's
            parameters; None for the default.
        latent_dim: number of latent variables.
        likelihood: of pixels: "bernoulli", logits of pixels in [0, 1]; "gaussian", means of pixels
            in [-1, 1]; "dmol", mixtures of discretised logistics for pixels in [-1, 1]. Default
            bernoulli for 2 levels, gaussian for real-valued images, dmol otherwise.
        shape: (C, H, W) of the images.
        levels: number of values of the images; None for real-valued ones.
        beta: weight of the KL divergence.
        free_bits: nats that each latent variable may carry at no cost.
        prior: "normal", N(0, I), or "laplace", of scale 1 and with the divergence estimated.
        kl_warmup: share of the training over which the weight of the divergence rises from 0.
        components: of the dmol likelihood.
        gaussian_logvar: log-variance of the gaussian likelihood: "learned", one for all pixels;
            "pixel", the decoder's; or a number.
        logvar_clamp: bounds of the posterior's log-variance.
        net: kind of default networks: mlp or conv; default by the size of images.
        width: units of their hidden layers (default 256), or channels (default 64).
        layers: their hidden layers, or residual blocks.

    ``forward(images)`` -> `VAEOutput`; ``encode(images)`` -> (mu, logvar); ``decode(z)``,
    ``sample(n)``, ``reconstruct(images)``, ``interpolate``, ``traverse``, ``latent_arithmetic`` ->
    images; ``log_prob``, ``bits_per_dim``, ``score`` -> (B,). Images are integer levels
    (B, C, H, W); floats are taken to be on the likelihood's scale.
    """

    objective = Evidence
    sample_forwards = 4

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        latent_dim: int = 16,
        likelihood: Likelihood | None = None,
        *,
        shape: tuple[int, int, int],
        levels: int | None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        prior: Literal["normal", "laplace"] = "normal",
        kl_warmup: float = 0.0,
        components: int = 5,
        gaussian_logvar: float | str = "learned",
        logvar_clamp: tuple[float, float] | None = (-30.0, 20.0),
        net: Net | None = None,
        width: int | None = None,
        layers: int = 2,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(shape, 1 if levels is None else levels)
        self._configure(config)
        self._check_choice("prior", prior, tuple(_PRIORS))
        if prior == "laplace" and free_bits > 0:
            self._refuse("free_bits", "need prior='normal'", free_bits, "an estimate has no floor")
        self.prior = _PRIORS[prior]()

    def forward(
        self,
        images: Tensor,
        condition: Tensor | None = None,
        *,
        samples: int = 1,
        seed: int | None = None,
    ) -> VAEOutput:
        """The evidence lower bound of images and what it consists of.

        samples: draws of z for each image.
        seed: of the draws; default from the device's default generator.
        """
        labels = self._checked(images, condition)
        mu, logvar = self._posterior(images, labels)
        z, counted_kl = reparam_kl(
            mu,
            logvar,
            *self.prior.arguments(labels),
            samples=samples,
            logvar_clamp=self.logvar_clamp,
            free_bits=self.free_bits,
            seed=seed,
        )
        logvar = self._clamped(logvar)
        kl = counted_kl
        if not self.prior.is_gaussian:
            log_ratio = gaussian_log_prob(z, mu, logvar) - self.prior.log_prob(z, labels)
            kl = counted_kl = log_ratio.sum(-1).view(samples, -1).mean(0).to(kl.dtype)
        elif self.free_bits > 0:
            with torch.no_grad():
                kl = self.prior.kl_of_each(mu, logvar, labels).sum(1).to(kl.dtype)
        if samples == 1:
            params = self._params(z, labels)
            nll = self.pixels.nll(params, images)
        else:
            params = self._params(z.flatten(0, 1), labels.repeat(samples))
            repeated = images.expand(samples, *images.shape).flatten(0, 1)
            nll = self.pixels.nll(params, repeated).view(samples, -1).mean(0)
        return VAEOutput(nll, kl, counted_kl, z, mu, logvar, params, self.pixels)

    def encode(self, images: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """mu and logvar of q(z | x), (B, latent_dim) each."""
        mu, logvar = self._posterior(images, self._checked(images, condition))
        return mu, self._clamped(logvar)

    def latent(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """The posterior's mean, (B, latent_dim)."""
        return self.encode(images, condition)[0]

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (B, latent_dim) -> mean images as the nearest levels, int64 (B, C, H, W); real-valued
        images as floats."""
        if not isinstance(z, Tensor) or z.dim() != 2 or z.shape[1] != self.latent_dim:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            expected = f"must be a tensor (B, {self.latent_dim})"
            self._refuse("z", expected, got, "latent() gives one")
        labels = self._labels(condition, len(z), z.device)
        return self.pixels.images(self.pixels.mean(self._params(z.to(self._dtype()), labels)))

    def log_prob(
        self,
        images: Tensor,
        condition: Tensor | None = None,
        *,
        samples: int = 16,
        seed: int | None = None,
    ) -> Tensor:
        """A lower bound of log p(x) in nats, (B,), by importance weighting: the logarithm of the
        mean, over `samples` draws of z, of ``p(x | z) p(z) / q(z | x)``. It grows with `samples`
        towards log p(x), in expectation.

        Raises ValueError where there is no probability of levels: a bernoulli likelihood of more
        than two levels. Of real-valued images it is the logarithm of a density.
        """
        self._check_int("samples", samples, "more are a tighter bound")
        labels = self._checked(images, condition)
        mu, logvar = widened(*self.encode(images, condition))
        seed, weights = seed_of(seed, None, None), []
        for draw in range(samples):
            eps = self._noise(mu.shape, seed + draw * STREAM, mu)
            z = mu + torch.exp(logvar / 2) * eps
            log_q = -0.5 * (math.log(2 * math.pi) + logvar + eps.square())
            log_ratio = (self.prior.log_prob(z, labels) - log_q).sum(1)
            params = self._params(z.to(self._dtype()), labels)
            likely = self._log_likelihood(params, images)
            weights.append(likely + log_ratio)
        return torch.logsumexp(torch.stack(weights), 0) - math.log(samples)

    def bits_per_dim(
        self,
        images: Tensor,
        condition: Tensor | None = None,
        *,
        samples: int = 16,
        seed: int | None = None,
    ) -> Tensor:
        """-log_prob / (C H W ln 2), (B,), of levels. ValueError where these have no probability:
        real-valued images, and a bernoulli likelihood of more than two levels."""
        self.pixels.check_mass()
        nats = self.log_prob(images, condition, samples=samples, seed=seed)
        return nats / (-math.prod(self.shape) * math.log(2))

    @torch.no_grad()
    def score(
        self,
        images: Tensor,
        condition: Tensor | None = None,
        *,
        samples: int = 16,
        seed: int | None = 0,
    ) -> Tensor:
        """How improbable images are: -log_prob in nats, (B,)."""
        return -self.log_prob(images, condition, samples=samples, seed=seed)

    @torch.no_grad()
    def kl_per_dimension(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """KL(q(z_d | x) || p(z_d)) in nats for each latent variable, mean over images,
        (latent_dim,)."""
        labels = self._checked(images, condition)
        return self.prior.kl_of_each(*self.encode(images, condition), labels).mean(0)

    def active_units(self, images: Tensor, condition: Tensor | None = None) -> int:
        """How many latent variables tell something of images: more than 0.01 nats on average."""
        return int((self.kl_per_dimension(images, condition) > ACTIVE).sum())

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | int | None = None,
        temperature: float = 1.0,
        *,
        condition: Tensor | None = None,
        pixels: Literal["mean", "draw"] = "mean",
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        batch: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """n new images, int64 (n, C, H, W), in eval mode: z of the prior, decoded.

        y, or condition: int64 labels (n,), or one for all, of a model with classes.
        temperature: of the prior, and of the pixels if these are drawn.
        pixels: the mean of p(x | z), or a draw of it.
        seed, generator: image i of a seed is the same whatever n.
        first_index: the number of the first image in the seed's stream.
        batch, progress: as the other models have them; a sample takes a forward, whatever these.
        """
        check_draws(None, n, first_index, temperature, None, None, batch)
        self._check_choice("pixels", pixels, ("mean", "draw"))
        labels = labels_of_samples(self, n, y, condition)
        if n == 0:
            return self.pixels.images(next(self.parameters()).new_zeros(0, *self.shape))
        seed = seed_of(seed, generator, None)
        return in_blocks(
            self,
            n,
            labels,
            first_index,
            lambda *block: self._block(*block, seed, temperature, pixels),
        )

    def _block(self, index, labels, seed, temperature, pixels):
        """Samples index * BLOCK and on, of a seed."""
        like = next(self.parameters())
        noise = self._noise((BLOCK, self.latent_dim), seed + 2 * index * STREAM, like)
        params = self._params(self.prior.draw(noise, labels, temperature).to(like.dtype), labels)
        if pixels == "mean":
            return self.pixels.images(self.pixels.mean(params))
        seed = (seed + (2 * index + 1) * STREAM) % 2**64
        return self.pixels.images(self.pixels.draw(params, seed, temperature))

    def _noise(self, size, seed, like):
        return randn(size, seed=seed % 2**64, dtype=like.dtype, device=like.device)

    def _log_likelihood(self, params, images):
        if self.levels is None and isinstance(self.pixels, GaussianPixels):
            return -self.pixels.nll(params, images)  # a density
        return self.pixels.log_mass(params, images)

    def _clamped(self, logvar):
        return logvar if self.logvar_clamp is None else logvar.clamp(*self.logvar_clamp)
