"""KMeans: Lloyd's algorithm on the fused lookup, in the style of scikit-learn."""

import warnings
from numbers import Integral
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgen.cluster import seeding
from fastgen.cluster.parameters import Parameters
from fastgen.ops.vq_nearest import vq_nearest
from fastgen.ops.vq_quantize import vq_quantize


class _Run(NamedTuple):
    centers: Tensor
    labels: Tensor
    inertia: float
    iterations: int


class KMeans(Parameters):
    """k-means clustering: centres that minimise the sum of squared distances of the rows to the
    nearest centre.

    One iteration is one call of `fastgen.vq_quantize`, which finds the labels and sums the rows of
    every cluster in float64: no second pass, no matrix of distances, the same bits for any number
    of threads. Clusters that lost all rows restart at the rows farthest from their centres.

    Args:
        n_clusters: K.
        init: "k-means++", "random" (different rows), or centres (K, D).
        n_init: so many starts, of which the one with the least inertia stays; 1 for given centres.
        max_iter: of a start.
        tol: stop when the squared shifts of all centres sum to at most tol times the mean variance
            of the features; labels that repeat stop in any case.
        random_state: seed of the starts, 0 .. 2^64 - 1; None draws one from PyTorch's generator.

    Attributes, after `fit`, tensors if X was one, else NumPy arrays:
        cluster_centers_: (K, D), X's dtype.
        labels_: (N,) int64.
        inertia_: the sum of squared distances.
        n_iter_: iterations of the best start.
        n_features_in_: D.

    X is (N, D), N >= K, float32 or float64, finite: a tensor on any device or what numpy.asarray
    takes.

    Source: Lloyd, Least squares quantization in PCM, 1982.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Literal["k-means++", "random"] | Tensor | np.ndarray = "k-means++",
        n_init: int = 1,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int | None = None,
    ):
        for name, value in (("n_clusters", n_clusters), ("n_init", n_init), ("max_iter", max_iter)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"fastgen.KMeans: {name} must be a positive int, got {value!r}")
        if not tol >= 0:
            raise ValueError(f"fastgen.KMeans: tol must not be negative, got {tol!r}")
        if isinstance(init, str) and init not in ("k-means++", "random"):
            raise ValueError(
                "fastgen.KMeans: init must be 'k-means++', 'random' or an array of centres, got "
                f"{init!r}"
            )
        if random_state is not None and (
            isinstance(random_state, bool)
            or not isinstance(random_state, Integral)
            or not 0 <= random_state < 2**64
        ):
            raise ValueError(
                "fastgen.KMeans: random_state must be None or an int from 0 to 2^64 - 1, got "
                f"{random_state!r}"
            )
        # as they were given: `Parameters`
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X, y=None) -> "KMeans":
        """Finds the centres of X (N, D); y is ignored. Returns self.

        Raises:
            TypeError: X is neither float32 nor float64.
            ValueError: X is not (N, D), has fewer rows than clusters or values that are not finite,
                or given centres do not fit.
        """
        x, given_array = self._checked(X)
        if len(x) < self.n_clusters:
            raise ValueError(
                f"fastgen.KMeans: X must have at least n_clusters={self.n_clusters} rows, got "
                f"{len(x)}"
            )
        # through the op, whose sums no number of threads changes
        mean = vq_quantize(x, torch.zeros_like(x[:1])).sums / len(x)
        spread = vq_quantize(x, mean.to(x.dtype)).commitment
        if not spread.isfinite().all():
            raise ValueError("fastgen.KMeans: X must be finite, got NaN or infinity")
        tolerance = self.tol * _total(spread) / len(x)
        seed = self.random_state
        if seed is None and isinstance(self.init, str):
            seed = torch.randint(2**63 - 1, ())
        seed = None if seed is None else int(seed)
        runs = [
            self._lloyd(x, self._start(x, seed, run), tolerance)
            for run in range(self.n_init if isinstance(self.init, str) else 1)
        ]
        best = min(runs, key=lambda run: run.inertia)
        used = len(best.labels.unique())
        if used < self.n_clusters:
            warnings.warn(
                f"fastgen.KMeans: only {used} of n_clusters={self.n_clusters} have rows; X may "
                "have fewer different rows than that",
                stacklevel=2,
            )
        self.cluster_centers_ = _as(best.centers, given_array)
        self.labels_ = _as(best.labels, given_array)
        self.inertia_, self.n_iter_ = best.inertia, best.iterations
        self.n_features_in_ = x.shape[1]
        return self

    def fit_predict(self, X, y=None):
        """`fit(X).labels_`."""
        return self.fit(X).labels_

    def fit_transform(self, X, y=None):
        """`fit(X).transform(X)`."""
        return self.fit(X).transform(X)

    def predict(self, X):
        """The nearest centre of every row of X (N, D): (N,) int64; the lowest among equals."""
        x, given_array = self._checked(X)
        return _as(vq_nearest(x, self._centers(x)), given_array)

    def transform(self, X):
        """The distances of every row of X (N, D) to all centres: (N, K), in the wider of their
        dtypes."""
        x, given_array = self._checked(X)
        centers = self._centers(x)
        wide = torch.promote_types(x.dtype, centers.dtype)
        mode = "donot_use_mm_for_euclid_dist"  # exact also where all rows share an offset
        distances = torch.cdist(x.to(wide), centers.to(wide), compute_mode=mode)
        return _as(distances, given_array)

    def score(self, X, y=None) -> float:
        """Minus the sum of squared distances of X's rows, at least one, to the nearest centre."""
        x, _ = self._checked(X)
        if len(x) == 0:
            raise ValueError("fastgen.KMeans: X must have at least one row to score, got 0")
        return -_total(vq_quantize(x, self._centers(x)).commitment) * x.shape[1]

    def _checked(self, X) -> tuple[Tensor, bool]:
        """X as a tensor, and whether it was something else."""
        given_array = not isinstance(X, Tensor)
        x = _tensor(X) if given_array else X.detach()
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"fastgen.KMeans: X must be float32 or float64, got {x.dtype}; convert it"
            )
        if x.dim() != 2:
            raise ValueError(f"fastgen.KMeans: X must be (N, D), got shape {tuple(x.shape)}")
        return x, given_array

    def _centers(self, x: Tensor) -> Tensor:
        if not hasattr(self, "cluster_centers_"):
            raise ValueError("fastgen.KMeans: there are no centres yet; call fit first")
        centers = torch.as_tensor(self.cluster_centers_, device=x.device)
        if x.shape[1] != centers.shape[1]:
            raise ValueError(
                f"fastgen.KMeans: X must have the {centers.shape[1]} features of fit, got "
                f"{x.shape[1]}"
            )
        return centers

    def _start(self, x: Tensor, seed: int | None, run: int) -> Tensor:
        if isinstance(self.init, str):
            if self.init == "random":
                rows = seeding.random_rows(len(x), self.n_clusters, seed, run)
            else:
                rows = seeding.spread_rows(x, self.n_clusters, seed, run)
            return x[rows.to(x.device)]
        centers = torch.as_tensor(self.init, dtype=x.dtype, device=x.device).detach()
        shape = int(self.n_clusters), x.shape[1]
        if centers.shape != shape:
            raise ValueError(f"fastgen.KMeans: init must be {shape}, got {tuple(centers.shape)}")
        if not centers.isfinite().all():
            raise ValueError("fastgen.KMeans: init must be finite, got NaN or infinity")
        return centers

    def _lloyd(self, x: Tensor, centers: Tensor, tolerance: float) -> _Run:
        labels, iterations = None, 0
        while iterations < self.max_iter:
            iterations += 1
            found = vq_quantize(x, centers)
            if labels is not None and torch.equal(found.indices, labels):
                break  # the centres are already the means of these rows
            labels = found.indices
            before, centers = centers, _means(x, centers, found)
            if _total((centers - before).square()) <= tolerance:
                found = vq_quantize(x, centers)
                break
        else:
            found = vq_quantize(x, centers)
        inertia = _total(found.commitment) * x.shape[1]
        return _Run(centers, found.indices, inertia, iterations)


def _tensor(X) -> Tensor:
    """An array as a tensor: in place, unless tensors cannot have its form."""
    array = np.require(X, requirements="W")
    return torch.from_numpy(array.copy() if min(array.strides, default=0) < 0 else array)


def _means(x: Tensor, centers: Tensor, found) -> Tensor:
    """The mean of every cluster's rows. Empty clusters take the rows farthest from their centres,
    which leave their own clusters; where no row is far, and for what this empties, centres stay."""
    counts, sums = found.counts, found.sums
    empty = (counts == 0).nonzero().flatten()
    if len(empty) and found.commitment.max() > 0:
        far = found.commitment.argsort(descending=True, stable=True)[: len(empty)]
        rows, left = x[far].double(), found.indices[far]
        counts = counts.index_add(0, left, torch.full_like(left, -1))
        sums = sums.index_add(0, left, -rows)
        counts[empty], sums[empty] = 1, rows
    means = sums / counts.clamp(min=1).unsqueeze(1)
    return torch.where(counts.unsqueeze(1) > 0, means.to(x.dtype), centers)


def _total(values: Tensor) -> float:
    """The sum, one after the other: no number of threads changes its rounding."""
    return float(values.double().flatten().cumsum(0)[-1])


def _as(values: Tensor, array: bool):
    return values.numpy() if array else values
