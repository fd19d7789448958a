"""Models: one file a family, thin enough to copy."""

from fastgen.models.autoregressive import Autoregressive
from fastgen.models.gated_pixelcnn import GatedPixelCNN
from fastgen.models.pixelcnn import PixelCNN

MODELS = {"pixelcnn": PixelCNN, "gated-pixelcnn": GatedPixelCNN}

__all__ = ["MODELS", "Autoregressive", "GatedPixelCNN", "PixelCNN"]
