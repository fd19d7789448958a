"""ClippedAdam: Adam and a weight clip in one pass over memory."""

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

from fastgen.ops import adam_clip_
from fastgen.optim.clipped import Clipped


class ClippedAdam(Clipped, torch.optim.Adam):
    """`torch.optim.Adam` (and AdamW, AMSGrad), then every weight clamped into its group's range.

    On CPU the bits are those of `torch.optim.Adam` followed by `clamp_` on every parameter, for an
    lr that is a number. Parameters without a gradient are clipped, too. State dicts load both ways;
    of a plain Adam's each group keeps its own clip.

    Args:
        params: parameters, named parameters or groups of them, as `torch.optim.Adam` takes them;
            float32, float64, bfloat16 or float16, and complex (updated by torch) where clip is
            None.
        lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay: as of `torch.optim.Adam`;
            betas are numbers. lr may be a tensor of one element, which is not read by the host.
        clip: c >= 0 for [-c, c], (low, high), or None for no clip; of each group its own where it
            has one. It may be changed between steps, as lr may.
        maximize: ascend.
        capturable: the step may be captured in a CUDA graph.

    Raises:
        TypeError: integer parameters, a clip that is no number, pair or None, a clip of complex
            parameters, betas that are no numbers.
        ValueError: as torch; negative, reversed or NaN bounds; a parameter twice in a group; a
            state dict of another optimiser.

    Example:
        critic_optimizer = fastgen.optim.ClippedAdam(critic.parameters(), lr=2e-4, clip=0.01)

    Source: Kingma and Ba, Adam, 2015; Reddi et al., On the Convergence of Adam and Beyond, 2018;
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.
    """

    _NAME = "optim.ClippedAdam"
    _OF_TORCH = torch.optim.Adam
    _OP = adam_clip_.OP
    _PLAN = "AdamPlan"
    _STATE = (("exp_avg", None), ("exp_avg_sq", None), ("max_exp_avg_sq", "amsgrad"))
    _GROUP_KEYS = ("lr", "betas", "eps", "weight_decay", "amsgrad")
    _SPARSE = "Adam does not support sparse gradients, please consider SparseAdam instead"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        clip: float | tuple[float, float] | None = 0.01,
        *,
        maximize: bool = False,
        capturable: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad,
            clip=clip, maximize=maximize, capturable=capturable,
            decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip

    def _check(self, group):
        if any(isinstance(beta, Tensor) for beta in group["betas"]):
            raise TypeError(
                f"fastgen.{self._NAME}: betas must be two numbers, got tensors; "
                "give [beta.item() for beta in betas]"
            )
        super()._check(group)

    def _switches(self, group):
        return group["amsgrad"], group["capturable"]

    def _numbers(self, group):
        beta1, beta2 = group["betas"]
        return (
            beta1, beta2, group["eps"], group["weight_decay"], group["decoupled_weight_decay"],
            group["maximize"],
        )  # fmt: skip

    def _torch_update(self, group, params, grads, states, steps):
        beta1, beta2 = group["betas"]
        keys = ("lr", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay")
        adam(
            params, grads, *states, steps,
            has_complex=True, beta1=beta1, beta2=beta2,
            **{key: group[key] for key in (*keys, "maximize", "capturable")},
        )  # fmt: skip
