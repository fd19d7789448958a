"""What a gradient scaler hands to an optimiser, in plain PyTorch."""


def skips(found_inf):
    """Whether a gradient overflowed, so that the update is left out."""
    return found_inf is not None and found_inf.item() != 0


def unscaled(grad, grad_scale):
    return grad if grad_scale is None else grad * (1 / grad_scale.double()).to(grad.dtype)
