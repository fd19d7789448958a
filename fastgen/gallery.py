"""The pictures that fit a trained model: samples, reconstructions, its latent space."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from fastgen import checkpoint, figures
from fastgen.device import chosen

_COLUMNS, _ROWS = 12, 8
_STEPS = 9  # of a traversal and an interpolation
_MOST_DIMS = 10
_MOST_CLASSES = 16  # with a row each
_MOST_POINTS = 2000
_REACH = 2.5  # standard deviations


def main(
    directory: str | os.PathLike,
    *,
    data: str | None = None,
    out: str | None = None,
    seed: int = 0,
    device: str | None = None,
) -> list[Path]:
    """Draws the pictures that fit a checkpoint, and returns their paths.

    directory: a folder that `fastgen train --out` has written.
    data: digits, patches, rings or a path; default what the model was trained on.
    out: folder for the pictures; default figures/ in the directory.
    seed: of samples and noise.
    device: cpu, cuda, ...; default is the GPU if there is one.

    samples.png of a model that draws images; reconstructions.png of one that reconstructs; of one
    with a latent space interpolation.png, traversal.png, arithmetic.png and scatter.png, kl.png
    where it measures the KL divergence of each dimension, manifold.png where there are two. Of a
    generator and its critic interpolation.png and arithmetic.png between latent vectors drawn,
    nearest.png with the training images nearest to samples, weights.png of the critic, and
    curves.png over the training.

    Of points (rings), samples.png and reconstructions.png show the plane, and what would be a row
    of images is left out.

    Raises ValueError for data of another shape, FileNotFoundError where there is no checkpoint.
    """
    from fastgen import data as datasets

    config = checkpoint.read_config(directory)
    load = dict(config.get("data", {}).get("arguments", {}))
    if data is not None:
        load["spec"] = data
    if "spec" not in load:
        raise ValueError(
            f"fastgen.figures: {directory} does not say what it was trained on; give data=... "
            "(--data)"
        )
    images = datasets.load(**load)
    model = checkpoint.load(directory, device=chosen(device))
    if (model.shape, model.levels) != (images.shape, images.levels):
        raise ValueError(
            f"fastgen.figures: data must be images {model.shape} of {model.levels} levels, got "
            f"{images.shape} of {images.levels} in {load['spec']}; give the model's own"
        )
    folder = Path(out) if out is not None else Path(directory) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    caption = f"{config['model']}, {load['spec']}"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not hasattr(model, "latents"):
            return Gallery(model, images, folder, caption, seed).draw()
        from fastgen.adversarial_gallery import AdversarialGallery

        return AdversarialGallery(model, images, folder, caption, seed, Path(directory)).draw()


class Gallery:
    """Draws into `folder` what fits the model."""

    def __init__(self, model, data, folder: Path, caption: str, seed: int):
        self.model, self.data, self.folder, self.seed = model, data, folder, seed
        self.device = next(model.parameters()).device
        self.classes = getattr(model, "classes", None)
        self.caption = caption
        self.has_few_classes = data.classes is not None and data.classes <= _MOST_CLASSES
        self.codes = data.test.images
        # digits and the like, on an empty background, look better as ink on paper
        empty = (self.codes == 0).float().mean() > 0.3
        self.are_points = figures.are_points(data.shape)
        self.look = {"levels": data.levels, "as_ink": bool(empty) and data.shape[0] == 1}
        self.written: list[Path] = []

    @torch.no_grad()
    def draw(self) -> list[Path]:
        if hasattr(self.model, "sample"):
            self._samples()
        if hasattr(self.model, "reconstruct"):
            self._reconstructions()
        if hasattr(self.model, "latent"):
            if not self.are_points:
                self._interpolation()
                self._arithmetic()
            self._latent_space()
        return self.written

    def _samples(self) -> None:
        if self.are_points:
            self._sampled_points()
            return
        rows = self.data.classes if self.has_few_classes else _ROWS
        labels = torch.arange(rows).repeat_interleave(_ROWS)
        condition = None if self.classes is None else (labels % self.classes).to(self.device)
        samples = self.model.sample(rows * _ROWS, condition, seed=self.seed).cpu()
        real = self._of_classes(4) if self.has_few_classes else self._repeated(4 * rows)
        told = self.has_few_classes and self.classes is not None
        names = [str(k) for k in range(rows)] if told else [""] * rows
        figures.real_beside_samples(
            self._path("samples"),
            self.codes[real].unflatten(0, (rows, 4)),
            samples.unflatten(0, (rows, _ROWS)),
            class_names=names,
            title="Samples",
            caption=self.caption,
            **self.look,
        )

    def _sampled_points(self) -> None:
        count = figures.samples_shown(self.data.shape, 0)
        condition = None
        if self.classes is not None:
            condition = torch.arange(count, device=self.device) % self.classes
        samples = self.model.sample(count, condition, seed=self.seed)
        self._plane("samples", {f"{count} samples": samples}, "Samples", self.caption)

    def _plane(self, name: str, points: dict[str, Tensor], title: str, caption: str) -> None:
        levels, real = self.data.levels, self.codes
        path = self._path(name)
        caption = f"{caption}; grey: test points"
        figures.points(path, points, levels=levels, real=real, title=title, caption=caption)

    def _reconstructions(self) -> None:
        from fastgen.train import comparison

        count = figures.samples_shown(self.data.shape, 2 * _COLUMNS)
        rows = comparison(self.model, *self._images(self._spread(count)))
        rows = {name: images.cpu() for name, images in rows.items()}
        if self.are_points:
            self._plane("reconstructions", rows, "Reconstructions", self._of_test)
            return
        path = self._path("reconstructions")
        figures.reconstructions(
            path,
            rows,
            columns=_COLUMNS,
            title="Reconstructions",
            caption=self._of_test,
            **self.look,
        )

    def _interpolation(self) -> None:
        first, last = self._pairs()
        a, labels = self._images(first)
        b = self._images(last)[0]
        strips = self.model.interpolate(a, b, _STEPS, **self._condition(labels)).cpu()
        figures.interpolation_strips(
            self._path("interpolation"),
            strips,
            first=a.cpu(),
            last=b.cpu(),
            title="Interpolations",
            caption=self._of_test,
            **self.look,
        )

    def _arithmetic(self) -> None:
        a, c = self._pairs()
        b = a.roll(1)
        if self.has_few_classes:
            b = self._of_classes(3)[2::3][: len(a)]
        (a, labels), (b, _), (c, _) = map(self._images, (a, b, c))
        result = self.model.latent_arithmetic(a, b, c, **self._condition(labels))
        figures.latent_arithmetic(
            self._path("arithmetic"),
            *(images.cpu() for images in (a, b, c, result)),
            names=("a", "b", "c", "a \N{MINUS SIGN} b + c"),
            title="Latent arithmetic",
            caption=self._of_test,
            **self.look,
        )

    def _latent_space(self) -> None:
        images, labels = self._images(self._spread(_MOST_POINTS))
        z = self.model.latent(images, **self._condition(labels)).flatten(1)
        kl = None
        if hasattr(self.model, "kl_per_dimension"):
            kl = self.model.kl_per_dimension(images, **self._condition(labels))
            path = self._path("kl")
            figures.kl_per_dimension(path, kl, title="KL per dimension", caption=self._of_test)
        classes = self.data.test.labels
        classes = None if classes is None else classes[self._spread(_MOST_POINTS)]
        path = self._path("scatter")
        figures.latent_scatter(path, z, classes, title="Latent codes", caption=self._of_test)
        # a latent space without a prior has the place and the scale of its codes
        mean, std = (
            (0.0 * z[0], 1.0 + 0.0 * z[0])
            if kl is not None
            else (z.mean(0), z.std(0, correction=0))
        )
        if self.are_points:
            return
        self._traversal(z, mean, std, std if kl is None else kl)
        if z.shape[1] == 2:
            self._manifold(mean, std)

    def _traversal(self, z: Tensor, mean: Tensor, std: Tensor, telling: Tensor) -> None:
        image, label = self._images(self._spread(1))
        dims = telling.flatten().argsort(descending=True)[:_MOST_DIMS].tolist()
        rows = []
        for d in dims:
            low, high = (float(mean[d] + k * _REACH * std[d]) for k in (-1, 1))
            rows.append(
                self.model.traverse(image, d, (low, high), _STEPS, **self._condition(label)).cpu()
            )
        figures.traversal_grid(
            self._path("traversal"),
            torch.cat(rows),
            values=torch.linspace(-_REACH, _REACH, _STEPS),
            dim_names=[f"z{d}" for d in dims],
            title="Traversals",
            caption=f"{self.caption}: one latent at a time, in standard deviations",
            **self.look,
        )

    def _manifold(self, mean: Tensor, std: Tensor) -> None:
        steps = 15
        z = mean + std * figures.manifold_points(steps).to(mean)
        label = None
        if self.classes is not None:
            label = torch.zeros(len(z), dtype=torch.int64, device=self.device)
        images = self.model.decode(z, **self._condition(label)).cpu()
        path = self._path("manifold")
        title = "Latent manifold" if label is None else "Latent manifold of class 0"
        images = images.unflatten(0, (steps, steps))
        figures.latent_manifold(path, images, title=title, caption=self.caption, **self.look)

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Indices of two lists of test images: of one class, for a model that is told the class,
        otherwise of different ones."""
        if self.has_few_classes:
            index = self._of_classes(2)
            first, last = index[::2], index[1::2]
            last = last if self.classes else last.roll(-1)
            return first[:_ROWS], last[:_ROWS]
        # neighbours of the list may be crops of one place
        index = self._spread(2 * _ROWS)
        half = max(1, len(index) // 2)
        return index[:half], index[-half:]

    def _of_classes(self, count: int) -> Tensor:
        """Indices of `count` test images of each class, one after the other; repeated where there
        are fewer."""
        labels = self.data.test.labels
        found = []
        for k in range(self.data.classes):
            mine = (labels == k).nonzero()[:, 0]
            mine = mine if len(mine) else torch.zeros(1, dtype=torch.int64)
            found.append(mine[torch.arange(count) % len(mine)])
        return torch.cat(found)

    def _spread(self, most: int) -> Tensor:
        count = len(self.codes)
        return torch.linspace(0, count - 1, min(count, most)).long()

    def _repeated(self, count: int) -> Tensor:
        """Indices of so many test images, some more than once where there are fewer."""
        index = self._spread(count)
        return index[torch.arange(count) % len(index)]

    def _images(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        codes = self.codes[index].to(self.device, torch.int64)
        if self.classes is None:
            return codes, None
        return codes, self.data.test.labels[index].to(self.device)

    def _condition(self, labels: Tensor | None) -> dict:
        return {} if labels is None else {"condition": labels}

    @property
    def _of_test(self) -> str:
        return f"{self.caption}: test images"

    def _path(self, name: str) -> Path:
        self.written.append(self.folder / f"{name}.png")
        return self.written[-1]
