"""Samples as blocks of a seed's stream: image i of a seed is the same whatever is drawn with it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

BLOCK = 16  # samples decoded at a time, always so many: other matrices round otherwise
STREAM = 0x9E3779B97F4A7C15  # from the random numbers of one draw to those of the next


def labels_of_samples(
    model: nn.Module, n: int, y: Tensor | int | None, condition: Tensor | None
) -> Tensor | None:
    """What the model makes of the labels y, or `condition`, their other name; one is for all."""
    if y is not None and condition is not None:
        model._refuse("condition", "is another name of y", "both", "give one of them")
    y = condition if y is None else y
    device = next(model.parameters()).device
    if isinstance(y, int) and not isinstance(y, bool):
        y = torch.full((n,), y, device=device)
    return model._labels(y, n, device)


@torch.no_grad()
def in_blocks(
    model: nn.Module,
    n: int,
    labels: Tensor | None,
    first_index: int,
    draw: Callable[[int, Tensor | None], Tensor],
) -> Tensor:
    """Samples first_index to first_index + n - 1, in eval mode.

    labels: (n,), or None.
    draw: (number of a block, its labels (BLOCK,) or None) -> its samples (BLOCK, ...).
    """
    first, last = first_index // BLOCK, -(-(first_index + n) // BLOCK)
    offset = first_index - first * BLOCK
    parts: Sequence[Tensor | None] = [None] * (last - first)
    if labels is not None:
        padded = labels.new_zeros((last - first) * BLOCK)
        padded[offset : offset + n] = labels
        parts = padded.split(BLOCK)
    was_training = model.training
    model.eval()
    try:
        blocks = [draw(first + i, part) for i, part in enumerate(parts)]
    finally:
        model.train(was_training)
    return torch.cat(blocks)[offset : offset + n]
