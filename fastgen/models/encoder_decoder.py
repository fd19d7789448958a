"""What VAE and ConditionalVAE are made of and given: networks, likelihood, images and labels, each
checked where it enters."""

import math
import numbers

from torch import Tensor

from fastgen.models.image_model import ImageModel
from fastgen.models.image_nets import image_decoder, image_encoder
from fastgen.models.pixel_likelihoods import (
    BernoulliPixels,
    GaussianPixels,
    LogisticMixturePixels,
)


class EncoderDecoder(ImageModel):
    """Holds `encoder`, `decoder`, `pixels` and `config`, and calls the first two by `_posterior`
    and `_params`."""

    conditional = "ConditionalVAE"

    def _configure(self, config):
        """Checks arguments, and sets what they say."""
        for part in ("encoder", "decoder"):
            self._check_module(part, config[part])
        self.levels = config["levels"]
        for argument, least in (("latent_dim", 1), ("components", 1), ("layers", 0)):
            self._check_int(argument, config[argument], "leave it out for the default", least)
        if config["width"] is not None:
            self._check_int("width", config["width"], "leave it out for the default")
        for argument, most in (("beta", math.inf), ("free_bits", math.inf), ("kl_warmup", 1)):
            value = config[argument]
            if not isinstance(value, numbers.Real) or not 0 <= value <= most or value == math.inf:
                expected = "must be a number >= 0" if most > 1 else "must lie in 0 .. 1"
                self._refuse(argument, expected, value, "leave it out for the default")
            setattr(self, argument, value)
        likelihood = config["likelihood"]
        if likelihood is None:
            likelihood = {None: "gaussian", 2: "bernoulli"}.get(self.levels, "dmol")
        encoder, decoder = config["encoder"], config["decoder"]
        names = {part: self._name_of(config[part]) for part in ("encoder", "decoder")}
        clamp = self._checked_clamp(config["logvar_clamp"])
        self.logvar_clamp = clamp
        self.config = (
            config
            | names
            | {
                "shape": list(self.shape),
                "likelihood": likelihood,
                "logvar_clamp": None if clamp is None else list(clamp),
            }
        )
        self.latent_dim = config["latent_dim"]
        self.pixels = self._pixel_likelihood(likelihood, config)
        nets = {k: config[k] for k in ("net", "width", "layers")} | {"classes": self.classes}
        if encoder is None:
            encoder = image_encoder(self.shape, 2 * self.latent_dim, **nets)
        if decoder is None:
            decoder = image_decoder(self.latent_dim, self.shape, out=self.pixels.out, **nets)
        self.encoder, self.decoder = encoder, decoder

    def _pixel_likelihood(self, likelihood, config):
        self._check_choice("likelihood", likelihood, ("bernoulli", "gaussian", "dmol"))
        if likelihood == "bernoulli":
            return BernoulliPixels(self.shape, self.levels)
        if likelihood == "gaussian":
            logvar = config["gaussian_logvar"]
            if logvar not in ("learned", "pixel"):
                try:
                    logvar = float(logvar)
                except (TypeError, ValueError):
                    logvar = math.nan
                if math.isnan(logvar):
                    expected = "must be 'learned', 'pixel' or a number"
                    remedy = "0 is a variance of 1"
                    got = repr(config["gaussian_logvar"])
                    self._refuse("gaussian_logvar", expected, got, remedy)
            return GaussianPixels(self.shape, self.levels, logvar)
        if self.levels is None or self.levels < 2:
            self._refuse(
                "likelihood", "'dmol' needs levels >= 2", self.levels, "use likelihood='gaussian'"
            )
        return LogisticMixturePixels(self.shape, self.levels, config["components"])

    def _checked_clamp(self, clamp):
        if clamp is None:
            return None
        is_pair = isinstance(clamp, (tuple, list)) and len(clamp) == 2
        if not is_pair or not all(isinstance(bound, numbers.Real) for bound in clamp):
            self._refuse("logvar_clamp", "must be (low, high)", repr(clamp), "None leaves it out")
        if not clamp[0] <= clamp[1]:
            self._refuse("logvar_clamp", "must have low <= high", repr(clamp), "turn them round")
        return tuple(clamp)

    def _posterior(self, images, labels):
        """mu and logvar as the encoder gives them."""
        x = self.pixels.scaled(images, self._dtype())
        out = self.encoder(x, *self._given(labels))
        if isinstance(out, Tensor):
            shapes, out = [tuple(out.shape)], out.chunk(2, -1)
        else:
            shapes = [tuple(part.shape) for part in out]
        if [tuple(part.shape) for part in out] != [(len(images), self.latent_dim)] * 2:
            b, d = len(images), self.latent_dim
            self._refuse(
                "encoder",
                f"must give ({b}, {2 * d}), means and then log-variances, or a pair of ({b}, {d})",
                " and ".join(map(str, shapes)),
                f"change its last layer, or latent_dim={d}",
            )
        return out

    def _params(self, z, labels):
        """The decoder's numbers for z, (B, out, H, W)."""
        params = self.decoder(z, *self._given(labels))
        expected = (len(z), self.pixels.out, *self.shape[1:])
        if tuple(params.shape) == (len(z), math.prod(expected[1:])):
            return params.view(expected)
        if tuple(params.shape) != expected:
            self._refuse(
                "decoder",
                f"must give {expected}, {self.pixels.out} numbers for each pixel for "
                f"likelihood={self.config['likelihood']!r}",
                tuple(params.shape),
                "change its last layer, or the likelihood",
            )
        return params

    def _given(self, labels):
        """What encoder and decoder are given beside their input."""
        return () if self.classes is None else (labels,)

    def _dtype(self):
        return next(self.parameters()).dtype
