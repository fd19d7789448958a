"""The pictures that fit a generator and its critic."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from fastgen import figures
from fastgen.gallery import Gallery
from fastgen.log import read_log
from fastgen.models.scores import nearest_distances
from fastgen.train import LOG

_ROWS, _STEPS, _COLUMNS = 8, 9, 12
# what a panel says -> the name of a line -> its column of the log
_PANELS = {
    "loss": {"generator": "train_generator_loss", "critic": "train_critic_loss"},
    "Wasserstein estimate": {"training": "train_wasserstein", "test": "test_wasserstein"},
    "weights at the bound": {"share": "train_saturation"},
    "modes covered": {"of all": "test_modes"},
    "spread of samples": {"over the data's": "test_spread"},
}


class AdversarialGallery(Gallery):
    """Draws into `folder` what fits a model with `latents`, whose training's log is in
    `directory`."""

    def __init__(self, model, data, folder: Path, caption: str, seed: int, directory: Path):
        super().__init__(model, data, folder, caption, seed)
        self.directory = directory

    @torch.no_grad()
    def draw(self) -> list[Path]:
        self._samples()
        if not self.are_points:
            self._nearest()
            self._between_latents()
            self._sum_of_latents()
        self._weights()
        self._curves()
        return self.written

    def _nearest(self) -> None:
        count = 2 * _COLUMNS
        labels = self._any_labels(count)
        samples = self.model.sample(count, labels, seed=self.seed).cpu()
        train = self.data.train.images.to(samples.dtype)
        nearest = train[nearest_distances(samples, train).index]
        figures.reconstructions(
            self._path("nearest"),
            {"nearest": nearest, "sample": samples},
            columns=_COLUMNS,
            title="Samples below the training images nearest to them",
            caption=f"{self.caption}: Euclidean distance",
            **self.look,
        )

    def _between_latents(self) -> None:
        a, b, _ = self._latents()
        strips = self.model.interpolate(a, b, _STEPS, "spherical", **self._told(_ROWS))
        figures.interpolation_strips(
            self._path("interpolation"),
            strips.cpu(),
            title="Interpolations",
            caption=f"{self.caption}: between two samples",
            **self.look,
        )

    def _sum_of_latents(self) -> None:
        a, b, c = self._latents()
        terms = [self.model.decode(z, **self._told(_ROWS)) for z in (a, b, c)]
        terms.append(self.model.latent_arithmetic(a, b, c, **self._told(_ROWS)))
        figures.latent_arithmetic(
            self._path("arithmetic"),
            *(images.cpu() for images in terms),
            names=("a", "b", "c", "a \N{MINUS SIGN} b + c"),
            title="Latent arithmetic",
            caption=f"{self.caption}: a, b, c are samples",
            **self.look,
        )

    def _weights(self) -> None:
        weights = torch.cat([p.detach().flatten().cpu() for p in self.model.critic.parameters()])
        clip = getattr(self.model, "clip", None)
        figures.weight_histograms(
            self._path("weights"),
            {"critic": weights},
            bounds={} if clip is None else {"critic": clip},
            title="Weights of the critic",
            caption=self.caption,
        )

    def _curves(self) -> None:
        log = self.directory / LOG
        rows = read_log(log) if log.exists() else []
        steps = [row["step"] for row in rows]
        panels: dict = {}
        for panel, lines in _PANELS.items():
            for name, column in lines.items():
                values = [row.get(column, math.nan) for row in rows]
                if any(map(math.isfinite, values)):
                    panels.setdefault(panel, {})[name] = (steps, values)
        if panels:
            path = self._path("curves")
            figures.curve_panels(path, panels, title="Training", caption=self.caption)

    def _latents(self):
        return self.model.latents(3 * _ROWS, seed=self.seed).split(_ROWS)

    def _any_labels(self, count: int):
        if self.classes is None:
            return None
        return torch.arange(count, device=self.device) % self.classes

    def _told(self, count: int) -> dict:
        return self._condition(self._any_labels(count))
