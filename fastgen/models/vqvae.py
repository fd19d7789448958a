"""VQVAE, of "Neural Discrete Representation Learning" (2017)."""

from torch import nn

from fastgen.models.quantized_autoencoder import QuantizedAutoencoder
from fastgen.models.residual import decoder, encoder


class VQVAE(QuantizedAutoencoder):
    """A convolutional autoencoder through one map of codebook indices, and a gated PixelCNN that
    learns how these maps look.

    Source: van den Oord et al., Neural Discrete Representation Learning, 2017, sections 3 and 4.1.

    Args:
        shape: (C, H, W) of the images; `downsample` divides H and W.
        levels: number of values of the images.
        channels: of encoder and decoder.
        blocks: residual blocks in each of them.
        downsample: how many times smaller the map is than the image in height and width: 2, 4, ...
        num_codes: size of the codebook.
        code_dim: values of a code.
        beta: weight of the commitment.
        ema: codes are moving averages; otherwise they are trained by gradient.
        decay: of the moving averages.
        revive_below: codes chosen less than this times the equal share become random vectors of the
            batch; 0 never.
        prior_channels, prior_layers: of the prior, a gated PixelCNN.
        dropout: in the prior.
        classes: number of labels; then the prior is given them, int64 (B,).

    ``forward(images)``: int64 (B, C, H, W) to the reconstruction in [-1, 1] and the codebook's
    loss; ``encode(images)`` to codes int64 (B, H / downsample, W / downsample), ``decode(codes)``,
    ``reconstruct(images)`` and ``sample(n, labels)`` to images.
    """

    names = ("codes",)

    def _build(self, channels, blocks, code_dim):
        self.encoder = nn.Sequential(
            encoder(self.shape[0], channels, blocks, self.halvings),
            nn.Conv2d(channels, code_dim, 1),
        )
        self.decoder = decoder(code_dim, self.shape[0], channels, blocks, self.halvings)

    def _quantized(self, x):
        vectors, _, loss = self.codebooks[0](self.encoder(x))
        return [vectors], loss

    def _indices(self, x):
        return (self.codebooks[0].encode(self.encoder(x)),)

    def _decoded(self, vectors):
        return self.decoder(vectors)
