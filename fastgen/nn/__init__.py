"""Drop-in layers over the ops of fastgen."""

from fastgen.nn.codebook import Codebook
from fastgen.nn.gated_block import GatedBlock, GatedMaskedConv2d
from fastgen.nn.masked_conv2d import MaskedConv2d

__all__ = ["Codebook", "GatedBlock", "GatedMaskedConv2d", "MaskedConv2d"]
