"""Drop-in layers over the ops of fastgen."""

from fastgen.nn.codebook import Codebook
from fastgen.nn.gated_block import GatedBlock, GatedMaskedConv2d
from fastgen.nn.grouped_residual_vq import GroupedResidualVQ
from fastgen.nn.masked_conv2d import MaskedConv2d
from fastgen.nn.residual_vq import ResidualVQ
from fastgen.nn.vector_quantize import VectorQuantize

__all__ = [
    "Codebook",
    "GatedBlock",
    "GatedMaskedConv2d",
    "GroupedResidualVQ",
    "MaskedConv2d",
    "ResidualVQ",
    "VectorQuantize",
]
