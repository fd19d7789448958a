"""Random rows of a batch for a codebook: distinct, alike on all ranks, without waiting for the
device."""

import torch
from torch import Tensor

from fastgen.nn.codebook_state import summed_over_ranks, world
from fastgen.reference.philox import philox4x32

CODEBOOK_STREAM = 2  # in the fourth word of the counter, as SAMPLING_STREAM
_BLOCKS = 16  # a stride is one of 62 words: none of them is coprime in less than 1 of 10^5 draws


def draw_key(device) -> Tensor:
    """64 random bits from the default generator of the device, a scalar int64."""
    high, low = torch.randint(0, 1 << 32, (2,), device=device)
    return high << 32 | low


def shared_seed(device) -> int | Tensor:
    """62 random bits from the CPU's default generator, those of rank 0 on all ranks. Inside
    torch.compile a tensor, so that the graph does not depend on it."""
    seed = torch.randint(0, 1 << 62, ())
    rank, ranks = world()
    if ranks > 1:
        seed = summed_over_ranks(seed.to(device) * (rank == 0))[0]
    return seed if torch.compiler.is_compiling() else int(seed)


def draw_words(key: Tensor, heads: int, progressions: int) -> Tensor:
    """int64 (progressions, heads, 64), 32 bit each: lane i % 4 of the Philox block with this key
    and counter (i // 4, head, progression, CODEBOOK_STREAM << 16)."""
    counter = torch.zeros(progressions, heads, _BLOCKS, 4, dtype=torch.int64, device=key.device)
    counter[..., 0] = torch.arange(_BLOCKS, device=key.device)
    counter[..., 1] = torch.arange(heads, device=key.device)[:, None]
    counter[..., 2] = torch.arange(progressions, device=key.device)[:, None, None]
    counter[..., 3] = CODEBOOK_STREAM << 16
    return philox4x32(counter, key).flatten(2)


def shuffled(places: Tensor, n: Tensor, words: Tensor) -> Tensor:
    """Places (G, P) in a random order of 0 .. n - 1: ``(offset + stride place) mod n``.

    A permutation, since stride and n (G,) are coprime, at the cost of P entries instead of n. Every
    row is equally likely at every place. From place n on it repeats itself.
    """
    n = n.clamp(min=1).unsqueeze(1)
    offset = (words[:, :1] << 31 | words[:, 1:2] >> 1) % n
    strides = words[:, 2:] % n
    coprime = torch.gcd(strides, n.expand_as(strides)) == 1
    stride = strides.gather(1, coprime.long().argmax(1, keepdim=True))
    stride = torch.where(coprime.any(1, keepdim=True), stride, 1)
    return (offset + stride * places) % n


class RowDraw:
    """Draws from the valid rows of all ranks, which are numbered rank by rank.

    `sizes` and `key` are to be summed over the ranks before `rows` is called, so that they can
    travel with other sums.

    Args:
        rows: (G, ..., D), the rows of each head; any strides.
        valid: bool (G, rows).
        ranks: this rank and their number.
    """

    def __init__(self, rows: Tensor, valid: Tensor, ranks: tuple[int, int]):
        self._rows, self._rank = rows, ranks[0]
        self._seen = valid.cumsum(1)
        self.sizes = torch.zeros(ranks[1], len(rows), dtype=torch.int64, device=rows.device)
        self.sizes[self._rank] = valid.sum(1)
        # rank 0's key for all; in two halves, because float64 holds integers up to 2^53 only
        key = draw_key(rows.device)
        self.key = torch.stack((key >> 32, key & 0xFFFFFFFF)) * (self._rank == 0)

    def rows(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """A row for each wanted code, all distinct; if there are fewer rows than wanted codes, a
        random choice of the codes gets one.

        Args:
            wanted: bool (G, K).

        Returns:
            (G, K, D), and bool (G, K): which codes got one.
        """
        heads, codes = wanted.shape
        order_words, row_words = self._words(heads)
        all_codes = torch.arange(codes, device=wanted.device).expand(heads, codes)
        order = shuffled(
            all_codes, torch.full_like(wanted[:, 0], codes, dtype=torch.int64), order_words
        )
        # the j-th wanted code in that order gets the row at place j
        place = torch.zeros_like(order).scatter(1, order, wanted.gather(1, order).cumsum(1) - 1)
        total = self.sizes.sum(0)
        return self._at(place, row_words, total), wanted & (place < total.unsqueeze(1))

    def repeated_rows(self, codes: int) -> Tensor:
        """(G, codes, D): distinct rows as long as there are some, then the same again."""
        heads = len(self._rows)
        places = torch.arange(codes, device=self.key.device).expand(heads, codes)
        return self._at(places, self._words(heads)[1], self.sizes.sum(0))

    def _words(self, heads):
        return draw_words(self.key[0] << 32 | self.key[1], heads, 2)

    def _at(self, place, words, total):
        before = self.sizes[: self._rank].sum(0).unsqueeze(1)
        position = shuffled(place.clamp(min=0), total, words) - before
        mine = (position >= 0) & (position < self.sizes[self._rank].unsqueeze(1))
        rows, dim = self._rows, self._rows.shape[-1]
        if rows.numel() == 0:  # nothing to gather from
            found = rows.new_zeros(*position.shape, dim)
        else:
            row = torch.searchsorted(self._seen, torch.where(mine, position, 0) + 1)
            row = row.clamp(max=self._seen.shape[1] - 1)
            head = torch.arange(len(rows), device=rows.device).unsqueeze(1)
            found = rows[(head, *torch.unravel_index(row, rows.shape[1:-1]))]
        found = torch.where(mine.unsqueeze(2), found, 0)
        return summed_over_ranks(found)[0] if self.sizes.shape[0] > 1 else found
