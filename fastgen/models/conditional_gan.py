"""ConditionalGAN: a GAN of images given their labels."""

from typing import Literal

from torch import nn

from fastgen.models.gan import _LOSSES, GAN, GANLoss
from fastgen.models.gan_nets import image_critic, image_generator
from fastgen.models.image_nets import Net


class ConditionalGAN(GAN):
    """A GAN whose generator and discriminator are given the label y.

    Source: Mirza and Osindero, Conditional Generative Adversarial Nets, 2014; projection by Miyato
    and Koyama, cGANs with Projection Discriminator, 2018.

    Args:
        generator: a module, (z (B, latent_dim), labels int64 (B,)) -> as that of `GAN`.
        discriminator: a module, (images as floats in [-1, 1], labels) -> as that of `GAN`.
        loss: as that of `GAN`.
        shape, levels: of the images, as those of `GAN`.
        classes: number of labels.
        conditioning: how labels enter the default discriminator: "concat", their embedding is one
            more channel of the image; "projection", its inner product with the last features is
            added. The default generator has an embedding joined to z.
        latent_dim: number of latent variables; default 64, or as many as an image has values where
            these are fewer.
        ema: of the moving average of the generator's weights that samples are made with; None
            keeps no average.
        net: kind of default networks: mlp or conv; default by the size of images.
        width: units of their hidden layers (default 128), or channels at full resolution
            (default 32).
        layers: their hidden layers, of mlp alone (default 3): conv has as many as the size asks.

    Methods are those of `GAN`, with labels as the argument `condition` (of `sample` also y).
    """

    def __init__(
        self,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        loss: GANLoss = "non_saturating",
        shape: tuple[int, int, int],
        levels: int | None,
        classes: int | None,
        conditioning: Literal["concat", "projection"] = "concat",
        latent_dim: int | None = None,
        ema: float | None = 0.99,
        net: Net | None = None,
        width: int | None = None,
        layers: int | None = None,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super(GAN, self).__init__(shape, 2 if levels is None else levels, classes)
        if classes is None:
            remedy = "give images with labels, or train a GAN"
            self._refuse("classes", "must be the number of labels", None, remedy)
        self._check_choice("loss", loss, _LOSSES)
        self._check_choice("conditioning", conditioning, ("concat", "projection"))
        self.loss = loss
        sizes = {"net": net, "width": width, "layers": layers, "classes": classes}
        self._configure(
            config,
            generator=lambda: image_generator(self.latent_dim, self.shape, **sizes),
            critic=lambda: image_critic(self.shape, conditioning=conditioning, **sizes),
        )
