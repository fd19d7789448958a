"""fastgen: fast, exact kernels for classic deep generative models in PyTorch."""

from fastgen import _backends
from fastgen._backends import backends, use_backend
from fastgen.ops.gated_activation import gated_activation
from fastgen.ops.gated_masked_conv2d import gated_masked_conv2d
from fastgen.ops.masked_conv2d import TapPlan, masked_conv2d

_backends.force_from_environment()

__version__ = "0.1.0"
__all__ = [
    "TapPlan",
    "backends",
    "gated_activation",
    "gated_masked_conv2d",
    "masked_conv2d",
    "use_backend",
]
