"""What VAE and ConditionalVAE are made of and given: networks, likelihood, images and labels, each
checked where it enters."""

import math
import numbers

import torch
from torch import Tensor, nn

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

    def _configure(self, config):
        """Checks arguments, and sets what they say."""
        name = type(self).__name__
        for part in ("encoder", "decoder"):
            if isinstance(config[part], str):
                raise ValueError(
                    f"fastgen.models.{name}: {part} was your own module {config[part]}, which a "
                    f"checkpoint's config cannot rebuild; build the {name} with it and give that "
                    "to fastgen.checkpoint.load(directory, model)"
                )
            if config[part] is not None and not isinstance(config[part], nn.Module):
                got = type(config[part]).__name__
                self._refuse(part, "must be an nn.Module", got, "None is a default", TypeError)
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
        names = {
            part: None if config[part] is None else type(config[part]).__qualname__
            for part in ("encoder", "decoder")
        }
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

    def _check_choice(self, argument, value, known):
        if value not in known:
            self._refuse(argument, f"must be of {', '.join(known)}", repr(value), "choose one")

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

    def _checked(self, images, condition):
        """The labels, after a look at everything that was given."""
        if not isinstance(images, Tensor):
            self._refuse("images", "must be a tensor", type(images).__name__, "use torch.as_tensor",
                         TypeError)  # fmt: skip
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape:
            expected = f"must be (B, {', '.join(map(str, self.shape))})"
            self._refuse("images", expected, tuple(images.shape), "or build the model for that")
        if not images.is_floating_point():
            if self.levels is None:
                remedy = "convert them, or give the model levels="
                self._refuse("images", "must be floats", images.dtype, remedy, TypeError)
            if images.device.type == "cpu" and not torch.compiler.is_compiling():
                self._check_range("images", "levels", images, self.levels)
        return self._labels(condition, len(images), images.device)

    def _labels(self, condition, batch, device):
        """int64 (batch,); zeros where there are no classes."""
        if self.classes is None:
            if condition is not None:
                got = type(condition).__name__
                self._refuse("condition", "must be None", got, "ConditionalVAE takes labels")
            return torch.zeros(batch, dtype=torch.int64, device=device)
        expected, remedy = f"must be int64 labels ({batch},)", "give one for each image"
        if not isinstance(condition, Tensor):
            self._refuse("condition", expected, type(condition).__name__, remedy)
        if condition.dtype != torch.int64:
            self._refuse("condition", expected, condition.dtype, "use .long()", TypeError)
        if tuple(condition.shape) != (batch,):
            self._refuse("condition", expected, tuple(condition.shape), remedy)
        if condition.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_range("condition", "labels", condition, self.classes)
        return condition
