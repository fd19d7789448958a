"""Models: one file a family, thin enough to copy."""

from fastgen.models.autoregressive import Autoregressive
from fastgen.models.gated_pixelcnn import GatedPixelCNN
from fastgen.models.pixelcnn import PixelCNN
from fastgen.models.vqvae import VQVAE
from fastgen.models.vqvae2 import VQVAE2

MODELS = {
    "pixelcnn": PixelCNN,
    "gated-pixelcnn": GatedPixelCNN,
    "vqvae": VQVAE,
    "vqvae2": VQVAE2,
}

__all__ = ["MODELS", "VQVAE", "VQVAE2", "Autoregressive", "GatedPixelCNN", "PixelCNN"]
