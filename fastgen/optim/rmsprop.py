"""ClippedRMSprop: RMSprop and a weight clip in one pass over memory."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.rmsprop import rmsprop

from fastgen.ops import rmsprop_clip_
from fastgen.optim.clipped import Clipped


class ClippedRMSprop(Clipped, torch.optim.RMSprop):
    """`torch.optim.RMSprop`, then every weight clamped into its group's range: the optimiser of a
    Wasserstein GAN's critic.

    On CPU the bits are those of `torch.optim.RMSprop` followed by `clamp_` on every parameter, for
    an lr that is a number. Parameters without a gradient are clipped, too. State dicts load both
    ways; of a plain RMSprop's each group keeps its own clip.

    Args:
        params: parameters, named parameters or groups of them, as `torch.optim.RMSprop` takes them;
            float32, float64, bfloat16 or float16, and complex (updated by torch) where clip is
            None.
        lr, alpha, eps, weight_decay, momentum, centered: as of `torch.optim.RMSprop`. lr may be a
            tensor of one element, which is not read by the host.
        clip: c >= 0 for [-c, c], (low, high), or None for no clip; of each group its own where it
            has one. It may be changed between steps, as lr may.
        maximize: ascend.
        capturable: the step may be captured in a CUDA graph.

    Raises:
        TypeError: integer parameters, a clip that is no number, pair or None, a clip of complex
            parameters.
        ValueError: as torch; negative, reversed or NaN bounds; a parameter twice in a group; a
            state dict of another optimiser.

    Example:
        critic_optimizer = fastgen.optim.ClippedRMSprop(critic.parameters(), lr=5e-5, clip=0.01)

    Source: Arjovsky, Chintala, Bottou, Wasserstein GAN, 2017, algorithm 1.
    """

    _NAME = "optim.ClippedRMSprop"
    _OF_TORCH = torch.optim.RMSprop
    _OP = rmsprop_clip_.OP
    _PLAN = "RmspropPlan"
    _STATE = (("square_avg", None), ("momentum_buffer", "momentum"), ("grad_avg", "centered"))
    _GROUP_KEYS = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered")
    _SPARSE = "RMSprop does not support sparse gradients"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 5e-5,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        clip: float | tuple[float, float] | None = 0.01,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params, lr, alpha, eps, weight_decay, momentum, centered,
            clip=clip, capturable=capturable, maximize=maximize,
        )  # fmt: skip

    def _switches(self, group):
        return group["momentum"] > 0, group["centered"], group["capturable"]

    def _numbers(self, group):
        return (
            group["alpha"], group["eps"], group["weight_decay"], group["momentum"],
            group["maximize"],
        )  # fmt: skip

    def _torch_update(self, group, params, grads, states, steps):
        square_avgs, momentum_buffers, grad_avgs = states
        rmsprop(
            params, grads, square_avgs, grad_avgs, momentum_buffers, steps,
            has_complex=True,
            **{key: group[key] for key in (*self._GROUP_KEYS, "maximize", "capturable")},
        )  # fmt: skip
