"""Philox4x32-10 in plain PyTorch, and the uniforms and normals that are drawn from it.

Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011. A counter-based generator:
every block of four words is a function of (key, counter) alone, so the numbers of a sample do not
depend on batch size, thread count or rank.
"""

import torch
from torch import Tensor

TENSOR_STREAM = 0  # in the upper half of the counter's fourth word, as those that follow
SAMPLING_STREAM = 1
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Tensor, key: int) -> Tensor:
    """Ten rounds of Philox4x32.

    Args:
        counter: int64 (..., 4), words in 0 .. 2^32 - 1, lowest first.
        key: 64 bit.

    Returns:
        int64 (..., 4), words in 0 .. 2^32 - 1.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key & _WORD, key >> 32 & _WORD
    for _ in range(10):
        # int64 products wrap modulo 2^64, which leaves both words right after masking
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> 32 & _WORD) ^ c1 ^ k0,
            p1 & _WORD,
            (p0 >> 32 & _WORD) ^ c3 ^ k1,
            p0 & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), -1)


def element_words(seed: int, count: int, device=None) -> Tensor:
    """The words of the elements 0 .. count - 1 of a tensor, int64 (count,): element i has lane
    i % 4 of the block with key `seed` and counter (i // 4 low, i // 4 high, 0, TENSOR_STREAM)."""
    block = torch.arange(-(-count // 4), device=device)
    zero = torch.zeros_like(block)
    counter = torch.stack((block & _WORD, block >> 32, zero, zero + (TENSOR_STREAM << 16)), -1)
    return philox4x32(counter, seed).flatten()[:count]


def element_normals(seed: int, count: int, device=None) -> Tensor:
    """Standard normal numbers, float64 (count,), by Box and Muller from pairs of elements: with u
    and v the uniforms of elements 2 j and 2 j + 1,

        r = sqrt(-2 log(1 - u)),  normal 2 j = r cos(2 pi v),  normal 2 j + 1 = r sin(2 pi v)

    of which the largest is sqrt(48 log 2) = 5.77.
    """
    u, v = to_uniform(element_words(seed, count + count % 2, device)).double().view(-1, 2).unbind(1)
    r, angle = torch.sqrt(-2 * torch.log1p(-u)), 2 * torch.pi * v
    return torch.stack((r * torch.cos(angle), r * torch.sin(angle)), 1).flatten()[:count]


def to_uniform(words: Tensor) -> Tensor:
    """float32 in [0, 1): the upper 24 bits of each word, exactly."""
    return (words >> 8).float() * 2.0**-24


def sampling_uniforms(
    seed: int, first_index: int, n: int, draws: int, shape: tuple[int, ...], device=None
) -> Tensor:
    """The uniforms of samples first_index .. first_index + n - 1.

    Position p of a sample (raster index over the axes behind the colours), colour c of C and draw d
    take lane i % 4 of the block with key `seed` and counter
    (index low, index high, p, SAMPLING_STREAM << 16 | i // 4), where i = d * C + c. The order of
    generation plays no part.

    Args:
        seed: 64 bit.
        first_index, n: which samples; first_index + n <= 2^64.
        draws: D, per colour.
        shape: (C, H, W) or (C, L).
        device: where the result is made.

    Returns:
        float32 (n, D, *shape) in [0, 1).
    """
    colors, *space = shape
    positions = torch.Size(space).numel()
    blocks = -(-draws * colors // 4)
    low = (first_index & _WORD) + torch.arange(n, device=device)
    high = (first_index >> 32) + (low >> 32)
    low = low & _WORD
    counter = torch.empty(n, positions, blocks, 4, dtype=torch.int64, device=device)
    counter[..., 0] = low[:, None, None]
    counter[..., 1] = high[:, None, None]
    counter[..., 2] = torch.arange(positions, device=device)[:, None]
    counter[..., 3] = torch.arange(blocks, device=device) | SAMPLING_STREAM << 16
    lanes = philox4x32(counter, seed).flatten(2)[..., : draws * colors]
    return to_uniform(lanes).transpose(1, 2).reshape(n, draws, *shape)
