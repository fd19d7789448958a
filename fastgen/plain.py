"""The same network without fastgen: the baseline of demo, benchmarks and tests."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.nn import GatedMaskedConv2d, MaskedConv2d


class PlainMaskedConv2d(nn.Conv2d):
    """nn.Conv2d on weight * mask, as most public code writes it; no product where nothing is
    masked."""

    def __init__(self, layer: MaskedConv2d):
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            padding=layer.padding,
            dilation=layer.dilation,
            bias=layer.bias is not None,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        mask = layer.mask
        mask = None if mask.all() else mask.to(layer.weight)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        weight = self.weight if self.mask is None else self.weight * self.mask
        return F.conv2d(x, weight, self.bias, padding=self.padding, dilation=self.dilation)


class PlainGatedMaskedConv2d(PlainMaskedConv2d):
    def forward(self, x, condition=None):
        gated = pre = super().forward(x)
        if condition is not None:
            gated = pre + (condition if condition.dim() == 4 else condition[:, :, None, None])
        a, b = gated.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b), pre


def plain_twin(model: nn.Module, memory_format=torch.channels_last) -> nn.Module:
    """A copy of `model` with plain PyTorch layers in place of fastgen's: equal parameters, equal
    state_dict keys, equal results up to rounding.

    Args:
        model: any module; of its submodules, MaskedConv2d and GatedMaskedConv2d are replaced.
        memory_format: of the twin's weights, and of its activations if it is one of fastgen.models.
    """
    twin = _plain(copy.deepcopy(model))
    if hasattr(twin, "memory_format"):
        twin.memory_format = memory_format
    return twin.to(memory_format=memory_format)


def _plain(module):
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    if isinstance(module, GatedMaskedConv2d):
        return PlainGatedMaskedConv2d(module).train(module.training)
    if isinstance(module, MaskedConv2d):
        return PlainMaskedConv2d(module).train(module.training)
    return module
