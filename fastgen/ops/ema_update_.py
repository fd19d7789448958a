"""ema_update_: weights follow others as an exponential moving average, in one launch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgen.ops import _updates
from fastgen.reference import ema_update_ as reference


def _example(device):
    targets = [torch.linspace(-1, 1, n, device=device) for n in (5, 40, 3)]
    return targets, [t.flip(0).contiguous() for t in targets], 0.9


OP = _updates.define(
    "ema_update_(Tensor(a!)[] targets, Tensor[] sources, float decay) -> ()",
    reference.ema_update_,
    example=_example,
)


def ema_update_(
    targets: nn.Module | Sequence[Tensor],
    sources: nn.Module | Sequence[Tensor],
    decay: float,
) -> None:
    """``target = decay target + (1 - decay) source`` for every pair of tensors, in place.

    The same bits as ``target.lerp_(source, 1 - decay)`` on CPU. Of two modules parameters and
    buffers are taken in their order; what is not floating point (such as a count of batches) is
    copied. Not differentiable.

    Args:
        targets: tensors of any shapes and strides, float32, float64, bfloat16 or float16, or a
            module; written.
        sources: as many tensors of the same shapes and devices, or a module of the same kind. A
            dtype of its own is converted first: a float32 average of bfloat16 weights.
        decay: in [0, 1]; the average reaches back over some 1 / (1 - decay) updates.

    Returns:
        None.

    Raises:
        TypeError: no tensors, complex numbers; tensors of integers outside of modules.
        ValueError: other numbers of tensors, shapes or devices; a decay outside [0, 1].
        RuntimeError: a target that overlaps itself.

    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; for
    GANs Yazici et al., The Unusual Effectiveness of Averaging in GAN Training, 2019.
    """
    name = "ema_update_"
    if not 0 <= decay <= 1:
        raise ValueError(f"fastgen.{name}: decay must be in [0, 1], got {decay}; 0.999 is usual")
    modules = isinstance(targets, nn.Module), isinstance(sources, nn.Module)
    if modules == (True, True):
        targets, sources = (
            [*module.parameters(), *module.buffers()] for module in (targets, sources)
        )
    elif any(modules):
        raise TypeError(
            f"fastgen.{name}: targets and sources must be both modules or both tensors, got "
            f"{type(targets).__name__} and {type(sources).__name__}; give module.parameters()"
        )
    targets = _updates.checked_tensors(name, "targets", targets)
    sources = _updates.checked_tensors(name, "sources", sources)
    if len(targets) != len(sources):
        raise ValueError(
            f"fastgen.{name}: sources must hold {len(targets)} tensors, one for each of targets, "
            f"got {len(sources)}; give both in the same order"
        )
    targets, sources = _updates.local(targets), _updates.local(sources)
    if all(modules) and not all(map(Tensor.is_floating_point, targets)):
        pairs = list(zip(targets, sources, strict=True))
        for target, source in pairs:
            if not target.is_floating_point():
                target.copy_(source)
        kept = [pair for pair in pairs if pair[0].is_floating_point()]
        targets, sources = ([pair[i] for pair in kept] for i in (0, 1))
    for group in _updates.by_device(targets, sources):
        OP(*group, decay)


@torch.library.register_fake("fastgen::ema_update_")
def _(targets, sources, decay):
    _updates.check_fake("ema_update_", targets, sources)
    return None
