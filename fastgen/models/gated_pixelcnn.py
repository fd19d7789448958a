"""GatedPixelCNN, of "Conditional Image Generation with PixelCNN Decoders" (2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.autoregressive import Autoregressive
from fastgen.nn import GatedBlock, MaskedConv2d


class GatedPixelCNN(Autoregressive):
    """Vertical and horizontal stacks of gated masked convolutions: no blind spot.

    Source: van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016.

    Args:
        shape: (C, H, W) of the images; C colours are drawn one after the other.
        levels: number of values a code takes.
        channels: of both stacks, a multiple of C; default 64, for colour images 96.
        layers: gated blocks behind the first.
        kernel_size: of these blocks.
        first_kernel_size: of the first block, which reads the image.
        head_channels: between the two 1x1 layers of the head; default 2 * channels.
        embedding: values of a learned vector for each level, for codes without an order, such as
            indices of a codebook; by default a code enters as a number in [-1, 1].
        classes: number of labels; then a condition is int64 labels (B,).
        condition_channels: channels of a condition map (B, condition_channels, H, W); with both,
            a condition is the tuple (labels, map).
        dropout: in each block behind the first.

    ``forward(codes, condition=None)``: int64 (B, C, H, W) in 0 .. levels - 1 to logits
    (B, levels, C, H, W).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        *,
        channels: int | None = None,
        layers: int = 8,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        head_channels: int | None = None,
        embedding: int | None = None,
        classes: int | None = None,
        condition_channels: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(shape, levels, classes, condition_channels)
        colors, inputs = self.shape[0], self.shape[0] * (embedding or 1)
        channels, head_channels = self._configure(
            colors,
            channels=channels,
            head_channels=head_channels,
            layers=layers,
            embedding=embedding,
            kernel_size=kernel_size,
            first_kernel_size=first_kernel_size,
            dropout=dropout,
        )
        conditions = {"classes": classes, "condition_channels": condition_channels}
        self.first = GatedBlock(
            inputs, channels, first_kernel_size, "A", colors=colors, **conditions
        )
        self.blocks = nn.ModuleList(
            GatedBlock(
                channels, channels, kernel_size, "B", colors=colors, dropout=dropout, **conditions
            )
            for _ in range(layers)
        )
        self.head = MaskedConv2d(channels, head_channels, 1, "B", colors)
        self.logits = MaskedConv2d(head_channels, colors * levels, 1, "B", colors)

    def forward(self, codes: Tensor, condition=None) -> Tensor:
        x, condition = self._inputs(codes, condition)
        v, h = self.first(x, x, condition)
        for block in self.blocks:
            v, h = block(v, h, condition)
        y = F.relu(self.head(F.relu(h)))
        return self._logits(self.logits(y))
