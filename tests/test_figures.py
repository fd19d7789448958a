import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen import figures
from fastgen.figures import page


def pixels_of(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 3), (7, 4, 3)])
def test_png_reads_back_exactly(tmp_path, shape):
    pixels = np.random.RandomState(0).randint(0, 256, shape, np.uint8)
    figures.write_png(tmp_path / "x.png", pixels)
    assert np.array_equal(pixels_of(tmp_path / "x.png"), pixels)


def test_grid_places_images_row_by_row_with_margins():
    images = torch.arange(3).view(3, 1, 1, 1).expand(3, 1, 2, 3)
    grid = figures.to_grid(images, levels=3, columns=2)
    assert grid.shape == (2 * 3 + 1, 2 * 4 + 1) and grid.dtype == np.uint8
    assert (grid[1:3, 1:4] == 0).all() and (grid[1:3, 5:8] == 128).all()
    assert (grid[4:6, 1:4] == 255).all() and (grid[0] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_written_grid_has_crisp_squares(tmp_path, channels):
    images = torch.randint(0, 17, (4, channels, 8, 8))
    figures.write_grid(tmp_path / "g.png", images, levels=17, scale=3)
    pixels = pixels_of(tmp_path / "g.png")
    assert pixels.shape[:2] == (19 * 3, 19 * 3)
    assert np.array_equal(pixels[::3, ::3].repeat(3, 0).repeat(3, 1), pixels)


def test_grid_of_nothing_and_of_other_channels(tmp_path):
    figures.write_grid(tmp_path / "g.png", torch.zeros(0, 1, 8, 8), levels=17)
    assert (pixels_of(tmp_path / "g.png") == 255).all()
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        figures.write_grid(tmp_path / "g.png", torch.zeros(1, 2, 8, 8), levels=17)


@pytest.mark.parametrize("channels, as_ink", [(1, True), (1, False), (3, True)])
def test_real_beside_samples_shows_every_pixel_as_a_whole_square(tmp_path, channels, as_ink):
    real = torch.randint(0, 17, (3, 2, channels, 8, 8))
    samples = torch.randint(0, 17, (3, 4, channels, 8, 8))
    figures.real_beside_samples(
        tmp_path / "p.png", real, samples, levels=17, class_names="abc", title="T", as_ink=as_ink
    )
    picture = pixels_of(tmp_path / "p.png")[..., :3]
    for images, ink in ((real, page.INK), (samples, page.SAMPLE_INK)):
        panel = page.panel(images, 17, 8, ink if as_ink else None)
        rows, first = [row.tobytes() for row in picture], panel[0].tobytes()
        at = next(i for i, row in enumerate(rows) if first in row)
        left = rows[at].index(first) // 3
        assert np.array_equal(picture[at:, left:][: panel.shape[0], : panel.shape[1]], panel)


def test_training_curves_name_lines_and_baselines(tmp_path, monkeypatch):
    texts = []
    from matplotlib.axes import Axes

    write = Axes.text
    monkeypatch.setattr(
        Axes,
        "text",
        lambda self, x, y, s, **k: (texts.append((y, s)), write(self, x, y, s, **k))[1],
    )
    curves = {"test": ([1, 2, 3], [3.0, 2.0, 1.5]), "train": ([1, 2, 3], [3.0, 1.9, 1.501])}
    figures.training_curves(tmp_path / "t.png", curves, baselines={"uniform": 4.087})
    assert [s for _, s in texts] == ["uniform  4.087", "test  1.500", "train  1.501"]
    heights = sorted(y for y, _ in texts)
    assert all(b - a > 0.05 for a, b in zip(heights, heights[1:], strict=False))
    assert pixels_of(tmp_path / "t.png").shape[:2] == (900, 1560)


def test_a_curve_of_one_point_is_drawn(tmp_path):
    figures.training_curves(tmp_path / "t.png", {"test": ([5], [2.0])})
    assert (tmp_path / "t.png").stat().st_size > 1000


def test_matplotlib_is_imported_only_when_drawing():
    code = "import sys, fastgen.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_matplotlib_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'fastgen[train]'")):
        figures.training_curves(tmp_path / "t.png", {"test": ([1, 2], [2.0, 1.0])})
