"""PixelCNN, of "Pixel Recurrent Neural Networks" (2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.autoregressive import Autoregressive
from fastgen.nn import MaskedConv2d
from fastgen.nn.gated_block import ConditionTerm


class ResidualBlock(nn.Module):
    """x + 1x1(relu(kxk(relu(1x1(relu(x)))) + term(condition))), all with mask B; half as many
    channels inside."""

    def __init__(self, channels, kernel_size, colors, classes, condition_channels, dropout):
        super().__init__()
        half = channels // 2
        self.reduce = MaskedConv2d(channels, half, 1, "B", colors)
        self.spatial = MaskedConv2d(half, half, kernel_size, "B", colors)
        self.term = ConditionTerm(half, classes, condition_channels)
        self.dropout = nn.Dropout(dropout)
        self.expand = MaskedConv2d(half, channels, 1, "B", colors)

    def forward(self, x: Tensor, condition=None) -> Tensor:
        y = self.spatial(F.relu(self.reduce(F.relu(x))))
        term = self.term(condition)
        if term is not None:
            y = y + (term if term.dim() == 4 else term[:, :, None, None])
        return x + self.expand(self.dropout(F.relu(y)))


class PixelCNN(Autoregressive):
    """One stack of masked convolutions: a 7x7 with mask A, residual blocks and two 1x1 layers with
    mask B. Simple, with the blind spot to the right that `GatedPixelCNN` does away with.

    Source: van den Oord et al., Pixel Recurrent Neural Networks, 2016, section 3.5 and table 1.

    Args:
        shape: (C, H, W) of the images; C colours are drawn one after the other.
        levels: number of values a code takes.
        channels: of the residual stream (2h in the paper), a multiple of 2 C; default 64, for
            colour images 96.
        layers: residual blocks.
        kernel_size: of these blocks.
        first_kernel_size: of the first convolution, which reads the image.
        head_channels: of the two 1x1 layers behind the blocks; default 2 * channels.
        embedding: values of a learned vector for each level, for codes without an order, such as
            indices of a codebook; by default a code enters as a number in [-1, 1].
        classes: number of labels; then a condition is int64 labels (B,).
        condition_channels: channels of a condition map (B, condition_channels, H, W); with both,
            a condition is the tuple (labels, map).
        dropout: in each block.

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
            2 * colors,
            channels=channels,
            head_channels=head_channels,
            layers=layers,
            embedding=embedding,
            kernel_size=kernel_size,
            first_kernel_size=first_kernel_size,
            dropout=dropout,
        )
        self.first = MaskedConv2d(inputs, channels, first_kernel_size, "A", colors)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, kernel_size, colors, classes, condition_channels, dropout)
            for _ in range(layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            MaskedConv2d(channels, head_channels, 1, "B", colors),
            nn.ReLU(),
            MaskedConv2d(head_channels, head_channels, 1, "B", colors),
            nn.ReLU(),
            MaskedConv2d(head_channels, colors * levels, 1, "B", colors),
        )

    def forward(self, codes: Tensor, condition=None) -> Tensor:
        x, condition = self._inputs(codes, condition)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, condition)
        return self._logits(self.head(x))
