"""ConditionalVAE: a VAE of images given their labels, with a prior that knows the label."""

from typing import Literal

import torch
from torch import Tensor, nn

from fastgen.models.image_nets import Net
from fastgen.models.latent_priors import ClassTable, LearnedNormal, StandardNormal
from fastgen.models.vae import VAE, Likelihood

_PRIORS = ("standard", "learned", "class")


class ConditionalVAE(VAE):
    """p(x | y) by latent variables: encoder, decoder and prior are given the label y.

    Source: Sohn et al., Learning Structured Output Representation using Deep Conditional
    Generative Models, 2015, equation 4, with its conditional prior p(z | y).

    Args:
        encoder: a module, (images as floats (B, C, H, W), labels int64 (B,)) -> as that of `VAE`.
        decoder: a module, (z (B, latent_dim), labels) -> as that of `VAE`.
        latent_dim: number of latent variables.
        likelihood: of pixels: "bernoulli", "gaussian" or "dmol". Default bernoulli for 2 levels,
            gaussian for real-valued images, dmol otherwise.
        shape, levels: of the images, as those of `VAE`.
        beta: weight of the KL divergence.
        free_bits: nats that each latent variable may carry at no cost.
        kl_warmup: share of the training over which the weight of the divergence rises from 0.
        classes: number of labels. None for images without: then there is one class, and the prior
            is learned all the same.
        prior: p(z | y): "standard", N(0, I) whatever y; "learned", a Gaussian that a small network
            makes of y; "class", a Gaussian for each class, from a table.
        components: of the dmol likelihood.
        gaussian_logvar: log-variance of the gaussian likelihood: "learned", one for all pixels;
            "pixel", the decoder's; or a number.
        logvar_clamp: bounds of the posterior's log-variance.
        net: kind of default networks: mlp or conv; default by the size of images.
        width: units of their hidden layers (default 256), or channels (default 64).
        layers: their hidden layers, or residual blocks.

    Methods are those of `VAE`, with labels as the argument `condition` (of `sample`: y), and
    ``classify(images)``, by Bayes' rule.
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        latent_dim: int = 16,
        likelihood: Likelihood | None = None,
        *,
        shape: tuple[int, int, int],
        levels: int | None,
        classes: int | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        prior: Literal["standard", "learned", "class"] = "learned",
        kl_warmup: float = 0.0,
        components: int = 5,
        gaussian_logvar: float | str = "learned",
        logvar_clamp: tuple[float, float] | None = (-30.0, 20.0),
        net: Net | None = None,
        width: int | None = None,
        layers: int = 2,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super(VAE, self).__init__(shape, 1 if levels is None else levels, classes)
        self._configure(config)
        self._check_choice("prior", prior, _PRIORS)
        kinds = {"learned": LearnedNormal, "class": ClassTable}
        rows = 1 if classes is None else classes
        self.prior = kinds[prior](latent_dim, rows) if prior in kinds else StandardNormal()

    @torch.no_grad()
    def classify(
        self,
        images: Tensor,
        class_prior: Tensor | None = None,
        *,
        samples: int = 16,
        seed: int | None = 0,
    ) -> Tensor:
        """log p(y | x) in nats, (B, classes), by Bayes' rule: ``p(x | y) p(y)``, normalised; its
        argmax is the label.

        class_prior: p(y), (classes,), any positive scale; default uniform.
        samples, seed: of `log_prob`, for each class.
        """
        return torch.log_softmax(self._joint(images, class_prior, samples, seed), 1)

    @torch.no_grad()
    def score(
        self,
        images: Tensor,
        condition: Tensor | None = None,
        *,
        samples: int = 16,
        seed: int | None = 0,
    ) -> Tensor:
        """How improbable images are: -log p(x | y) in nats, (B,); without labels -log p(x), the
        mean of p(x | y) over the classes."""
        if condition is None and self.classes is not None:
            return -torch.logsumexp(self._joint(images, None, samples, seed), 1)
        return super().score(images, condition, samples=samples, seed=seed)

    def _joint(self, images, class_prior, samples, seed):
        """log p(x | y) + log p(y), (B, classes)."""
        if self.classes is None:
            self._refuse("classes", "must be given to classify", None, "train with labels")
        each = [
            self.log_prob(images, images.new_full((len(images),), y, dtype=torch.int64),
                          samples=samples, seed=seed)
            for y in range(self.classes)
        ]  # fmt: skip
        joint = torch.stack(each, 1)
        if class_prior is None:
            class_prior = joint.new_ones(self.classes)
        if not isinstance(class_prior, Tensor):
            got = type(class_prior).__name__
            self._refuse("class_prior", "must be a tensor", got, "use torch.tensor(...)", TypeError)
        if tuple(class_prior.shape) != (self.classes,) or not (class_prior > 0).all():
            expected = f"must be {self.classes} positive numbers"
            self._refuse("class_prior", expected, class_prior.tolist(), "leave it out for uniform")
        return joint + torch.log(class_prior / class_prior.sum()).to(joint)
