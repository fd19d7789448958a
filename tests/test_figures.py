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


def codes(*shape, levels=17):
    return torch.randint(0, levels, shape)


def place_of(panel, picture):
    """(row, column) of a panel in a picture, to the pixel."""
    rows, first = [row.tobytes() for row in picture], panel[0].tobytes()
    for at, row in enumerate(rows):
        left, odd = divmod(row.find(first), 3)
        if first in row and not odd:
            cut = picture[at:, left:][: panel.shape[0], : panel.shape[1]]
            if np.array_equal(cut, panel):
                return at, left
    raise AssertionError("the panel is not in the picture")


def texts_of(monkeypatch):
    texts = []
    text = page.Page.text
    monkeypatch.setattr(
        page.Page, "text", lambda self, x, y, s, **k: (texts.append(s), text(self, x, y, s, **k))[1]
    )
    return texts


@pytest.mark.parametrize("channels, as_ink", [(1, True), (1, False), (3, False)])
def test_reconstructions_stand_below_their_originals(tmp_path, monkeypatch, channels, as_ink):
    texts = texts_of(monkeypatch)
    rows = {name: codes(5, channels, 8, 8) for name in ("original", "noisy", "denoised")}
    figures.reconstructions(
        tmp_path / "r.png", rows, levels=17, columns=3, as_ink=as_ink, title="T", caption="C"
    )
    picture = pixels_of(tmp_path / "r.png")[..., :3]
    places = []
    for start in (0, 3):
        for name, images in rows.items():
            ink = page.SAMPLE_INK if name == "denoised" else page.INK
            shown = images[None, start : start + 3]
            panel = page.panel(shown, 17, 8, ink if as_ink else None)
            places.append(place_of(panel, picture))
    assert places == sorted(places) and len({left for _, left in places}) == 1
    assert texts.count("denoised") == 2 and {"T", "C"} <= set(texts)


def test_interpolation_strips_stand_between_their_images(tmp_path):
    strips, first, last = codes(2, 6, 1, 8, 8), codes(2, 1, 8, 8), codes(2, 1, 8, 8)
    figures.interpolation_strips(
        tmp_path / "i.png", strips, first=first, last=last, levels=17, title="T"
    )
    picture = pixels_of(tmp_path / "i.png")[..., :3]
    shown = (first[:, None], strips, last[:, None])
    places = [place_of(page.panel(images, 17, 8, None), picture) for images in shown]
    assert places == sorted(places) and len({top for top, _ in places}) == 1
    figures.interpolation_strips(tmp_path / "i.png", strips, levels=17)


@pytest.mark.parametrize("dims, steps, side", [(1, 1, 3), (4, 9, 8), (3, 25, 32)])
def test_traversal_names_dimensions_and_values(tmp_path, monkeypatch, dims, steps, side):
    texts = texts_of(monkeypatch)
    images = codes(dims, steps, 3, side, side)
    values = torch.linspace(-2, 2, steps) if steps > 1 else [0.0]
    figures.traversal_grid(tmp_path / "t.png", images, levels=17, values=values)
    scale = max(1, min(round(64 / side), 1600 // (steps * side)))
    place_of(page.panel(images, 17, scale, None), pixels_of(tmp_path / "t.png")[..., :3])
    assert {f"z{d}" for d in range(dims)} <= set(texts) and "0" in texts
    if (dims, steps) == (4, 9):
        assert "+2.0" in texts and "-2.0" in texts


def test_manifold_points_fill_a_normal_evenly():
    points = figures.manifold_points(5)
    assert points.shape == (25, 2) and points.dtype == torch.float32
    grid = torch.special.ndtr(points).view(5, 5, 2)
    across = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(grid[..., 0], across.expand(5, 5))
    torch.testing.assert_close(grid[..., 1], across.flip(0)[:, None].expand(5, 5))
    assert figures.manifold_points(1).tolist() == [[0.0, 0.0]]


def test_manifold_and_arithmetic_show_every_image(tmp_path, monkeypatch):
    images = codes(3, 4, 1, 8, 8)
    figures.latent_manifold(tmp_path / "m.png", images, levels=17, as_ink=True)
    panel = page.panel(images, 17, 6, page.SAMPLE_INK)
    place_of(panel, pixels_of(tmp_path / "m.png")[..., :3])
    texts = texts_of(monkeypatch)
    terms = [codes(2, 1, 8, 8) for _ in range(4)]
    figures.latent_arithmetic(tmp_path / "a.png", *terms, levels=17, names="wxyz")
    picture = pixels_of(tmp_path / "a.png")[..., :3]
    places = [place_of(page.panel(t[:, None], 17, 8, None), picture) for t in terms]
    assert places == sorted(places) and set("wxyz") <= set(texts)
    assert texts.count("=") == texts.count("+") == 2


def test_the_plane_of_a_scatter():
    z = torch.randn(50, 2)
    points, names = figures.latent_space.principal_plane(z)
    assert torch.equal(points, z.double()) and names == ("first latent", "second latent")
    wide = torch.randn(50, 5) * torch.tensor([0.1, 9.0, 0.1, 3.0, 0.1])
    points, names = figures.latent_space.principal_plane(wide)
    assert abs(np.corrcoef(points[:, 0], wide[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(points[:, 1], wide[:, 3])[0, 1]) > 0.99
    assert names[0].startswith("first principal axis (") and names[0].endswith("%)")
    for shape in ((1, 5), (3, 1), (2, 7)):
        assert figures.latent_space.principal_plane(torch.randn(shape))[0].shape == (shape[0], 2)


def test_scatter_names_each_class_at_its_median(tmp_path, monkeypatch):
    texts = {}
    from matplotlib.axes import Axes

    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **k: texts.update({s: (x, y)}))
    z = torch.cat([torch.randn(30, 2), torch.randn(30, 2) + 9])
    labels = torch.arange(60) // 30
    figures.latent_scatter(tmp_path / "s.png", z, labels, class_names=("low", "high"))
    assert set(texts) == {"low", "high"}
    assert texts["high"] == tuple(z[30:].double().median(0).values.tolist())
    figures.latent_scatter(tmp_path / "s.png", torch.randn(4, 3))


def test_kl_bars_fall_and_count_what_is_active(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    seen, text = {}, []
    bar = Axes.bar
    monkeypatch.setattr(
        Axes, "bar", lambda self, x, h, **k: (seen.update(h=h, **k), bar(self, x, h, **k))[1]
    )
    write = Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **k: (text.append(s), write(self, x, y, s, **k))[1]
    )
    kl = torch.tensor([0.5, 0.001, 2.0])
    figures.kl_per_dimension(tmp_path / "k.png", kl)
    assert seen["h"].tolist() == kl[[2, 0, 1]].double().tolist()
    assert seen["color"] == [page.COLOURS[0]] * 2 + [page.RULE]
    assert text == ["2 of 3 active, 2.50 nats in all"]
    figures.kl_per_dimension(tmp_path / "k.png", torch.rand(100), active=torch.rand(100) > 0.5)


def test_dots_lie_at_their_points_over_the_real_ones():
    points = torch.tensor([[0, 0], [255, 255], [255, 0]]).view(3, 1, 1, 2)
    pixels = figures.plane(points, levels=256, real=points[:1].flip(3) + 100, edge=256).astype(int)
    for x, y in points.flatten(1).tolist():
        red, _, blue = pixels[255 - y, x]
        assert blue - red > 60
    red, _, blue = pixels[255 - 100, 100]
    assert blue - red < 10 and red < 250
    assert (pixels[100:150, 200] == 255).all() and (pixels[0, 0] == 255).all()
    thrice = figures.plane(points[:1].repeat(3, 1, 1, 1), levels=256, edge=256)
    assert thrice[255, 0, 0] < figures.plane(points[:1], levels=256, edge=256)[255, 0, 0]


def test_planes_stand_side_by_side_each_named(tmp_path, monkeypatch):
    texts = texts_of(monkeypatch)
    sets = {name: codes(20, 1, 1, 2, levels=256) for name in ("one", "two", "three")}
    real = codes(50, 1, 1, 2, levels=256)
    figures.points(tmp_path / "p.png", sets, levels=256, real=real, columns=2, title="T")
    picture = pixels_of(tmp_path / "p.png")[..., :3]
    planes = [figures.plane(points, levels=256, real=real)[1:-1, 1:-1] for points in sets.values()]
    places = [place_of(np.ascontiguousarray(plane), picture) for plane in planes]
    assert places[0][0] == places[1][0] < places[2][0] and places[0][1] == places[2][1]
    assert {*sets, "T"} <= set(texts)


def test_the_shape_alone_decides_between_a_plane_and_a_grid(tmp_path):
    path, points = tmp_path / "x.png", codes(9, 1, 1, 2, levels=256)
    figures.write_samples(path, points, levels=256, real=points)
    assert np.array_equal(pixels_of(path), figures.plane(points, levels=256, real=points))
    figures.write_comparison(path, [points, points + 0, points.flip(3)], levels=256, columns=3)
    assert np.array_equal(pixels_of(path), figures.plane(points.flip(3), levels=256, real=points))
    images = codes(4, 1, 8, 8)
    figures.write_samples(path, images, levels=17, scale=1, real=images)
    assert np.array_equal(pixels_of(path), figures.to_grid(images, levels=17, columns=2))
    figures.write_comparison(path, [images, 16 - images], levels=17, columns=4)
    assert pixels_of(path).shape == (19 * 8, 37 * 8)
    assert figures.samples_shown((1, 1, 2), 64) > 64 == figures.samples_shown((3, 1, 2), 64)


@pytest.mark.parametrize(
    "draw, named",
    [
        (lambda p, x: figures.interpolation_strips(p, x, levels=2), "interpolation_strips: images"),
        (lambda p, x: figures.traversal_grid(p, x[:0, None], levels=2), "at least one image"),
        (lambda p, x: figures.latent_manifold(p, None, levels=2), "got NoneType"),
        (
            lambda p, x: figures.reconstructions(p, {"a": x, "b": x[:1]}, levels=2),
            r"images\['b'\] must have shape \(3, 1, 4, 4\), got \(1, 1, 4, 4\)",
        ),
        (lambda p, x: figures.latent_arithmetic(p, x, x, x, x[0], levels=2), "result must have"),
        (lambda p, x: figures.points(p, {"a": x}, levels=2), r"samples must be codes \(N, 1, 1, 2"),
        (lambda p, x: figures.latent_scatter(p, x), r"z must have shape \(N, D\), got"),
    ],
)
def test_figures_refuse_what_they_cannot_show(draw, named, tmp_path):
    with pytest.raises(ValueError, match=f"fastgen.figures.*{named}"):
        draw(tmp_path / "x.png", torch.zeros(3, 1, 4, 4, dtype=torch.int64))
    assert not (tmp_path / "x.png").exists()


def test_the_gradients_of_both_generator_losses_are_those_of_the_theory():
    d = torch.tensor([[1e-6, 0.01, 0.3], [0.5, 0.9, 1 - 1e-9]], dtype=torch.float64)
    torch.testing.assert_close(figures.generator_gradient("minimax", d), d)  # vanishes as D -> 0
    torch.testing.assert_close(figures.generator_gradient("non_saturating", d), 1 - d)
    assert (figures.generator_gradient("hinge", d) == 1).all()


def test_gradients_are_drawn_against_the_discriminator(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    lines = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, *xy, **k: (lines.append(xy), plot(self, *xy, **k))[1]
    )
    figures.generator_gradients(tmp_path / "g.png", title="T", caption="C")
    (x, minimax), (_, other) = lines
    assert np.allclose(minimax, x) and np.allclose(other, 1 - x) and 0 < x[0] < 0.01


def test_weights_at_the_bound_are_counted(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    bars, texts = [], []
    stairs, write = Axes.stairs, Axes.text
    monkeypatch.setattr(
        Axes, "stairs", lambda self, *a, **k: (bars.append(a), stairs(self, *a, **k))[1]
    )
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **k: (texts.append(s), write(self, x, y, s, **k))[1]
    )
    clipped = torch.cat([torch.full((30,), 0.1), torch.full((20,), -0.1), torch.zeros(50)])
    weights = {"clipped": clipped, "free": torch.randn(7, 9)}
    figures.weight_histograms(tmp_path / "w.png", weights, bounds={"clipped": 0.1}, title="T")
    (shares, edges), (free, _) = bars
    assert texts == ["50% at ±0.1"] and shares.sum() == pytest.approx(1) == free.sum()
    at = [shares[np.searchsorted(edges, v) - 1] for v in (-0.1, 1e-9, 0.1)]
    assert at == pytest.approx([0.2, 0.5, 0.3])


def test_panels_leave_out_what_was_not_measured(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    texts, write = [], Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **k: (texts.append(s), write(self, x, y, s, **k))[1]
    )
    nan = float("nan")
    panels = {
        "loss": {"critic": ([1, 2, 3], [nan, 4.0, nan]), "generator": ([1, 2, 3], [1.0, 2.0, 3.0])},
        "saturation": {"share": ([1, 2, 3], [nan] * 3)},
    }
    figures.curve_panels(tmp_path / "c.png", panels, title="T")
    assert texts == ["critic  4", "generator  3"]
