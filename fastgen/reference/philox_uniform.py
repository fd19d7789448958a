"""philox_uniform in plain PyTorch."""

import torch

from fastgen.reference.philox import element_words, to_uniform


def philox_uniform_(out, seed):
    numbers = to_uniform(element_words(int(seed), out.numel(), out.device))
    if out.dtype in (torch.bfloat16, torch.float16):
        # toward 0: to the nearest would make 1 of the largest
        steps = 2.0**8 if out.dtype == torch.bfloat16 else 2.0**11
        numbers = (numbers * steps).floor() / steps
    out.copy_(numbers.view(out.shape))


def philox_uniform(seed, size, dtype):
    out = torch.empty(size, dtype=dtype, device=seed.device)
    philox_uniform_(out, seed)
    return out
