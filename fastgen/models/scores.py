"""How well scores tell improbable images apart."""

import torch
from torch import Tensor


def auroc(inliers: Tensor, outliers: Tensor) -> float:
    """The probability that an outlier's score is above an inlier's, ties counted half: the area
    under the receiver operating characteristic. 0.5 is chance, below it the order is reversed.

    inliers, outliers: scores (n,), (m,), larger for what is more improbable.
    """
    for name, scores in (("inliers", inliers), ("outliers", outliers)):
        if not isinstance(scores, Tensor):
            raise TypeError(
                f"fastgen.models.scores.auroc: {name} must be a tensor, got "
                f"{type(scores).__name__}; pass what score() returned"
            )
        if scores.dim() != 1 or len(scores) == 0 or scores.isnan().any():
            raise ValueError(
                f"fastgen.models.scores.auroc: {name} must be (n,) with n >= 1 and without NaN, "
                f"got {tuple(scores.shape)}; score at least one image"
            )
    ordered, outliers = inliers.double().sort().values, outliers.double()
    below = torch.searchsorted(ordered, outliers)
    not_above = torch.searchsorted(ordered, outliers, right=True)
    return ((below + not_above).double().mean() / (2 * len(ordered))).item()
