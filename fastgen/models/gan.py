"""GAN, of "Generative Adversarial Nets" (2014), with the losses that came after."""

from typing import Literal

from torch import nn

from fastgen.models.adversarial import Adversarial
from fastgen.models.gan_nets import image_critic, image_generator
from fastgen.models.image_nets import Net

GANLoss = Literal["non_saturating", "minimax", "hinge", "least_squares"]
_LOSSES = ("non_saturating", "minimax", "hinge", "least_squares")


class GAN(Adversarial):
    """A generative adversarial network around your generator and discriminator, or default ones.

    Source: Goodfellow et al., Generative Adversarial Nets, 2014; hinge loss by Lim and Ye,
    Geometric GAN, 2017; least squares by Mao et al., Least Squares Generative Adversarial Networks,
    2017; default networks after Radford et al., Unsupervised Representation Learning with Deep
    Convolutional Generative Adversarial Networks, 2016.

    Args:
        generator: a module, z (B, latent_dim) -> images in [-1, 1], (B, C, H, W) or flat; None for
            the default.
        discriminator: a module, images as floats in [-1, 1] (B, C, H, W) -> (B,) or (B, 1), logits
            (no sigmoid); None for the default.
        loss: "non_saturating", the generator minimises -log D; "minimax", log (1 - D), whose
            gradient vanishes where D is sure; "hinge"; "least_squares".
        shape: (C, H, W) of the images.
        levels: number of values of the images; None for real-valued ones in [-1, 1].
        latent_dim: number of latent variables; default 64, or as many as an image has values where
            these are fewer.
        ema: of the moving average of the generator's weights that samples are made with; None
            keeps no average.
        net: kind of default networks: mlp or conv; default by the size of images.
        width: units of their hidden layers (default 128), or channels at full resolution
            (default 32).
        layers: their hidden layers, of mlp alone (default 3): conv has as many as the size asks.

    ``critic_step(optimizer, images)`` and ``generator_step(optimizer, n)`` are one update each;
    ``critic_loss``, ``generator_loss`` leave the update to you. ``sample(n)``, ``decode(z)``,
    ``interpolate``, ``latent_arithmetic`` -> images; ``latents(n)`` -> z; ``discriminate`` and
    ``score`` -> (B,). Images are integer levels (B, C, H, W); floats are taken to be in [-1, 1].
    """

    _critic_name = "discriminator"

    def __init__(
        self,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        loss: GANLoss = "non_saturating",
        shape: tuple[int, int, int],
        levels: int | None,
        latent_dim: int | None = None,
        ema: float | None = 0.99,
        net: Net | None = None,
        width: int | None = None,
        layers: int | None = None,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(shape, 2 if levels is None else levels)
        self._check_choice("loss", loss, _LOSSES)
        self.loss = loss
        sizes = {"net": net, "width": width, "layers": layers}
        self._configure(
            config,
            generator=lambda: image_generator(self.latent_dim, self.shape, **sizes),
            critic=lambda: image_critic(self.shape, **sizes),
        )

    @property
    def discriminator(self) -> nn.Module:
        """The critic, by the name that it has in the paper."""
        return self.critic
