"""VQVAE and VQVAE2: shapes, training in two stages, sampling, the command line."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import assert_equal_bits, interrupt_after, state_of
from tiny import CLASSES

from fastgen import checkpoint, cli, figures
from fastgen.data import Dataset, Split
from fastgen.log import read_log
from fastgen.models import MODELS, VQVAE, VQVAE2
from fastgen.train import LOG, train

SHAPE, LEVELS = (1, 8, 12), 5
EACH = pytest.mark.parametrize("kind", [VQVAE, VQVAE2])
SIZES = dict(channels=8, blocks=1, num_codes=6, code_dim=4, prior_channels=8, prior_layers=1)
SETTINGS = {"batch_size": 4, "evaluations": 2, "grids": 0, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:fastgen.train. .* are dead")


def model(kind, shape=SHAPE, levels=LEVELS, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(shape, levels, **SIZES | {"downsample": 2} | options)


def images(n=3, shape=SHAPE, levels=LEVELS):
    return torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(1))


def data(n=24, labelled=False):
    """Images of two brightnesses left and right: little to know, so a few steps learn it."""
    bright = torch.randint(LEVELS, (n, 2), generator=torch.Generator().manual_seed(2))
    codes = bright.repeat_interleave(6, 1)[:, None, None, :].expand(n, *SHAPE).to(torch.uint8)
    labels = bright[:, 0] % CLASSES if labelled else None
    splits = [
        Split(codes[part], None if labels is None else labels[part])
        for part in (slice(0, n - 7), slice(n - 7, n))
    ]
    return Dataset("halves", SHAPE, LEVELS, CLASSES if labelled else None, *splits)


@EACH
@pytest.mark.parametrize("shape", [SHAPE, (3, 8, 4)])
@pytest.mark.parametrize("downsample", [2, 4])
def test_codes_and_images_have_the_shapes_that_were_asked_for(kind, shape, downsample):
    shape = (shape[0], *(downsample * side for side in shape[1:]))
    net = model(kind, shape, downsample=downsample)
    x = images(shape=shape)
    y, loss = net(x)
    assert y.shape == x.shape and y.dtype == torch.float32 and loss.shape == ()
    maps = net.encode(x)
    maps = maps if isinstance(maps, tuple) else (maps,)
    h, w = shape[1] // downsample, shape[2] // downsample
    expected = [(3, h, w)] if kind is VQVAE else [(3, h // 2, w // 2), (3, h, w)]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(m.dtype == torch.int64 and 0 <= m.min() and m.max() < 6 for m in maps)
    back = net.decode(net.encode(x))
    assert back.shape == x.shape and back.dtype == torch.int64
    assert 0 <= back.min() and back.max() < LEVELS
    assert torch.equal(net.reconstruct(x), back)


@EACH
def test_encoding_writes_nothing_and_agrees_with_the_training_forward(kind):
    net = model(kind)
    net(images())  # the codebooks start
    before = {name: value.clone() for name, value in net.state_dict().items()}
    codes = net.train().encode(images())
    assert_equal_bits(before, net.state_dict())
    assert all(not map.requires_grad for map in (codes if isinstance(codes, tuple) else (codes,)))
    y, _ = net.eval()(images())
    drawn = ((y.detach() + 1) * (LEVELS - 1) / 2).round().clamp(0, LEVELS - 1).long()
    assert torch.equal(net.decode(codes), drawn)


def test_the_lower_prior_of_vqvae2_sees_the_upper_codes():
    net = model(VQVAE2).double().eval()
    x = images(2)
    top, bottom = net.encode(x)
    prior = net.priors[1]
    a = prior.log_prob(bottom, top, None)
    assert not torch.allclose(a, prior.log_prob(bottom, (top + 1) % 6, None), rtol=1e-4)
    each = net.prior_log_probs(x)
    torch.testing.assert_close(each[0], net.priors[0].log_prob(top, None, None))
    torch.testing.assert_close(each[1], a)


@EACH
def test_priors_learn_alone(kind):
    net = model(kind)
    net(images())
    sum(term.sum() for term in net.prior_log_probs(images())).backward()
    learned = {name for name, p in net.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in net.named_parameters() if name.startswith("priors")}


@EACH
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_sample_i_of_a_seed_is_the_same_in_any_batch(kind, classes):
    net = model(kind, classes=classes)
    labels = None if classes is None else torch.tensor([0, 1, 1, 0, 1])
    whole = net.sample(5, labels, seed=1)
    assert whole.shape == (5, *SHAPE) and whole.dtype == torch.int64
    assert 0 <= whole.min() and whole.max() < LEVELS
    assert torch.equal(net.sample(5, labels, seed=1, batch=2), whole)
    part = None if classes is None else labels[3:]
    assert torch.equal(net.sample(2, part, seed=1, first_index=3), whole[3:])
    assert not torch.equal(net.sample(5, labels, seed=2), whole)
    assert net.training and net.sample(0, None if classes is None else labels[:0]).shape[0] == 0


@EACH
@pytest.mark.parametrize("labelled", [False, True])
def test_training_lowers_both_losses(kind, labelled, tmp_path):
    options = {"classes": CLASSES if labelled else None, "decay": 0.9}
    net = model(kind, num_codes=16, channels=16, **options)
    settings = SETTINGS | {"steps": 200, "evaluations": 5, "lr": 0.01, "batch_size": 8}
    result = train(net, data(64, labelled), out=tmp_path, **settings)
    rows = read_log(tmp_path / LOG)
    assert rows[0]["train_mse"] > 2 * rows[1]["train_mse"] > 0
    assert result.test["psnr"] > rows[0]["test_psnr"] + 3
    assert rows[1]["test_psnr"] == rows[-1]["test_psnr"]  # the priors left it alone
    bits = "bits_per_code" if kind is VQVAE else "bottom_bits_per_code"
    assert rows[2][f"train_{bits}"] > rows[4][f"train_{bits}"] and result.test[bits] < np.log2(16)
    # what a stage does not measure is nan in the log
    assert np.isnan(rows[0][f"train_{bits}"]) and np.isnan(rows[-1]["train_psnr"])
    prefixes = [""] if kind is VQVAE else ["top_", "bottom_"]
    for prefix in prefixes:
        assert 0 < result.test[f"{prefix}usage"] <= 1 <= result.test[f"{prefix}perplexity"] <= 16
    places = sum(np.prod(shape) for shape in net.map_shapes)
    total = result.test["bits_per_dim"] * np.prod(SHAPE)
    assert 0 < total < places * np.log2(16)


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_an_interrupted_run_goes_on_bit_for_bit_in_either_stage(tmp_path, stop):
    settings = SETTINGS | {"steps": 8, "evaluations": 4}

    def fresh(seed=0):
        return model(VQVAE2, dropout=0.3, seed=seed)

    train(fresh(), data(), out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt, match=f"after step {stop}"):
        stopping = {"after_step": interrupt_after(stop)}
        train(fresh(), data(), out=tmp_path / "parts", **settings, **stopping)
    train(fresh(seed=3), data(), out=tmp_path / "parts", resume=True, **settings)
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert_equal_bits(whole[0], parts[0])
    assert {**whole[1], "test": None} == {**parts[1], "test": None}
    assert whole[1]["stage"] == 1 and whole[1]["stage_step"] == 4
    rows = [read_log(tmp_path / name / LOG) for name in ("whole", "parts")]
    for a, b in zip(*rows, strict=True):
        for name in a.keys() - {"seconds", "train_seconds", "images_per_s"}:
            assert a[name] == b[name] or np.isnan([a[name], b[name]]).all(), name


def test_the_autoencoder_rests_while_the_priors_learn(tmp_path):
    states = {}
    net = model(VQVAE)

    def keep(step):
        states[step] = {name: value.clone() for name, value in net.state_dict().items()}

    train(net, data(), out=tmp_path, steps=8, after_step=keep, **SETTINGS)
    for name, value in states[8].items():
        moved = not torch.equal(value, states[4][name])
        assert moved == name.startswith("priors"), name
        if name.startswith("priors"):
            assert torch.equal(states[4][name], states[1][name])


def test_a_prolonged_training_goes_on_with_the_priors(tmp_path):
    settings = SETTINGS | {"schedule": "constant"}
    net = model(VQVAE)
    train(net, data(), out=tmp_path, steps=4, **settings)
    encoder = [p.clone() for p in net.encoder.parameters()]
    priors = [p.clone() for p in net.priors.parameters()]
    train(net, data(), out=tmp_path, steps=12, resume=True, **settings)
    assert all(map(torch.equal, encoder, net.encoder.parameters()))
    assert not all(map(torch.equal, priors, net.priors.parameters()))


def test_pictures_of_reconstructions_then_of_samples_too(tmp_path):
    train(model(VQVAE2), data(), out=tmp_path, steps=4, **SETTINGS | {"grids": 4})
    names = {
        folder: sorted(p.name for p in (tmp_path / folder).iterdir())
        for folder in ("reconstructions", "samples")
    }
    steps = [f"step-{step:07}.png" for step in (1, 2, 3, 4)]
    # at the border the priors have not begun
    assert names == {"reconstructions": steps, "samples": steps[2:]}
    picture = np.asarray(Image.open(tmp_path / "reconstructions" / steps[0]))
    assert picture.shape == ((2 * 9 + 1) * 5, (8 * 13 + 1) * 5)  # 7 test images


def test_pairs_are_rows_above_rows():
    first, second = torch.arange(5).view(5, 1, 1, 1), torch.arange(10, 15).view(5, 1, 1, 1)
    rows = figures.interleaved([first, second], 2).flatten().tolist()
    assert rows == [0, 1, 10, 11, 2, 3, 12, 13, 4, 14]


@EACH
def test_codes_that_die_are_told_once_with_advice(kind, tmp_path):
    settings = SETTINGS | {"steps": 40, "evaluations": 8}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(
            model(kind, decay=0.5, revive_below=0.0, num_codes=64), data(), out=tmp_path, **settings
        )
    texts = [str(w.message) for w in caught if "dead" in str(w.message)]
    assert len(texts) == len(kind.names)
    for name, text in zip(kind.names, sorted(texts, key=lambda t: "'bottom'" in t), strict=True):
        assert f"of the 64 codes of the map {name!r} are dead" in text
        assert "--revive-below 0.1" in text and "--num-codes" in text


@EACH
@pytest.mark.parametrize("ema", [True, False])
def test_config_rebuilds_the_model(kind, ema, tmp_path):
    net = model(kind, ema=ema, classes=CLASSES, decay=0.8)
    net(images())
    checkpoint.save(net, tmp_path)
    again = checkpoint.load(tmp_path)
    assert type(again) is kind and again.config == json.loads(json.dumps(net.config))
    assert torch.equal(again.reconstruct(images()), net.reconstruct(images()))
    assert kind in MODELS.values()


@EACH
def test_float64_and_colours(kind):
    net = model(kind, (3, 8, 8)).double()
    y, loss = net(images(shape=(3, 8, 8)))
    assert y.dtype == loss.dtype == torch.float64
    assert net.sample(2, seed=0).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_one_command_trains_and_one_samples(name, tmp_path, capsys):
    out = tmp_path / "run"
    flags = "--downsample 2 --channels 4 --blocks 1 --num-codes 8 --code-dim 2 --prior-channels 4"
    flags += " --prior-layers 1 --batch-size 4 --test-images 20 --grids 1 --evaluations 2"
    assert cli.main(f"train {name} --data digits --out {out} --steps 4 {flags}".split()) == 0
    text = capsys.readouterr().out
    assert f"{name}: " in text and "bits/dim" in text and "psnr" in text
    assert (out / "samples" / "step-0000004.png").exists()
    assert (out / "reconstructions" / "step-0000004.png").exists()
    assert cli.main(f"sample {out} -n 6 --label 3 --out {tmp_path}/a.npy --seed 1".split()) == 0
    assert cli.main(f"sample {out} -n 6 --out {tmp_path}/a.png --seed 1".split()) == 0
    drawn = np.load(tmp_path / "a.npy")
    assert drawn.shape == (6, 1, 8, 8) and 0 <= drawn.min() and drawn.max() <= 16
    assert cli.main(f"train {name} --out {out} --steps 6 --resume".split()) == 0
    assert checkpoint.load_resume(out)[1]["step"] == 6


@EACH
@pytest.mark.parametrize(
    "options, named",
    [
        (dict(shape=(1, 6, 7)), r"shape must have a height and width divisible by ., for downs"),
        (dict(downsample=3), "downsample must be 2, 4, 8, ..., got 3; use 2 or 4"),
        (dict(downsample=1), "downsample must be 2, 4, 8, ..., got 1"),
        (dict(num_codes=0), "num_codes must be a positive int, got 0"),
        (dict(blocks=-1), "blocks must be an int >= 0, got -1"),
        (dict(levels=1.5), "levels must be a positive int, got 1.5"),
        (dict(classes=0), "classes must be a positive int, got 0"),
    ],
)
def test_bad_arguments_say_what_to_do(kind, options, named):
    with pytest.raises(ValueError, match=f"fastgen.models.{kind.__name__}: {named}"):
        model(kind, **options)


@EACH
def test_bad_input_says_what_to_do(kind):
    net = model(kind, classes=CLASSES)
    net(images())
    x, codes = images(), net.encode(images())
    with pytest.raises(TypeError, match="codes must be an int64 tensor, got torch.float32"):
        net.encode(x.float())
    with pytest.raises(ValueError, match=r"codes must be \(B, 1, 8, 12\), got"):
        net(x[..., :8])
    with pytest.raises(ValueError, match="codes must be int64 .*; pass what encode returned"):
        net.decode(x)
    last = codes[-1] if isinstance(codes, tuple) else codes
    wrong = last.clone().fill_(6)
    with pytest.raises(IndexError, match="indices must be in 0 .. 5, got 6"):
        net.decode((codes[0], wrong) if isinstance(codes, tuple) else wrong)
    with pytest.raises(ValueError, match=r"condition must be int64 labels \(2,\), got NoneType"):
        net.sample(2)
    with pytest.raises(ValueError, match="must hold labels in 0 .. 1, got 2"):
        net.sample(2, torch.tensor([0, 2]))
