"""rmsprop_clip_ in plain PyTorch: torch.optim.RMSprop's own calls, then clamp_."""

import torch

from fastgen.reference.amp import skips, unscaled
from fastgen.reference.clip_weights_ import clip_weights_
from fastgen.reference.torch_arithmetic import plus, square_root


@torch.no_grad()
def rmsprop_clip_(
    params, grads, square_avgs, momentum_buffers, grad_avgs, steps,
    rate, lr, alpha, eps, weight_decay, momentum, maximize, low, high, grad_scale, found_inf,
):  # fmt: skip
    lr = lr if rate is None else rate.item()
    for i, param in enumerate(() if skips(found_inf) else params):
        grad = unscaled(grads[i], grad_scale)
        grad = -grad if maximize else grad
        if weight_decay != 0:
            grad = plus(grad, param, weight_decay)
        average = square_avgs[i].mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
        if grad_avgs:
            grad_avgs[i].lerp_(grad, 1 - alpha)
            average = average.addcmul(grad_avgs[i], grad_avgs[i], value=-1)
        root = square_root(average).add_(eps)
        if momentum_buffers:
            momentum_buffers[i].mul_(momentum).addcdiv_(grad, root)
            param.copy_(plus(param, momentum_buffers[i], -lr))
        else:
            param.addcdiv_(grad, root, value=-lr)
        if steps:
            steps[i].add_(1)
    return clip_weights_(params, low, high)
