"""GatedBlock: one layer of a gated PixelCNN, without a blind spot."""

from torch import Tensor, nn

from fastgen.nn.masked_conv2d import MaskedConv2d
from fastgen.ops.gated_masked_conv2d import gated_masked_conv2d


class GatedMaskedConv2d(MaskedConv2d):
    """A masked convolution to twice `out_channels` and the gate ``tanh(a) * sigmoid(b)`` over its
    two halves, in one call.

    Each half holds all colours in `color_order`, so that a gate never joins channels of different
    colours. Arguments and checkpoints are those of `MaskedConv2d`; the weight is
    (2 * out_channels, in_channels, kh, kw).

    ``forward(x, condition=None)`` takes (B, in_channels, H, W) and a condition, of shape
    (B, 2 * out_channels) or (B, 2 * out_channels, H, W), that joins inside the gate. It returns
    ``(y, pre)``: (B, out_channels, H, W), and the convolution's result before condition and gate.
    """

    _out_groups = 2

    def __init__(self, in_channels, out_channels, kernel_size, mask_type, *args, **kwargs):
        super().__init__(in_channels, 2 * out_channels, kernel_size, mask_type, *args, **kwargs)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return gated_masked_conv2d(
            x, self.weight, self.bias, condition, mask=self._plan, dilation=self.dilation
        )


class ConditionTerm(nn.Module):
    """What a condition adds inside a gate: a learned vector per class, a 1x1 projection of a
    feature map, or their sum.

    Args:
        channels: C, of the result.
        classes: number of labels, or None.
        condition_channels: channels of the feature map, or None.

    ``forward(condition)`` takes what there is: labels int64 (B,), a map
    (B, condition_channels, H, W), or both as (labels, map). It returns (B, C) for labels alone,
    (B, C, H, W) with a map, None if neither was asked for.
    """

    def __init__(self, channels, classes=None, condition_channels=None, device=None, dtype=None):
        super().__init__()
        placed = {"device": device, "dtype": dtype}
        self.label = self.map = None
        if classes is not None:
            self.label = nn.Embedding(classes, channels, **placed)
            # as nn.Linear on one-hot labels; nn.Embedding's N(0, 1) would saturate the gates
            nn.init.uniform_(self.label.weight, -(classes**-0.5), classes**-0.5)
        if condition_channels is not None:
            self.map = MaskedConv2d(condition_channels, channels, 1, "B", bias=False, **placed)

    def forward(self, condition) -> Tensor | None:
        if self.label is None and self.map is None:
            return None
        if self.map is None:
            return self.label(condition)
        if self.label is None:
            return self.map(condition)
        labels, features = condition
        return self.map(features) + self.label(labels)[:, :, None, None]


class GatedBlock(nn.Module):
    """One layer of a gated PixelCNN: a vertical stack that knows all rows above, a horizontal one
    that knows the own row to the left, and a 1x1 link from the first to the second.

    ``forward(v, h, condition=None) -> (v, h)``::

        v_pre = conv_v(v)                                    # mask VA or VB
        v     = gate(v_pre + term(condition))
        h_pre = conv_h(h) + link(v_pre) + term(condition)    # mask HA or HB
        h     = h + out(dropout(gate(h_pre)))                # the first block has no "h +"

    The first block reads the image twice, ``block(x, x)``, and has `mask_type` "A". v carries all
    colours of the rows above; h carries the colours of its own pixel, and there colour c sees
    colours < c of the image and no other.

    Args:
        in_channels: channels of v and h; `out_channels` unless `mask_type` is "A".
        out_channels: channels of the results; both are multiples of `colors`.
        kernel_size: k or (kh, kw), odd; the horizontal stack uses (1, kw).
        mask_type: "A" for the first block of a network, "B" for all others.
        colors, color_order, dilation: as in `MaskedConv2d`.
        classes: number of labels, for a condition int64 (B,).
        condition_channels: channels of a condition map (B, condition_channels, H, W). With both,
            the condition is the tuple (labels, map).
        dropout: probability, on the gated values of the horizontal stack.
        device, dtype: of the parameters.

    Shapes: v and h (B, in_channels, H, W) to (B, out_channels, H, W). Channels-last inputs are the
    fast ones, and stay channels-last.

    Source: van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016,
    figure 2 and equations 2 to 4.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        mask_type: str = "B",
        *,
        colors: int = 1,
        color_order: str = "blocks",
        dilation: int | tuple[int, int] = 1,
        classes: int | None = None,
        condition_channels: int | None = None,
        dropout: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if mask_type not in ("A", "B"):
            raise ValueError(
                f"fastgen.nn.GatedBlock: mask_type must be 'A' or 'B', got {mask_type!r}; "
                "use 'A' for the first block and 'B' behind it"
            )
        if mask_type == "B" and in_channels != out_channels:
            raise ValueError(
                f"fastgen.nn.GatedBlock: in_channels must equal out_channels={out_channels}, got "
                f"{in_channels}; the residual sum needs it (only the 'A' block has none)"
            )
        height, width = nn.modules.utils._pair(kernel_size)
        placed = {"device": device, "dtype": dtype}
        colored = {"colors": colors, "color_order": color_order, **placed}
        self.mask_type = mask_type
        self.term = ConditionTerm(2 * out_channels, classes, condition_channels, **placed)
        self.vertical = GatedMaskedConv2d(
            in_channels, out_channels, (height, width), f"V{mask_type}", dilation=dilation, **placed
        )
        self.link = MaskedConv2d(2 * out_channels, 2 * out_channels, 1, "B", **placed)
        self.horizontal = GatedMaskedConv2d(
            in_channels, out_channels, (1, width), f"H{mask_type}", dilation=dilation, **colored
        )
        self.dropout = nn.Dropout(dropout)
        self.out = MaskedConv2d(out_channels, out_channels, 1, "B", **colored)

    def forward(self, v: Tensor, h: Tensor, condition=None) -> tuple[Tensor, Tensor]:
        term = self.term(condition)
        v, pre = self.vertical(v, term)
        above = self.link(pre)
        if term is not None:
            above = above + (term if term.dim() == 4 else term[:, :, None, None])
        y, _ = self.horizontal(h, above)
        y = self.out(self.dropout(y))
        return v, y if self.mask_type == "A" else h + y
