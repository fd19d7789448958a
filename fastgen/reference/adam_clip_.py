"""adam_clip_ in plain PyTorch: torch.optim.Adam's own calls, then clamp_."""

import torch

from fastgen.reference.amp import skips, unscaled
from fastgen.reference.clip_weights_ import clip_weights_
from fastgen.reference.torch_arithmetic import plus, square_root


@torch.no_grad()
def adam_clip_(
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps,
    rate, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, low, high,
    grad_scale, found_inf,
):  # fmt: skip
    lr = lr if rate is None else rate.item()
    for i, param in enumerate(() if skips(found_inf) else params):
        grad = unscaled(grads[i], grad_scale)
        grad = -grad if maximize else grad
        steps[i].add_(1)
        if weight_decay != 0 and decoupled:
            param.mul_(1 - lr * weight_decay)
        elif weight_decay != 0:
            grad = plus(grad, param, weight_decay)
        exp_avgs[i].lerp_(grad, 1 - beta1)
        square = exp_avg_sqs[i].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if max_exp_avg_sqs:
            square = torch.maximum(max_exp_avg_sqs[i], square, out=max_exp_avg_sqs[i])
        step = steps[i].item()
        root = (square_root(square) / (1 - beta2**step) ** 0.5).add_(eps)
        param.addcdiv_(exp_avgs[i], root, value=-lr / (1 - beta1**step))
    return clip_weights_(params, low, high)
