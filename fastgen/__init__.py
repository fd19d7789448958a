"""fastgen: fast, exact kernels for classic deep generative models in PyTorch."""

import importlib as _importlib

from fastgen import _backends
from fastgen._backends import backends, use_backend
from fastgen.ops.adam_clip_ import adam_clip_
from fastgen.ops.add_noise import add_noise
from fastgen.ops.bernoulli_nll import bernoulli_nll
from fastgen.ops.clip_weights_ import clip_weights_
from fastgen.ops.dmol_nll import dmol_nll
from fastgen.ops.ema_update_ import ema_update_
from fastgen.ops.gated_activation import gated_activation
from fastgen.ops.gated_masked_conv2d import gated_masked_conv2d
from fastgen.ops.gaussian_nll import gaussian_nll
from fastgen.ops.masked_conv2d import TapPlan, masked_conv2d
from fastgen.ops.philox_normal import philox_normal, randn
from fastgen.ops.philox_uniform import philox_uniform, rand
from fastgen.ops.reparam_kl import reparam_kl
from fastgen.ops.rmsprop_clip_ import rmsprop_clip_
from fastgen.ops.vq_ema_update_ import vq_ema_update_
from fastgen.ops.vq_nearest import vq_nearest
from fastgen.ops.vq_quantize import vq_codebook_loss, vq_quantize

_backends.force_from_environment()

__version__ = "0.1.0"
__all__ = [
    "NotCausalError",
    "TapPlan",
    "UnsupportedModelError",
    "adam_clip_",
    "add_noise",
    "backends",
    "bernoulli_nll",
    "check_causal",
    "clip_weights_",
    "compile_sampler",
    "dmol_nll",
    "ema_update_",
    "gated_activation",
    "gated_masked_conv2d",
    "gaussian_nll",
    "masked_conv2d",
    "philox_normal",
    "philox_uniform",
    "rand",
    "randn",
    "reparam_kl",
    "rmsprop_clip_",
    "use_backend",
    "vq_codebook_loss",
    "vq_ema_update_",
    "vq_nearest",
    "vq_quantize",
]
_SUBPACKAGES = (
    "checkpoint",
    "cluster",
    "data",
    "figures",
    "likelihoods",
    "models",
    "nn",
    "optim",
    "sampling",
    "train",
)
_OF_SAMPLING = ("NotCausalError", "UnsupportedModelError", "check_causal", "compile_sampler")


def __getattr__(name):
    """`fastgen.nn` and its like work without an import of their own, and cost nothing unused."""
    if name in _SUBPACKAGES:
        return _importlib.import_module(f"fastgen.{name}")
    if name in _OF_SAMPLING:
        return getattr(_importlib.import_module("fastgen.sampling"), name)
    raise AttributeError(f"module 'fastgen' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_SUBPACKAGES, *_OF_SAMPLING])
