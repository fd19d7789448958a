"""How a layer's vectors split into heads and come together again."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """Rows have an axis of `count` heads before that of their values, results have it last; a
    single head has none. `separate`: each has a codebook of its own.

    `dim` is the axis of values in rows, from the front.
    """

    count: int
    separate: bool

    def split(self, x: Tensor, axis: int) -> tuple[Tensor, int]:
        """x with the values of all heads along `axis`, as rows; and their `dim`."""
        if self.count == 1:
            return x, axis
        return x.unflatten(axis, (self.count, -1)), axis + 1

    def joined(self, rows: Tensor, dim: int) -> Tensor:
        """The inverse of `split`."""
        return rows if self.count == 1 else rows.flatten(dim - 1, dim)

    def indices_of_rows(self, indices: Tensor, dim: int) -> Tensor:
        return indices if self.count == 1 else indices.movedim(dim - 1, -1)

    def rows_of_indices(self, indices: Tensor, dim: int) -> Tensor:
        return indices if self.count == 1 else indices.movedim(-1, dim - 1)

    def codes_of_rows(self, codes: Tensor, dim: int) -> Tensor:
        """Decoded codes (..., D), with heads (..., count, D), in the layout of rows."""
        if self.count == 1:
            return codes.movedim(-1, dim)
        return codes.movedim((-2, -1), (dim - 1, dim))

    def mask_of_rows(self, mask: Tensor | None, dim: int) -> Tensor | None:
        """As `vq_quantize` takes it: separate heads share an entry, others have one each."""
        if mask is None or self.count == 1 or self.separate:
            return mask
        mask = mask.unsqueeze(dim - 1)
        return mask.expand([*mask.shape[: dim - 1], self.count, *mask.shape[dim:]])
