"""Models: one file a family, thin enough to copy."""

from fastgen.models.autoencoder import Autoencoder
from fastgen.models.autoregressive import Autoregressive
from fastgen.models.conditional_gan import ConditionalGAN
from fastgen.models.conditional_vae import ConditionalVAE
from fastgen.models.denoising_autoencoder import DenoisingAutoencoder
from fastgen.models.gan import GAN
from fastgen.models.gated_pixelcnn import GatedPixelCNN
from fastgen.models.pixelcnn import PixelCNN
from fastgen.models.vae import VAE
from fastgen.models.vqvae import VQVAE
from fastgen.models.vqvae2 import VQVAE2
from fastgen.models.wgan import WGAN

MODELS = {
    "pixelcnn": PixelCNN,
    "gated-pixelcnn": GatedPixelCNN,
    "autoencoder": Autoencoder,
    "denoising-autoencoder": DenoisingAutoencoder,
    "vae": VAE,
    "conditional-vae": ConditionalVAE,
    "vqvae": VQVAE,
    "vqvae2": VQVAE2,
    "gan": GAN,
    "wgan": WGAN,
    "conditional-gan": ConditionalGAN,
}

__all__ = [
    "GAN",
    "MODELS",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "WGAN",
    "Autoencoder",
    "Autoregressive",
    "ConditionalGAN",
    "ConditionalVAE",
    "DenoisingAutoencoder",
    "GatedPixelCNN",
    "PixelCNN",
]
