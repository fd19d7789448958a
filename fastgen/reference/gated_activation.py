"""gated_activation in plain PyTorch."""

import torch

from fastgen.reference.memory_format import in_format_of


def _tanh_and_sigmoid(x, condition):
    """tanh of the first half of the channels, sigmoid of the second, in at least float32."""
    h = x if x.dtype == torch.float64 else x.float()
    if condition is not None:
        h = h + condition.reshape(condition.shape + (1,) * (x.dim() - condition.dim())).to(h.dtype)
    a, b = h.chunk(2, dim=1)
    return torch.tanh(a), torch.sigmoid(b)


def gated_activation(x, condition):
    t, s = _tanh_and_sigmoid(x, condition)
    return in_format_of(t * s, x)


def gated_activation_backward(grad, x, condition, needs_condition):
    t, s = _tanh_and_sigmoid(x, condition)
    g = grad.to(t.dtype)
    grad_x = torch.cat([g * (1 - t * t) * s, g * t * s * (1 - s)], dim=1)
    if needs_condition:
        grad_condition = grad_x.sum(tuple(range(2, x.dim()))).to(x.dtype)
    else:
        grad_condition = x.new_empty(0)
    return in_format_of(grad_x, x), grad_condition
