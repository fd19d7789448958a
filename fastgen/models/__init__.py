"""Models: one file a family, thin enough to copy."""

from fastgen.models.autoencoder import Autoencoder
from fastgen.models.autoregressive import Autoregressive
from fastgen.models.conditional_vae import ConditionalVAE
from fastgen.models.denoising_autoencoder import DenoisingAutoencoder
from fastgen.models.gated_pixelcnn import GatedPixelCNN
from fastgen.models.pixelcnn import PixelCNN
from fastgen.models.vae import VAE
from fastgen.models.vqvae import VQVAE
from fastgen.models.vqvae2 import VQVAE2

MODELS = {
    "pixelcnn": PixelCNN,
    "gated-pixelcnn": GatedPixelCNN,
    "autoencoder": Autoencoder,
    "denoising-autoencoder": DenoisingAutoencoder,
    "vae": VAE,
    "conditional-vae": ConditionalVAE,
    "vqvae": VQVAE,
    "vqvae2": VQVAE2,
}

__all__ = [
    "MODELS",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "Autoencoder",
    "Autoregressive",
    "ConditionalVAE",
    "DenoisingAutoencoder",
    "GatedPixelCNN",
    "PixelCNN",
]
