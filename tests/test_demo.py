import numpy as np
import pytest
import torch
from PIL import Image

from fastgen import demo
from fastgen.data import load


@pytest.fixture(autouse=True)
def small(monkeypatch):
    torch.set_num_threads(1)
    network = {"channels": 4, "layers": 1, "kernel_size": 3, "first_kernel_size": 3}
    monkeypatch.setattr(demo, "NETWORK", network)
    monkeypatch.setattr(demo, "EVALUATIONS", 2)
    monkeypatch.setattr(demo, "PER_CLASS", 8)
    yield
    torch.set_num_threads(2)


def test_the_demo_draws_prints_and_is_quick_the_second_time(tmp_path, capsys):
    demo.main(out=str(tmp_path), steps=4, progress=False)
    first = capsys.readouterr().out
    for part in ("uniform, log2(17)", "4.087", "pixel marginals", "gated PixelCNN, plain PyTorch"):
        assert part in first
    assert "masked_conv2d: " in first and "requested label in" in first
    assert "naive sampler, which runs the network 64 times" in first
    assert "equal in every pixel" in first
    assert np.asarray(Image.open(tmp_path / "samples.png")).shape[1] > 1000
    assert (tmp_path / "training.png").stat().st_size > 10_000

    picture = (tmp_path / "samples.png").read_bytes()
    demo.main(out=str(tmp_path), steps=4, progress=False)
    assert f"going on with {tmp_path / 'model'}" in capsys.readouterr().out
    assert (tmp_path / "samples.png").read_bytes() == picture


def test_other_settings_or_fresh_train_anew(tmp_path, capsys, monkeypatch):
    demo.main(out=str(tmp_path), steps=1, plain=False, progress=False)
    demo.main(out=str(tmp_path), steps=2, plain=False, progress=False)
    demo.main(out=str(tmp_path), steps=2, plain=False, progress=False, fresh=True)
    monkeypatch.setitem(demo.NETWORK, "channels", 6)
    demo.main(out=str(tmp_path), steps=2, plain=False, progress=False)
    output = capsys.readouterr().out
    assert "going on" not in output and "plain PyTorch" not in output


def test_marginals_are_those_of_counting():
    data = load("digits")
    images, tests = data.train.images.flatten(1), data.test.images.flatten(1)
    bits = 0.0
    for pixel in range(64):
        counts = torch.bincount(images[:, pixel].long(), minlength=17).double() + 1
        bits -= (counts / counts.sum()).log2()[tests[:, pixel].long()].sum().item()
    expected = bits / tests.numel()
    assert demo.marginal_bits_per_dim(data, by_class=False) == pytest.approx(expected)
    assert demo.marginal_bits_per_dim(data, by_class=True) < expected < np.log2(17)
