"""Autoencoder, its linear form against PCA, DenoisingAutoencoder: training, pictures, commands."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastgen
from fastgen import checkpoint, cli, gallery
from fastgen.data import Dataset, Split, load
from fastgen.log import read_log
from fastgen.models import MODELS, Autoencoder, DenoisingAutoencoder
from fastgen.models.autoencoder import pca
from fastgen.train import LOG, train

SHAPE, LEVELS = (1, 4, 6), 5
EACH = pytest.mark.parametrize("kind", [Autoencoder, DenoisingAutoencoder])
SETTINGS = {"batch_size": 8, "evaluations": 2, "grids": 0, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:fastgen.add_noise. running the plain")


def model(kind=Autoencoder, shape=SHAPE, levels=LEVELS, latent_dim=3, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        deep = {} if options.get("linear") else {"width": 16, "layers": 1}
        return kind(latent_dim=latent_dim, shape=shape, levels=levels, **deep | options)


def images(n=7, shape=SHAPE, levels=LEVELS, seed=1):
    return torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(seed))


def halves(n=64):
    """Images of two brightnesses left and right."""
    bright = torch.randint(LEVELS, (n, 2), generator=torch.Generator().manual_seed(2))
    codes = bright.repeat_interleave(3, 1)[:, None, None, :].expand(n, *SHAPE).to(torch.uint8)
    return Dataset("halves", SHAPE, LEVELS, None, Split(codes[9:]), Split(codes[:9]))


@EACH
@pytest.mark.parametrize("shape, net", [(SHAPE, None), ((3, 5, 7), "mlp"), ((3, 9, 12), "conv")])
def test_shapes_and_loss(kind, shape, net):
    m, x = model(kind, shape, net=net), images(shape=shape)
    y = m(x)
    assert y.recon.shape == x.shape and y.z.shape == (7, 3) and y.loss.shape == (7,)
    error = (y.recon - x / (LEVELS - 1)).square().sum((1, 2, 3))
    torch.testing.assert_close(y.loss, error)
    assert m.encode(x).shape == (7, 3) and m.encode(x).requires_grad
    for made in (m.decode(m.encode(x)), m.reconstruct(x)):
        assert made.shape == x.shape and made.dtype == torch.int64
        assert made.min() >= 0 and made.max() < LEVELS
    assert torch.equal(m.decode(m.encode(x)), m.reconstruct(x))
    assert m.interpolate(x[:2], x[2:4], 5).shape == (2, 5, *shape)
    assert m.traverse(x[:2], 1, steps=4).shape == (2, 4, *shape)
    assert m.latent_arithmetic(x, x, x[:7]).shape == x.shape


def test_no_images():
    m, x = model(), images(0)
    assert m(x).recon.shape == x.shape and m.score(x).shape == (0,)


def test_score_is_the_loss_and_floats_are_on_the_scale_of_the_networks():
    m, x = model().double(), images()
    torch.testing.assert_close(m.score(x), m(x).loss)
    torch.testing.assert_close(m.score(x / (LEVELS - 1)), m(x).loss, rtol=1e-5, atol=1e-6)
    assert not m.score(x).requires_grad


def test_interpolation_goes_from_one_reconstruction_to_the_other():
    m, x = model(), images()
    strip = m.interpolate(x[:3], x[3:6], 4)
    assert torch.equal(strip[:, 0], m.reconstruct(x[:3]))
    assert torch.equal(strip[:, -1], m.reconstruct(x[3:6]))
    assert torch.equal(m.latent_arithmetic(x, x, x), m.reconstruct(x))


def test_pca_is_that_of_numpy():
    x = torch.randn(40, 9) @ torch.randn(9, 9)
    mean, axes = pca(x, 4)
    _, values, expected = np.linalg.svd(x.double().numpy() - mean.numpy(), full_matrices=False)
    torch.testing.assert_close(axes @ axes.T, torch.eye(4, dtype=torch.float64))
    overlap = np.abs(np.diag(axes.numpy() @ expected[:4].T))
    np.testing.assert_allclose(overlap, 1, rtol=1e-9)
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()
    rest = (x - mean).square().sum() - ((x - mean) @ axes.T).square().sum()
    np.testing.assert_allclose(rest, (values[4:] ** 2).sum(), rtol=1e-9)


def test_axes_along_which_no_image_differs_are_zero():
    m = model(linear=True).fit_pca(images(1).expand(5, *SHAPE))
    assert torch.equal(m.reconstruct(images(1)), images(1))
    assert not m.encoder[1].weight.any() and not m.encode(images(4)).any()


def test_the_closed_form_of_a_linear_autoencoder_is_the_projection_on_principal_axes():
    m, x = model(linear=True, latent_dim=5).double(), images(40)
    assert m.fit_pca(x) is m
    flat = (x / (LEVELS - 1)).double().flatten(1)
    mean, axes = pca(flat, 5)
    expected = mean + (flat - mean) @ axes.T @ axes
    torch.testing.assert_close(m(x).recon.flatten(1), expected, rtol=1e-6, atol=1e-6)
    # as many components as values leave nothing
    assert model(linear=True, latent_dim=24).double().fit_pca(x).score(x).max() < 1e-10


def test_a_trained_linear_autoencoder_is_pca():
    data = load("digits")
    x = data.train.images.long()

    def linear():
        return model(shape=data.shape, levels=data.levels, latent_dim=6, linear=True).double()

    closed, trained = linear().fit_pca(x), linear()
    options = {"max_iter": 400, "history_size": 50, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(trained.parameters(), tolerance_change=1e-12, **options)

    def loss():
        optimizer.zero_grad()
        value = trained(x).loss.mean()
        value.backward()
        return value

    before = trained.score(x).mean()
    optimizer.step(loss)
    best, reached = closed.score(x).mean(), trained.score(x).mean()
    assert best <= reached * (1 + 1e-12) and reached < best * 1.0005 < before / 2
    spans = [torch.linalg.qr(m.decoder[0].weight.detach())[0] for m in (closed, trained)]
    assert torch.linalg.svdvals(spans[0].T @ spans[1]).min() > 0.995  # cosines between the spans
    unseen = data.test.images.long()
    ratio = trained.score(unseen).mean() / closed.score(unseen).mean()
    torch.testing.assert_close(ratio.item(), 1.0, rtol=0.005, atol=0)


@pytest.mark.parametrize("noise", ["mask", "gaussian", "salt_pepper"])
def test_noise_is_that_of_add_noise_and_the_target_is_clean(noise):
    m, x = model(DenoisingAutoencoder, noise=noise, amount=0.4), images()
    clean = x / (LEVELS - 1)
    y = m(x, seed=3)
    noisy = fastgen.add_noise(clean, noise, 0.4, seed=3)
    assert torch.equal(y.noisy, noisy) and torch.equal(m.corrupt(x, seed=3), noisy)
    torch.testing.assert_close(y.loss, (y.recon - clean).square().sum((1, 2, 3)))
    torch.testing.assert_close(y.z, m.encode(noisy))
    assert not torch.equal(m(x).noisy, m(x).noisy)
    assert torch.equal(m.denoise(noisy), m.decode(y.z))
    assert torch.equal(m.denoise(x), m.reconstruct(x))
    rows = m.comparison(x)
    assert list(rows) == ["clean", "noisy", "denoised"] and torch.equal(rows["clean"], x)
    assert all(r.shape == x.shape and r.dtype == torch.int64 for r in rows.values())


def test_no_noise_is_an_autoencoder():
    torch.manual_seed(0)
    m, x = model(DenoisingAutoencoder, amount=0), images()
    assert torch.equal(m(x).recon, model(Autoencoder)(x).recon)


@EACH
def test_training_lowers_the_error(kind, tmp_path):
    result = train(model(kind), halves(), out=tmp_path, steps=300, lr=0.01, **SETTINGS)
    rows = read_log(tmp_path / LOG)
    assert rows[-1]["test_psnr"] > rows[0]["test_psnr"] > 5
    assert result.test["mse"] < 0.02
    noisy = result.test.get("noisy_psnr")
    assert (noisy is None) == (kind is Autoencoder)
    if noisy is not None:
        assert result.test["psnr"] > noisy + 3


@EACH
def test_resumed_training_has_the_same_bits(kind, tmp_path):
    train(model(kind), halves(), out=tmp_path / "whole", steps=6, **SETTINGS)
    settings = SETTINGS | {"schedule": "cosine"}

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model(kind), halves(), out=tmp_path / "parts", steps=6, after_step=stop, **settings)
    other = model(kind, seed=9)
    train(other, halves(), out=tmp_path / "parts", steps=6, resume=True, **settings)
    whole = checkpoint.load(tmp_path / "whole").state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    "kind, options",
    [
        (Autoencoder, {}),
        (Autoencoder, {"linear": True}),
        (Autoencoder, {"net": "mlp", "layers": 2}),
        (DenoisingAutoencoder, {"noise": "salt_pepper", "amount": 0.1}),
    ],
)
def test_config_rebuilds_the_model(kind, options, tmp_path):
    m = model(kind, **options)
    checkpoint.save(m, tmp_path)
    again = checkpoint.load(tmp_path)
    assert type(again) is kind and again.config == json.loads(json.dumps(m.config))
    assert torch.equal(again.reconstruct(images()), m.reconstruct(images()))
    assert kind in MODELS.values()


class Flat(nn.Module):
    def __init__(self, *sizes, to=None):
        super().__init__()
        self.layer, self.to = nn.Linear(*sizes), to

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return y if self.to is None else y.unflatten(1, self.to)


@EACH
def test_modules_of_the_user(kind, tmp_path):
    def own():
        return kind(Flat(24, 2), Flat(2, 24, to=SHAPE), 2, shape=SHAPE, levels=LEVELS)

    m = own()
    train(m, halves(), out=tmp_path, steps=2, **SETTINGS)
    assert m.config["encoder"] == "Flat"
    with pytest.raises(ValueError, match="encoder must be a module, got 'Flat', the name") as told:
        checkpoint.load(tmp_path)
    assert "give it to fastgen.checkpoint.load(directory, model)" in str(told.value)
    again = checkpoint.load(tmp_path, own())
    assert torch.equal(again.reconstruct(images()), m.reconstruct(images()))
    half = kind(None, nn.Sequential(), 24, shape=SHAPE, levels=LEVELS)
    assert isinstance(half.decoder, nn.Sequential)  # an empty one is a module, too
    with pytest.raises(ValueError, match="another configuration .encoder 'Flat' there, None here"):
        checkpoint.load(tmp_path, model(kind, latent_dim=2, width=None, layers=2))


@EACH
@pytest.mark.parametrize(
    "options, named",
    [
        (dict(shape=(4, 6)), r"shape must be \(C, H, W\)"),
        (dict(latent_dim=0), "latent_dim must be a positive int, got 0"),
        (dict(latent_dim=2.0), "latent_dim must be a positive int, got 2.0"),
        (dict(width=-1), "width must be a positive int, got -1"),
        (dict(levels=0), "levels must be a positive int, got 0"),
    ],
)
def test_bad_arguments_say_what_to_do(kind, options, named):
    with pytest.raises(ValueError, match=f"fastgen.models.{kind.__name__}: {named}"):
        model(kind, **options)


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(noise="snow"), "noise must be one of mask, gaussian, salt_pepper, got 'snow'"),
        (dict(amount=1.1), r"amount must be in \[0, 1\] for mask, got 1.1"),
        (dict(amount=-0.1), "amount must be in"),
        (dict(amount=float("nan")), "amount must be in"),
        (dict(amount="half"), "amount must be in .* got 'half'"),
        (dict(noise="gaussian", amount=-1.0), "amount must be a finite number >= 0 for gaussian"),
        (dict(noise="gaussian", amount=float("inf")), "amount must be a finite number"),
    ],
)
def test_bad_noise_says_what_to_do(options, named):
    with pytest.raises(ValueError, match=f"fastgen.models.DenoisingAutoencoder: {named}"):
        model(DenoisingAutoencoder, **options)
    assert model(DenoisingAutoencoder, noise="gaussian", amount=2).amount == 2


def test_bad_modules_say_what_to_do():
    def build(encoder=None, decoder=None, **options):
        return Autoencoder(encoder, decoder, 2, shape=SHAPE, levels=LEVELS, **options)

    with pytest.raises(TypeError, match="encoder must be an nn.Module, got function"):
        build(lambda x: x)
    with pytest.raises(ValueError, match=r"encoder must give \(7, 2\) here, got \(7, 3\); choose"):
        build(Flat(24, 3))(images())
    with pytest.raises(ValueError, match=r"decoder must give \(7, 1, 4, 6\) here, got \(7, 24\)"):
        build(None, Flat(2, 24))(images())
    with pytest.raises(ValueError, match="got tuple"):
        build(nn.Sequential(nn.Flatten(2), nn.Flatten(1), nn.LSTM(24, 2)))(images())
    with pytest.raises(ValueError, match="linear brings its own pair, got encoder; leave out enc"):
        build(Flat(24, 2), linear=True)
    with pytest.raises(ValueError, match="got width=5; leave out width"):
        build(linear=True, width=5)


def test_bad_input_says_what_to_do():
    m = model(linear=True)
    with pytest.raises(ValueError, match=r"codes must be \(B, 1, 4, 6\), got \(2, 1, 4, 5\)"):
        m(images()[:2, ..., :5])
    with pytest.raises(TypeError, match="codes must be an int64 tensor, got torch.uint8"):
        m.encode(images().to(torch.uint8))
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 4, 6\), got \(1, 4, 6\)"):
        m.encode(images()[0] / 4)
    with pytest.raises(ValueError, match=r"z must be \(B, 3\), got \(2, 4\); pass what encode"):
        m.decode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="x must have at least 3 rows and columns .* got .2, 24."):
        m.fit_pca(images(2))
    with pytest.raises(ValueError, match="fit_pca wants a linear model, got a deep one; build it"):
        model().fit_pca(images())


LATENT = ["reconstructions", "interpolation", "arithmetic", "scatter", "traversal", "manifold"]
VARIATIONAL = ["samples", "reconstructions", "interpolation", "arithmetic", "kl", *LATENT[3:]]
PICTURES = {
    "autoencoder": LATENT,
    "denoising-autoencoder": LATENT,
    "vae": VARIATIONAL,
    "conditional-vae": VARIATIONAL,
    "vqvae": ["samples", "reconstructions"],
}


@pytest.mark.parametrize("name", PICTURES)
def test_one_command_trains_and_one_draws(name, tmp_path, capsys):
    out = tmp_path / "run"
    tiny = "--steps 3 --batch-size 4 --test-images 20 --grids 1 --evaluations 1"
    own = "--channels 4 --num-codes 8 --prior-channels 4" if name == "vqvae" else "--latent-dim 2"
    assert cli.main(f"train {name} --data digits --out {out} {tiny} {own}".split()) == 0
    assert f"{name}: " in capsys.readouterr().out
    assert (out / "reconstructions" / "step-0000003.png").exists()
    assert (out / "samples").exists() == ("samples" in PICTURES[name])
    assert cli.main(f"figures {out}".split()) == 0
    wrote = [f"wrote {out}/figures/{n}.png" for n in PICTURES[name]]
    assert capsys.readouterr().out.splitlines() == wrote
    assert all(Image.open(out / "figures" / f"{n}.png").size[0] > 400 for n in PICTURES[name])


def test_figures_of_colour_patches_into_another_folder(tmp_path):
    out = tmp_path / "run"
    tiny = "--steps 1 --batch-size 2 --test-images 4 --grids 0 --width 4 --layers 1"
    line = f"train autoencoder --data patches8 --size 8x10 --out {out} {tiny}"
    assert cli.main(line.split()) == 0
    made = gallery.main(out, out=str(tmp_path / "pictures"))
    assert {p.name for p in made} == {p.name for p in (tmp_path / "pictures").iterdir()}
    assert "manifold.png" not in {p.name for p in made} and len(made) == 5


def test_figures_of_a_single_unlabelled_test_image(tmp_path):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).randint(0, 256, (5, 6, 7), np.uint8))
    for name, count in (("vae", 7), ("autoencoder", 5)):
        line = f"train {name} --data {tmp_path}/x.npy --out {tmp_path}/{name} --steps 1"
        assert cli.main([*line.split(), "--latent-dim", "1", "--grids", "0"]) == 0
        assert len(gallery.main(tmp_path / name)) == count


def test_figures_and_samples_say_what_is_missing(tmp_path, capsys):
    train(model(), halves(), out=tmp_path / "run", steps=1, **SETTINGS)
    for line, named in (
        (f"figures {tmp_path}/run", "does not say what it was trained on; give data"),
        (f"figures {tmp_path}/run --data digits", "data must be images (1, 4, 6) of 5 levels, got"),
        (f"figures {tmp_path}/none", "no checkpoint in"),
        (f"sample {tmp_path}/run", "draws no images; see what it does"),
    ):
        assert cli.main(line.split()) == 2
        assert named in capsys.readouterr().err


def test_levels_outside_and_labels_are_refused():
    model = Autoencoder(shape=(1, 8, 8), levels=17, latent_dim=2)
    with pytest.raises(ValueError, match="images must hold levels in 0 .. 16, got 200"):
        model(torch.full((2, 1, 8, 8), 200))
    with pytest.raises(ValueError, match="condition must be None"):
        model.latent(torch.zeros(2, 1, 8, 8).long(), torch.zeros(2).long())
