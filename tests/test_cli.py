import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen import checkpoint, cli
from fastgen.data import load
from fastgen.log import read_log
from fastgen.train import train

ROOT = Path(__file__).parent.parent
TINY = "--channels 4 --layers 1 --first-kernel-size 3 --batch-size 4 --test-images 20 --grids 0"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)


def run(line):
    return cli.main(line.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "digits"
    assert run(f"train gated-pixelcnn --data digits --out {out} --steps 3 {TINY} --lr 0.01") == 0
    return out


def test_train_leaves_a_checkpoint_and_a_log(trained):
    model, config = checkpoint.load(trained), checkpoint.read_config(trained)
    assert model.config["channels"] == 4 and model.classes == 10
    assert config["data"]["arguments"] == {"spec": "digits"}
    assert config["training"]["lr"] == 0.01
    assert [row["step"] for row in read_log(trained / "log.csv")] == [1, 2, 3]


def test_the_command_gives_what_its_python_functions_give(trained, tmp_path):
    torch.manual_seed(0)
    config = checkpoint.read_config(trained)
    model = checkpoint.build(config)
    settings = {"steps": 3, "batch_size": 4, "lr": 0.01, "test_images": 20, "grids": 0}
    train(model, load("digits"), out=tmp_path, progress=False, **settings)
    theirs = checkpoint.load(trained).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def test_resume_takes_the_settings_of_the_checkpoint(tmp_path, capsys):
    out = tmp_path / "run"
    command = f"train pixelcnn --data digits --out {out} --schedule constant"
    assert run(f"{command} --steps 2 {TINY}") == 0
    assert run(f"train pixelcnn --out {out} --steps 3 --resume") == 0
    assert "step 3" in capsys.readouterr().out
    training = checkpoint.read_config(out)["training"]
    assert training["schedule"] == "constant" and training["batch_size"] == 4
    assert run(f"train gated-pixelcnn --out {out} --steps 4 --resume") == 2
    assert "checkpoint of 'pixelcnn', got a 'gated-pixelcnn'" in capsys.readouterr().err


def test_an_unconditional_model_of_resized_files(tmp_path, capsys):
    out, images = tmp_path / "run", np.random.RandomState(0).randint(0, 256, (9, 5, 7), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(9) % 3)
    flags = f"--size 4x6 --levels 3 --no-conditional --steps 1 {TINY}"
    assert run(f"train gated-pixelcnn --data {tmp_path}/x.npz --out {out} {flags}") == 0
    model = checkpoint.load(out)
    assert (model.shape, model.levels, model.classes) == ((1, 4, 6), 3, None)
    assert run(f"sample {out} --label 3 --out {tmp_path}/x.png") == 2
    assert "knows no classes; leave it out" in capsys.readouterr().err


def test_sample_writes_pictures_and_codes(trained, tmp_path):
    path = tmp_path / "new" / "grid.png"
    assert run(f"sample {trained} -n 6 --label 3 --out {path} --seed 1 --columns 3 --scale 2") == 0
    assert np.asarray(Image.open(path)).shape == ((2 * 9 + 1) * 2, (3 * 9 + 1) * 2)
    assert run(f"sample {trained} -n 20 --out {tmp_path}/all.npz --seed 1") == 0
    arrays = np.load(tmp_path / "all.npz")
    assert arrays["codes"].shape == (20, 1, 8, 8) and arrays["codes"].max() <= 16
    assert arrays["labels"].tolist() == [i // 2 for i in range(20)]
    assert run(f"sample {trained} -n 3 --label 1 --out {tmp_path}/c.npy --seed 1") == 0
    whole = np.load(tmp_path / "c.npy")
    flags = "-n 1 --label 1 --seed 1 --first-index 2"
    assert run(f"sample {trained} {flags} --out {tmp_path}/d.npy") == 0
    assert np.array_equal(np.load(tmp_path / "d.npy")[0], whole[2])


@pytest.mark.parametrize(
    "line, message",
    [
        ("train pixelcn --data digits --out x --steps 1", "did you mean 'pixelcnn'"),
        ("train pixelcnn --data digits --steps 1", "--out is missing"),
        ("train pixelcnn --out {tmp} --steps 1", "--data is missing"),
        ("train pixelcnn --data digits --out {tmp}", "exactly one of minutes and steps"),
        ("train pixelcnn --data digts --out {tmp} --steps 1", "digts"),
        ("train pixelcnn --data digits --out {tmp} --steps 1 --channels 7", "channels"),
        ("train pixelcnn --data digits --out {tmp} --steps 1 --resume", "no checkpoint in"),
        ("sample {tmp}/none", "no checkpoint in"),
        ("sample {tmp}/none --out x.gif", "must end in .png, .npz or .npy, got 'x.gif'"),
        ("sample {trained} --label 10", "label must be in 0..9, got 10"),
        ("sample {trained} --temperature 0", "temperature"),
        ("bench nothing", "nothing"),
        ("sample {trained} -n 1 --device foo", "device must be one that torch can use"),
    ],
)
def test_errors_are_one_readable_line(line, message, trained, tmp_path, capsys):
    assert run(line.format(tmp=tmp_path, trained=trained)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        run(f"sample {tmp_path}/none --debug")


@pytest.mark.parametrize("line", ["nonsense", "sample --nonsense", "train pixelcnn --chanels 3"])
def test_wrong_words_are_argparse_errors(line):
    with pytest.raises(SystemExit) as error:
        run(line)
    assert error.value.code == 2


def test_help_names_every_flag_with_its_meaning(capsys):
    for command in ("", "train", "sample", "figures", "bench", "demo"):
        with pytest.raises(SystemExit) as done:
            run(f"{command} --help")
        assert done.value.code == 0
    with pytest.raises(SystemExit):
        run("train gated-pixelcnn --help")
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--minutes X time budget", "--dropout X", "--label N", "--size SIZE", "--grey"):
        assert part in text
    assert run("") == 2


def test_info_is_valid_json(capsys):
    assert run("info --json") in (0, None)
    assert "ops" in json.loads(capsys.readouterr().out)


def test_flags_follow_signatures():
    import argparse

    def function(
        a: int,
        rate: float = 0.5,
        *,
        n: int = 1,
        word: str | None = None,
        kind: Literal["x", "y"] = "x",
        fresh: bool = False,
        progress: bool = True,
        size: int | tuple[int, int] | None = None,
        call: object = None,
    ):
        """Does.

        a, rate: two numbers,
            both real.
        word: a word, default "w".
        """

    parser = argparse.ArgumentParser()
    names = ["rate", "n", "word", "kind", "fresh", "progress", "size"]
    assert cli.add_flags(parser, function, skip=("a",)) == names
    line = "--rate 2 -n 3 --word w --kind y --fresh --no-progress --size 3x4"
    values = [2.0, 3, "w", "y", True, False, (3, 4)]
    given = vars(parser.parse_args(line.split()))
    assert given == dict(zip(names, values, strict=True))
    assert vars(parser.parse_args([])) == {}
    assert "two numbers, both real (default 0.5)" in " ".join(parser.format_help().split())


@pytest.mark.slow
def test_points_are_drawn_in_the_plane_all_the_way(tmp_path):
    out, picture = tmp_path / "run", tmp_path / "samples.png"
    line = f"train vae --data rings --out {out} --steps 2 --width 8 --test-images 20 --grids 1"
    assert run(line) == 0
    assert run(f"sample {out} -n 20 --out {picture}") == 0
    pictures = [*out.glob("samples/*.png"), *out.glob("reconstructions/*.png"), picture]
    assert len(pictures) == 3
    assert {Image.open(path).size for path in pictures} == {(512, 512)}
    assert run(f"figures {out}") == 0
    drawn = {path.stem for path in out.glob("figures/*.png")}
    assert drawn == {"samples", "reconstructions", "kl", "scatter"}


def test_ctrl_c_keeps_a_checkpoint_and_exits_with_130(tmp_path):
    out = tmp_path / "run"
    line = f"train gated-pixelcnn --data digits --out {out} --minutes 10 {TINY}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgen", *line.split(), "--evaluations", "10000"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "log.csv").exists() or len(read_log(out / "log.csv")) < 2:
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"a checkpoint is kept in {out}" in error and "Traceback" not in error
    _, scalars = checkpoint.load_resume(out)
    assert f"after step {scalars['step']};" in error and scalars["step"] > 0


def test_a_negative_number_of_samples_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="fastgen.sample: n must be at least 0, got -3"):
        cli.sample(trained, n=-3, out=str(tmp_path / "grid.png"))
