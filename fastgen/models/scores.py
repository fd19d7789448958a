"""How well scores tell improbable images apart, and how varied samples are."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.ops.vq_nearest import vq_nearest

_REACH = 3  # standard deviations within which a point belongs to a mode
_LEAST = 0.01  # share of the points that makes a mode covered
_CHUNK = 256  # rows of a matrix of distances


class ModeCoverage(NamedTuple):
    """modes: how many are covered. share: of the points that belong to a mode at all."""

    modes: int
    share: float


class Nearest(NamedTuple):
    """distance: float64 (N,), to the nearest image. index: int64 (N,), which one that is."""

    distance: Tensor
    index: Tensor


class Diversity(NamedTuple):
    """spread: 1 for samples as varied as the data, 0 for a single one repeated. nearness: 0.5 for
    samples as far from the training images as test images are, 1 for copies."""

    spread: float
    nearness: float


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


def mode_coverage(points: Tensor, centres: Tensor, sigma: float) -> ModeCoverage:
    """How many modes of a mixture of Gaussians of one width have samples: a mode is covered that
    at least 1 % of the points lie within 3 sigma of.

    points: (N, D), N >= 1; one that is not finite belongs to no mode. centres: (K, D).
    """
    points, centres = (t.detach().cpu().double() for t in (points, centres))
    if points.dim() != 2 or not len(points) or points.shape[1:] != centres.shape[1:]:
        raise ValueError(
            f"fastgen.models.scores.mode_coverage: points must be (N, D) and centres (K, D), got "
            f"{tuple(points.shape)} and {tuple(centres.shape)}; give at least one point"
        )
    belongs = torch.cdist(points, centres) <= _REACH * sigma
    modes = (belongs.double().mean(0) >= _LEAST).sum()
    return ModeCoverage(int(modes), belongs.any(1).double().mean().item())


def nearest_distances(samples: Tensor, images: Tensor) -> Nearest:
    """The exact Euclidean distance of each sample to the nearest of the images, and which one that
    is; without a matrix of distances.

    samples, images: codes or floats (N, ...), (M, ...) of one shape beyond the first axis.
    """
    if samples.shape[1:] != images.shape[1:] or not len(images):
        raise ValueError(
            f"fastgen.models.scores.nearest_distances: images must be (M, "
            f"{', '.join(map(str, samples.shape[1:]))}) with M >= 1, got {tuple(images.shape)}; "
            "compare images of one shape"
        )
    samples, images = (_rows(t) for t in (samples, images))
    index = vq_nearest(samples, images)
    return Nearest((samples - images[index]).double().square().sum(1).sqrt(), index)


def spread(samples: Tensor, images: Tensor) -> float:
    """How varied samples are: each one's distance to the nearest other sample, the mean, over the
    same of as many images. 1 is as varied as these, 0 a single sample repeated.

    samples, images: codes or floats (N, ...), at least 2 of each; beyond the shorter list, both
        are left out.
    """
    count = min(len(samples), len(images))
    if count < 2:
        raise ValueError(
            f"fastgen.models.scores.spread: samples and images must be at least 2 each, got "
            f"{len(samples)} and {len(images)}; give more"
        )
    return _distance_to_others(samples[:count]) / _distance_to_others(images[:count])


def diversity(samples: Tensor, train: Tensor, test: Tensor) -> Diversity:
    """How varied samples are, and whether they are copies.

    spread: of the samples, in units of test images. nearness: the probability that a sample is
    nearer to the training images than a test image is, ties counted half.

    What is far from any image has a large spread and a nearness of 0: both should be about those
    of the data.

    samples, train, test: codes or floats (N, ...), at least 2 samples and 2 test images.
    """
    nearest = [nearest_distances(images, train).distance for images in (samples, test)]
    return Diversity(spread(samples, test), auroc(*nearest))


def _distance_to_others(images: Tensor) -> float:
    rows, total = images.detach().flatten(1).double(), 0.0
    for start in range(0, len(rows), _CHUNK):
        # not by products, which would lose what is far less than the rows' length
        exact = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(rows[start : start + _CHUNK], rows, compute_mode=exact)
        apart.diagonal(start).fill_(torch.inf)
        total += apart.min(1).values.sum().item()
    return total / len(rows)


def _rows(images: Tensor) -> Tensor:
    images = images.detach().flatten(1)
    return images if images.dtype == torch.float64 else images.float()
