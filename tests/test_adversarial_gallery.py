"""The pictures of a generator and its critic: which there are, and what they show."""

import csv

import pytest
import torch
from tiny import CLASSES, LEVELS, SHAPE, tiny_data

from fastgen import data, figures
from fastgen.adversarial_gallery import AdversarialGallery
from fastgen.models import GAN, WGAN, ConditionalGAN
from fastgen.models.scores import nearest_distances
from fastgen.train import LOG

IMAGES = {"shape": SHAPE, "levels": LEVELS, "net": "mlp", "width": 8}
PICTURES = ["samples", "nearest", "interpolation", "arithmetic", "weights"]


def drawn(model, images, folder):
    gallery = AdversarialGallery(model, images, folder, "tiny", 0, folder)
    return [path.stem for path in gallery.draw() if path.stat().st_size > 1000]


@pytest.mark.parametrize(
    "model, labelled",
    [
        (GAN(**IMAGES), True),
        (WGAN(**IMAGES), False),
        (ConditionalGAN(**IMAGES, classes=CLASSES), True),
    ],
)
def test_every_model_has_its_pictures(tmp_path, model, labelled):
    assert drawn(model, tiny_data(labelled=labelled), tmp_path) == PICTURES


def test_points_have_a_plane_and_no_rows_of_images(tmp_path):
    points = data.load("rings")
    model = WGAN(shape=points.shape, levels=points.levels, width=8)
    assert drawn(model, points, tmp_path) == ["samples", "weights"]


def test_samples_stand_below_the_training_images_nearest_to_them(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(figures, "reconstructions", lambda path, rows, **k: shown.update(rows))
    images, model = tiny_data(), GAN(**IMAGES)
    gallery = AdversarialGallery(model, images, tmp_path, "tiny", 3, tmp_path)
    gallery._nearest()
    assert torch.equal(shown["sample"], model.sample(24, seed=3))
    gaps = (shown["sample"] - shown["nearest"]).double().flatten(1).norm(dim=1)
    expected = nearest_distances(shown["sample"], images.train.images.long()).distance
    torch.testing.assert_close(gaps, expected)


def test_curves_are_of_what_the_log_measured(tmp_path, monkeypatch):
    names = ("step", "train_generator_loss", "train_critic_loss", "train_saturation", "test_spread")
    rows = [(10, 1.0, 2.0, 0.5, 0.9), (20, 1.5, float("nan"), 0.6, 0.8)]
    with (tmp_path / LOG).open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    found = {}
    monkeypatch.setattr(figures, "curve_panels", lambda path, panels, **k: found.update(panels))
    AdversarialGallery(WGAN(**IMAGES), tiny_data(), tmp_path, "tiny", 0, tmp_path)._curves()
    assert list(found) == ["loss", "weights at the bound", "spread of samples"]
    assert found["weights at the bound"] == {"share": ([10, 20], [0.5, 0.6])}
    assert list(found["loss"]) == ["generator", "critic"]


def test_weights_of_a_clipped_critic_have_their_bound(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        figures, "weight_histograms", lambda path, w, bounds, **k: seen.append(bounds)
    )
    for model in (WGAN(**IMAGES, clip=0.05), WGAN(**IMAGES, penalty=1.0), GAN(**IMAGES)):
        AdversarialGallery(model, tiny_data(), tmp_path, "tiny", 0, tmp_path)._weights()
    assert seen == [{"critic": 0.05}, {}, {}]
