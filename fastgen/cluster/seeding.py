"""The rows that k-means starts from, drawn by the counter RNG."""

import torch
from torch import Tensor

from fastgen.reference.philox import philox4x32

CLUSTER_STREAM = 3  # in the fourth word of the counter, as SAMPLING_STREAM


def cluster_uniforms(seed: int, run: int, draws: int) -> Tensor:
    """float64 (draws,) in [0, 1): draw i of run r is the upper 27 bits of the first word and the
    upper 26 of the second of the block with key `seed` and counter (i, r, 0, CLUSTER_STREAM << 16).
    """
    counter = torch.zeros(draws, 4, dtype=torch.int64)
    counter[:, 0] = torch.arange(draws)
    counter[:, 1] = run
    counter[:, 3] = CLUSTER_STREAM << 16
    words = philox4x32(counter, seed)
    return ((words[:, 0] >> 5) * 2**26 + (words[:, 1] >> 6)).double() * 2.0**-53


def random_rows(rows: int, count: int, seed: int, run: int) -> Tensor:
    """`count` different rows of `rows`, every choice as likely as any other.

    Source: Bentley and Floyd, A sample of brilliance, 1987.
    """
    chosen: dict[int, None] = {}
    lasts = torch.arange(rows - count, rows)
    picks = (cluster_uniforms(seed, run, count) * (lasts + 1)).long()
    for last, pick in zip(lasts.tolist(), picks.tolist(), strict=True):
        chosen[last if pick in chosen else pick] = None
    return torch.tensor(list(chosen))


def spread_rows(x: Tensor, count: int, seed: int, run: int) -> Tensor:
    """`count` rows of x (N, D), each drawn with a chance in proportion to its squared distance from
    the nearest one before; the first, and those after all distances are 0, uniformly.

    Source: Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, 2007.
    """
    x, rows, distance = x.contiguous(), [], None
    for uniform in cluster_uniforms(seed, run, count).tolist():
        row = int(uniform * len(x))
        if distance is not None:
            reach = distance.cumsum(0)  # one after the other: no thread decides a rounding
            if reach[-1] > 0:
                row = int(torch.searchsorted(reach, reach[-1] * uniform, right=True))
                row = min(row, len(x) - 1)
        rows.append(row)
        # differences, not products: exact beside an offset, and one thread for each distance
        from_row = torch.cdist(x, x[row : row + 1], compute_mode="donot_use_mm_for_euclid_dist")
        from_row = from_row.double().square().flatten()
        distance = from_row if distance is None else torch.minimum(distance, from_row)
    return torch.tensor(rows)
