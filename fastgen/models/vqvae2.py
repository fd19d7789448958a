"""VQVAE2, of "Generating Diverse High-Fidelity Images with VQ-VAE-2" (2019)."""

import torch
from torch import nn

from fastgen.models.quantized_autoencoder import QuantizedAutoencoder
from fastgen.models.residual import decoder, encoder


class VQVAE2(QuantizedAutoencoder):
    """A VQ-VAE of two maps of codes: the top one holds what is large, the bottom one the details
    that are left; each has a gated PixelCNN, the lower one conditioned on the upper codes.

    Source: Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019, section 3.

    Args:
        shape: (C, H, W) of the images; 2 `downsample` divides H and W.
        levels: number of values of the images.
        channels: of encoders and decoders.
        blocks: residual blocks in each of them.
        downsample: how many times smaller the bottom map is than the image in height and width:
            2, 4, ...; the top map is smaller by another 2.
        num_codes: size of each codebook.
        code_dim: values of a code.
        beta: weight of the commitment.
        ema: codes are moving averages; otherwise they are trained by gradient.
        decay: of the moving averages.
        revive_below: codes chosen less than this times the equal share become random vectors of the
            batch; 0 never.
        prior_channels, prior_layers: of the priors, gated PixelCNNs.
        dropout: in the priors.
        classes: number of labels; then the priors are given them, int64 (B,).

    ``forward(images)``: int64 (B, C, H, W) to the reconstruction in [-1, 1] and the codebooks'
    loss; ``encode(images)`` to codes (top, bottom), int64 (B, h / 2, w / 2) and (B, h, w) with
    h = H / downsample; ``decode((top, bottom))``, ``reconstruct(images)`` and
    ``sample(n, labels)`` to images.
    """

    names = ("top", "bottom")

    def _build(self, channels, blocks, code_dim):
        self.bottom_encoder = encoder(self.shape[0], channels, blocks, self.halvings)
        self.top_encoder = nn.Sequential(
            encoder(channels, channels, blocks, 1), nn.Conv2d(channels, code_dim, 1)
        )
        # what the top codes tell about the bottom, before those are chosen
        self.top_decoder = decoder(code_dim, code_dim, channels, blocks, 1)
        self.to_bottom = nn.Conv2d(channels + code_dim, code_dim, 1)
        self.enlarge = nn.ConvTranspose2d(code_dim, code_dim, 4, stride=2, padding=1)
        self.decoder = decoder(2 * code_dim, self.shape[0], channels, blocks, self.halvings)

    def _quantized(self, x):
        features = self.bottom_encoder(x)
        top, _, top_loss = self.codebooks[0](self.top_encoder(features))
        bottom, _, bottom_loss = self.codebooks[1](self._details(features, top))
        return [top, bottom], top_loss + bottom_loss

    def _indices(self, x):
        features = self.bottom_encoder(x)
        top = self.codebooks[0].encode(self.top_encoder(features))
        details = self._details(features, self.codebooks[0].decode(top))
        return top, self.codebooks[1].encode(details)

    def _details(self, features, top):
        return self.to_bottom(torch.cat([features, self.top_decoder(top)], 1))

    def _decoded(self, top, bottom):
        return self.decoder(torch.cat([self.enlarge(top), bottom], 1))
