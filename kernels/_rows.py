"""Rows of D values in a tensor of any strides: what the vector-quantisation kernels walk over.

The axes that are neither heads nor values enumerate the rows. Most layouts (channel-last,
channel-first images, permuted views of both) fold into two of them, outer and inner, in place.
"""

import math

import triton
import triton.language as tl  # noqa: F401  (the interpreter wants it beside every kernel)


@triton.jit
def row_offset(r, inner, outer_stride, inner_stride):
    return (r // inner) * outer_stride + (r % inner) * inner_stride


class Rows:
    """One split of x's rows into (outer, inner), which all tensors of a call share.

    Args:
        x: the tensor with values along `dim`.
        dim: counted from the front.
        heads: whether the axis before `dim` counts heads.

    Tensors come out as (heads, outer, inner, values): views, or copies where strides forbid one.
    """

    def __init__(self, x, dim, heads):
        self.dim, self.heads = dim, heads
        spread = self._spread(x, True, heads)
        axes = spread.dim() - 2
        before = dim - 1 if heads else dim  # this split suits every dense layout
        self.split = next(
            (k for k in (before, *range(axes + 1)) if self._view(spread, k) is not None), before
        )
        self.rows = math.prod(spread.shape[1:-1])
        self.inner = math.prod(spread.shape[1 + self.split : -1])

    def values(self, tensor):
        """Of a tensor in x's shape."""
        return self._fold(self._spread(tensor, True, self.heads))

    def entries(self, tensor):
        """Of a tensor in the indices' shape: x's without `dim`."""
        return self._fold(self._spread(tensor, False, self.heads))

    def masks(self, tensor):
        """Of a tensor in a mask's shape: without the axis of heads, too."""
        return self._fold(self._spread(tensor, False, False))

    def finish(self, tensor, folded, has_values=True):
        """Brings what a kernel wrote into `folded` to `tensor`, where it is no view of it."""
        spread = self._spread(tensor, has_values, self.heads)
        if self._view(spread, self.split) is None:
            spread.copy_(folded.view(spread.shape))

    def _spread(self, tensor, has_values, has_heads):
        """(heads, row axes, values); a missing axis has size 1."""
        head = self.dim - 1 if self.heads else self.dim
        if not has_heads:
            tensor = tensor.unsqueeze(head)
        if not has_values:
            tensor = tensor.unsqueeze(head + 1)
        return tensor.movedim((head, head + 1), (0, -1))

    def _shape(self, spread, split):
        heads, *axes, values = spread.shape
        return heads, math.prod(axes[:split]), math.prod(axes[split:]), values

    def _view(self, spread, split):
        try:
            return spread.view(self._shape(spread, split))
        except RuntimeError:  # the strides forbid it
            return None

    def _fold(self, spread):
        return spread.reshape(self._shape(spread, self.split))


def row_strides(folded):
    """(head, outer, inner, value) of what `Rows` returns; one head is seen from every head, and
    None from everywhere."""
    if folded is None:
        return (0, 0, 0, 0)
    head, outer, inner, value = folded.stride()
    return (0 if folded.shape[0] == 1 else head, outer, inner, value)
