"""gated_masked_conv2d in plain PyTorch: a masked convolution, then a gated activation."""

from fastgen.reference.gated_activation import gated_activation, gated_activation_backward
from fastgen.reference.masked_conv2d import masked_conv2d


def gated_masked_conv2d(x, weight, bias, condition, taps, partial, dilation):
    pre = masked_conv2d(x, weight, bias, taps, partial, dilation)
    return gated_activation(pre, condition), pre


def gated_masked_conv2d_backward(grad_y, grad_pre, pre, condition, needs_condition):
    through_gate, grad_condition = gated_activation_backward(
        grad_y, pre, condition, needs_condition
    )
    return through_gate if grad_pre is None else through_gate + grad_pre, grad_condition
