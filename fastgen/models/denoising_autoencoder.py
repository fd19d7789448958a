"""DenoisingAutoencoder: the clean image from a noisy one."""

import math
import numbers
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastgen.models.autoencoder import Autoencoder
from fastgen.models.image_nets import Net
from fastgen.ops.add_noise import add_noise


class DenoisingOutput(NamedTuple):
    """recon, z, loss as of `AutoencoderOutput`, the loss against the clean image; noisy: what the
    encoder saw, (B, C, H, W)."""

    recon: Tensor
    z: Tensor
    loss: Tensor
    noisy: Tensor


class DenoisingAutoencoder(Autoencoder):
    """An autoencoder that sees images with noise and is to give back the clean ones.

    Noise comes from `fastgen.add_noise` on images in [0, 1]: mask puts values to 0, salt_pepper to
    0 or 1, gaussian adds to them. `forward` is the training: it adds noise, in eval mode too.
    `denoise` is given images that have noise already; `encode`, `reconstruct` and `score` take
    images as they are.

    Source: Vincent et al., Stacked Denoising Autoencoders, 2010.

    Args:
        encoder: a module (B, C, H, W) -> (B, latent_dim); default `image_encoder`.
        decoder: a module (B, latent_dim) -> (B, C, H, W); default `image_decoder`.
        latent_dim: how many numbers an image goes through.
        shape: (C, H, W) of the images.
        levels: number of values of the images.
        noise: mask, gaussian or salt_pepper.
        amount: the share of values that are replaced, or the standard deviation of gaussian.
        net: of the default pair: mlp, or conv for larger images.
        width: of the default pair: hidden units (default 256), or channels (default 64).
        layers: of the default pair: hidden layers, or residual blocks.
    """

    psnr_names = ("noisy_psnr", "psnr")

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        latent_dim: int = 32,
        *,
        shape: tuple[int, int, int],
        levels: int = 256,
        noise: Literal["mask", "gaussian", "salt_pepper"] = "mask",
        amount: float = 0.25,
        net: Net | None = None,
        width: int | None = None,
        layers: int = 2,
    ):
        super().__init__(
            encoder,
            decoder,
            latent_dim,
            shape=shape,
            levels=levels,
            net=net,
            width=width,
            layers=layers,
        )
        self._check_noise(noise, amount)
        del self.config["linear"]
        self.noise, self.amount = noise, amount
        self.config |= {"noise": noise, "amount": amount}

    def forward(self, images: Tensor, *, seed: int | None = None) -> DenoisingOutput:
        """seed: of the noise; default from the default generator."""
        x = self.scaled(images)
        noisy = self._noisy(x, seed=seed)
        return DenoisingOutput(*self._output(noisy, x), noisy)

    @torch.no_grad()
    def corrupt(
        self,
        images: Tensor,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) with the noise of the training: floats (B, C, H, W), clean values in
        [0, 1]."""
        return self._noisy(self.scaled(images), seed=seed, generator=generator)

    def denoise(self, images: Tensor) -> Tensor:
        """Noisy images (B, C, H, W), int64 levels or floats as `corrupt` gives them -> clean ones,
        int64 (B, C, H, W)."""
        return self.reconstruct(images)

    def comparison(self, images: Tensor) -> dict[str, Tensor]:
        """Images, the same with noise (of a fixed seed), and denoised: int64 (B, C, H, W) each."""
        noisy = self.corrupt(images, seed=0)
        return {
            "clean": images,
            "noisy": self.levelled(noisy),
            "denoised": self.denoise(noisy),
        }

    def _noisy(self, x: Tensor, **source) -> Tensor:
        return add_noise(x, self.noise, self.amount, **source)

    def _check_noise(self, noise, amount) -> None:
        kinds = ("mask", "gaussian", "salt_pepper")
        if noise not in kinds:
            self._refuse("noise", f"must be one of {', '.join(kinds)}", repr(noise), "choose one")
        most = math.inf if noise == "gaussian" else 1
        is_number = isinstance(amount, numbers.Real) and not isinstance(amount, bool)
        if not is_number or not 0 <= amount <= most or math.isinf(amount):
            expected = "a finite number >= 0" if noise == "gaussian" else "in [0, 1]"
            self._refuse("amount", f"must be {expected} for {noise}", repr(amount), "use 0.25")
