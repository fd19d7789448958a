"""CodePrior: what a map of codebook indices is likely to be, given the map above it."""

import torch
from torch import Tensor, nn

from fastgen.models.gated_pixelcnn import GatedPixelCNN
from fastgen.models.residual import ResidualBlock

_EMBEDDING = 16  # values of a code where it enters


class CodePrior(nn.Module):
    """p(codes | upper codes, label) of a map of indices, by a gated PixelCNN.

    Args:
        shape: (h, w) of the map.
        num_codes: of its codebook.
        upper_codes: number of codes of the map above, of half the height and width; None for the
            uppermost map.
        channels, layers, dropout, classes: of the `GatedPixelCNN`.

    A map above is embedded code by code, seen by residual blocks and doubled in size; what comes
    out is the PixelCNN's condition map.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        num_codes: int,
        *,
        upper_codes: int | None = None,
        channels: int = 48,
        layers: int = 5,
        dropout: float = 0.0,
        classes: int | None = None,
    ):
        super().__init__()
        self.condition = None
        if upper_codes is not None:
            self.embedding = nn.Embedding(upper_codes, channels)
            self.condition = nn.Sequential(
                *(ResidualBlock(channels, channels) for _ in range(2)),
                nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1),
            )
        self.network = GatedPixelCNN(
            (1, *shape),
            num_codes,
            channels=channels,
            layers=layers,
            first_kernel_size=5,
            embedding=_EMBEDDING,
            dropout=dropout,
            classes=classes,
            condition_channels=None if upper_codes is None else channels,
        )

    def log_prob(self, codes: Tensor, upper: Tensor | None, labels: Tensor | None) -> Tensor:
        """Nats, (B,), of codes int64 (B, h, w), with upper codes int64 (B, h / 2, w / 2)."""
        features = None if self.condition is None else self._features(upper)
        return self.network.log_prob(codes.unsqueeze(1), _joined(labels, features))

    def sample(self, n: int, upper: Tensor | None, labels: Tensor | None, **options) -> Tensor:
        """n maps, int64 (n, h, w); options as of `Autoregressive.sample`."""
        features = None if self.condition is None else one_by_one(self._features, upper)
        return self.network.sample(n, _joined(labels, features), **options).squeeze(1)

    def _features(self, upper: Tensor) -> Tensor:
        return self.condition(self.embedding(upper).movedim(-1, 1))


def one_by_one(function, images: Tensor, *others: Tensor) -> Tensor:
    """`function` of each image alone: in a batch of another size a convolution rounds otherwise,
    and image i of a seed shall not depend on how many are drawn with it."""
    each = [function(*one) for one in zip(*(t.split(1) for t in (images, *others)), strict=True)]
    return torch.cat(each)


def _joined(labels: Tensor | None, features: Tensor | None):
    """The condition of a `GatedPixelCNN`."""
    if labels is None or features is None:
        return features if labels is None else labels
    return labels, features
