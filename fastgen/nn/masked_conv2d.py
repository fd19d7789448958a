"""MaskedConv2d: an nn.Conv2d that sees only what a generation order allows."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from fastgen.ops.masked_conv2d import TapPlan, masked_conv2d

MASK_TYPES = ("A", "B", "VA", "VB", "HA", "HB")
COLOR_ORDERS = ("blocks", "interleaved")


def color_of_channels(channels: int, colors: int, color_order: str) -> Tensor:
    """int64 (channels,): the colour each channel belongs to."""
    channel = torch.arange(channels, device="cpu")
    return channel * colors // channels if color_order == "blocks" else channel % colors


def causal_mask(mask_type: str, kernel_size, out_color: Tensor, in_color: Tensor) -> Tensor:
    """bool (out, in, kh, kw), True where a weight takes part; see MaskedConv2d for the types."""
    height, width = kernel_size
    row, column = height // 2, width // 2
    mask = torch.zeros(len(out_color), len(in_color), height, width, dtype=torch.bool, device="cpu")
    if not mask_type.startswith("H"):
        mask[:, :, :row] = True
    if mask_type == "VB":
        mask[:, :, row] = True
    if not mask_type.startswith("V"):
        mask[:, :, row, :column] = True
        earlier = in_color < out_color[:, None]
        own = in_color == out_color[:, None]
        mask[:, :, row, column] = earlier | own if mask_type.endswith("B") else earlier
    return mask


class MaskedConv2d(nn.Conv2d):
    """A causal convolution at the cost of its unmasked taps; otherwise an `nn.Conv2d` with stride 1
    and "same" zero padding: same parameters, initialisation and state_dict keys.

    What position (i, j) sees, by `mask_type`:

    - ``"A"``, ``"B"``: rows above and the own row to the left, in raster order; "B" also (i, j).
    - ``"VA"``, ``"VB"``: the vertical stack of a gated PixelCNN. Rows above, all columns of the
      kernel; "VB" also the whole row i, which in a vertical stack knows only rows above.
    - ``"HA"``, ``"HB"``: the horizontal stack. The own row to the left; "HB" also (i, j).

    At (i, j) itself, channels of colour c see colours < c (A, HA) or <= c (B, HB). Everywhere else
    all colours are seen; so they are by "VA" and "VB".

    Args:
        in_channels, out_channels: multiples of `colors`.
        kernel_size: odd, or a pair of odd numbers.
        mask_type: one of the six above. "A" types are for the first layer, which reads the image.
        colors: number of colours generated one after the other, 1 if they are not.
        color_order: channel o has colour ``o * colors // channels`` ("blocks") or ``o % colors``
            ("interleaved").
        dilation, bias, device, dtype: as in nn.Conv2d.

    Shapes: (B, in_channels, H, W) or (in_channels, H, W) to (B, out_channels, H, W) or
    (out_channels, H, W).

    Checkpoints: weights of masked taps are kept bit for bit and take no part. A `mask` entry, as
    most public code stores one, is compared with the layer's own mask and dropped; a difference is
    a RuntimeError from `load_state_dict` that names the mask type or colour order that fits.

    Source: van den Oord et al., Pixel Recurrent Neural Networks, 2016, figure 2 (A, B); Conditional
    Image Generation with PixelCNN Decoders, 2016, figure 2 (V, H).
    """

    _out_groups = 1  # equal runs of output channels that each hold all colours

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask_type: str,
        colors: int = 1,
        color_order: str = "blocks",
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        device=None,
        dtype=None,
    ):
        kernel_size, dilation = _pair(kernel_size), _pair(dilation)
        self._check_arguments(
            in_channels, out_channels, kernel_size, mask_type, colors, color_order, dilation
        )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            padding=tuple(d * (k // 2) for d, k in zip(dilation, kernel_size, strict=True)),
            dilation=dilation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.mask_type, self.colors, self.color_order = mask_type, colors, color_order
        self._plan = TapPlan(self.mask, self.weight.shape)

    def _check_arguments(
        self, in_channels, out_channels, kernel_size, mask_type, colors, color_order, dilation
    ):
        def refuse(argument, expected, got, remedy):
            name = type(self).__name__
            raise ValueError(f"fastgen.nn.{name}: {argument} {expected}, got {got}; {remedy}")

        if mask_type not in MASK_TYPES:
            refuse(
                "mask_type",
                f"must be one of {', '.join(MASK_TYPES)}",
                repr(mask_type),
                "use 'A' for the first layer and 'B' behind it",
            )
        if color_order not in COLOR_ORDERS:
            refuse(
                "color_order",
                "must be 'blocks' or 'interleaved'",
                repr(color_order),
                "'blocks' puts the channels of one colour side by side",
            )
        if len(kernel_size) != 2 or any(k < 1 or k % 2 == 0 for k in kernel_size):
            refuse("kernel_size", "must be odd", kernel_size, "only an odd kernel has a centre")
        if len(dilation) != 2 or any(d < 1 for d in dilation):
            refuse("dilation", "must be at least 1", dilation, "1 is an ordinary convolution")
        if colors < 1:
            refuse("colors", "must be at least 1", colors, "use 1 where colours take no turns")
        for argument, channels in (
            ("in_channels", in_channels),
            ("out_channels", out_channels // self._out_groups),
        ):
            if channels < 1 or channels % colors:
                refuse(
                    argument,
                    f"must be a positive multiple of colors={colors}",
                    channels,
                    f"use {max(1, round(channels / colors)) * colors}",
                )

    @property
    def mask(self) -> Tensor:
        """bool (out, in, kh, kw) on the CPU: True where a weight takes part."""
        return self._mask_for(self.mask_type, self.colors, self.color_order)

    def _mask_for(self, mask_type, colors, color_order):
        groups = self._out_groups
        out_color = color_of_channels(self.out_channels // groups, colors, color_order)
        in_color = color_of_channels(self.in_channels, colors, color_order)
        return causal_mask(mask_type, self.kernel_size, out_color.repeat(groups), in_color)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        return masked_conv2d(x, self.weight, self.bias, mask=self._plan, dilation=self.dilation)

    def extra_repr(self) -> str:
        colors = f", colors={self.colors}, color_order={self.color_order!r}"
        masking = f", mask_type={self.mask_type!r}" + (colors if self.colors > 1 else "")
        return super().extra_repr() + masking

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, extra, errors):
        stored = state_dict.pop(prefix + "mask", None)
        if stored is not None and not _same_mask(stored, self.mask):
            errors.append(
                f"fastgen.nn.{type(self).__name__}: {prefix}mask must be the layer's own, "
                f"mask_type={self.mask_type!r}, colors={self.colors}, "
                f"color_order={self.color_order!r}, got another; {self._what_fits(stored)}"
            )
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, extra, errors)

    def _what_fits(self, stored):
        """The remedy for a foreign mask, found by trying every mask this layer could have."""
        channels = (self.in_channels, self.out_channels // self._out_groups)
        for colors in dict.fromkeys((self.colors, 1, 3)):
            if any(c % colors for c in channels):
                continue
            for color_order in COLOR_ORDERS if colors > 1 else (self.color_order,):
                for mask_type in (self.mask_type, *MASK_TYPES):
                    if _same_mask(stored, self._mask_for(mask_type, colors, color_order)):
                        return (
                            f"it fits mask_type={mask_type!r}, colors={colors}, "
                            f"color_order={color_order!r}: build the layer with these"
                        )
        return "no mask type and colour order gives it; use fastgen.masked_conv2d with that mask"

    def to_peer_state_dict(self) -> "OrderedDict[str, Tensor]":
        """`state_dict()` plus a `mask` entry (0/1, the weight's shape and dtype), as layers that
        multiply their weight by a mask buffer store it. `load_state_dict` takes it back."""
        state = OrderedDict(self.state_dict())
        state["mask"] = self.mask.to(self.weight)
        return state


def _same_mask(stored, mask):
    stored = stored.detach().cpu() != 0
    try:
        return torch.equal(stored.expand(mask.shape), mask)
    except RuntimeError:  # does not broadcast
        return False
