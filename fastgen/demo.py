"""`fastgen demo`: a gated PixelCNN learns handwritten digits in about a minute.

It trains twice, by fastgen's layers and by plain PyTorch's, with equal initial weights, images and
number of steps: the first gives the pictures, the second is the yardstick.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from fastgen import checkpoint, figures
from fastgen._backends import backends, stems
from fastgen.data import load
from fastgen.log import read_log
from fastgen.models import GatedPixelCNN
from fastgen.plain import plain_twin
from fastgen.sampling import naive_sample
from fastgen.train import LOG, Result, train

# Test bits/dim, the share of samples that an SVC reads as asked (one seed each), and how many times
# faster a step is than the best of plain PyTorch, eager or compiled, on one thread:
#   these, 800 steps                                       1.678   93 %   1.45x
#   kernel_size 3, 4 layers, 700 steps                     1.666   98 %   1.30x
#   the same, no dropout, lr 6e-3, 640 steps               1.691   98 %
#   the same, batches of 16, lr 4e-3, 900 steps            1.670   98 %, but 1.846 after 2000
# An average of the weights came to 1.666 as well, so none is kept.
NETWORK = {"channels": 64, "layers": 3, "kernel_size": 5, "first_kernel_size": 7}
DROPOUT = 0.3
TRAINING = {"batch_size": 32, "lr": 5e-3}
EVALUATIONS = 16  # points of the curves
_FOLDERS = {"fastgen": "model", "plain PyTorch": "plain"}
PER_CLASS = 20  # samples
_SHOWN = 8


def main(
    *,
    out: str = "demo",
    steps: int = 800,
    seed: int = 0,
    plain: bool = True,
    fresh: bool = False,
    progress: bool = True,
) -> None:
    """Trains a class-conditional gated PixelCNN on scikit-learn's digits, samples new ones, and
    prints how good and how fast that was.

    Args:
        out: folder for samples.png, training.png and the checkpoints.
        steps: optimiser steps, of 32 images each.
        seed: of the weights, the order of images and the samples.
        plain: whether to train the same network by plain PyTorch layers too.
        fresh: train anew where a finished checkpoint of the same settings could be used.
        progress: a bar on the terminal, or lines where there is none.
    """
    folder = Path(out)
    data = load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"classes": data.classes, "dropout": DROPOUT, **NETWORK}
        model = GatedPixelCNN(data.shape, data.levels, **options)
    networks = {"fastgen": model} | ({"plain PyTorch": plain_twin(model)} if plain else {})
    settings = {"steps": steps, "seed": seed, "progress": progress, **TRAINING}
    results = {
        name: _train(name, network, data, folder / _FOLDERS[name], settings, fresh=fresh)
        for name, network in networks.items()
    }

    labels = torch.arange(data.classes).repeat_interleave(PER_CLASS)
    codes, speed = _sample(model.eval(), labels, seed=seed, progress=progress)
    on_real, on_samples = _classify(data, codes, labels)

    baselines = {
        f"uniform, log2({data.levels})": math.log2(data.levels),
        "pixel marginals": marginal_bits_per_dim(data, by_class=False),
        "class marginals": marginal_bits_per_dim(data, by_class=True),
    }
    _draw(folder, data, codes.unflatten(0, (data.classes, PER_CLASS)), baselines, results)
    _report(data, baselines, results)
    print(
        f"\n{speed}\n\nAn SVC trained on the real digits, right on {100 * on_real:.1f} % of the "
        f"test digits, reads the\nrequested label in {100 * on_samples:.1f} % of the samples.\n\n"
        f"kernels: {_kernels()}\n"
        f"pictures: {folder / 'samples.png'}, {folder / 'training.png'}"
    )


def _sample(model, labels: Tensor, *, seed: int, progress: bool) -> tuple[Tensor, str]:
    """(codes, how fast that was): all digits by the compiled sampler, and one class by it and by
    the naive sampler, with the same uniform numbers."""
    labels = labels.to(next(model.parameters()).device)
    sampler, compiling = _timed(model.sampler)
    codes, seconds = _timed(
        lambda: sampler.sample(len(labels), condition=labels, seed=seed, progress=progress)
    )
    few, threads = labels[:PER_CLASS], torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread on a busy machine slows small forwards many times
    try:
        ours, our_seconds = _timed(lambda: sampler.sample(len(few), condition=few, seed=seed))
        naive, naive_seconds = _timed(
            lambda: naive_sample(
                model,
                model.shape,
                model.likelihood,
                len(few),
                order=model.order,
                condition=few,
                seed=seed,
            )
        )
    finally:
        torch.set_num_threads(threads)
    different = int((ours != naive).sum())
    agreement = "equal in every pixel" if not different else f"but for {different} pixels, ties"
    return codes.cpu(), (
        f"{len(labels)} digits sampled in {seconds:.2f} s by a sampler compiled in "
        f"{compiling:.1f} s. {len(few)} of them again, on one\nthread: {our_seconds:.3f} s, and "
        f"{naive_seconds:.2f} s by the naive sampler, which runs the network "
        f"{sampler.program.steps} times:\n{naive_seconds / our_seconds:.0f} times as fast, "
        f"{agreement}."
    )


def _timed(function):
    """(its result, seconds)"""
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began


def marginal_bits_per_dim(data, *, by_class: bool) -> float:
    """Test bits/dim of independent pixels, each with the level frequencies of the training
    images (of the same class), one added to every count."""
    images, labels = data.train.images.flatten(1).long(), data.train.labels
    tests, test_labels = data.test.images.flatten(1).long(), data.test.labels
    nats = 0.0
    for c in range(data.classes) if by_class else [None]:
        mine = images if c is None else images[labels == c]
        asked = tests if c is None else tests[test_labels == c]
        counts = torch.nn.functional.one_hot(mine, data.levels).sum(0).double() + 1
        log_p = (counts / counts.sum(1, keepdim=True)).log()  # (pixels, levels)
        nats -= log_p.gather(1, asked.T).sum().item()
    return nats / (tests.numel() * math.log(2))


def _train(name: str, model, data, folder: Path, settings: dict, *, fresh: bool) -> Result:
    """Trains `model`, or takes over what a checkpoint of the same settings has of it."""
    if fresh or not _is_same(folder, model, settings):
        shutil.rmtree(folder, ignore_errors=True)
    resume = (folder / checkpoint.CONFIG).exists()
    print(f"\n{name}" + (f", going on with {folder} (--fresh starts anew)" if resume else ""))
    result = train(
        model, data, out=folder, resume=resume, grids=0, evaluations=EVALUATIONS, **settings
    )
    print(f"test bits/dim {result.test['bits_per_dim']:.3f}, {result.train_seconds:.1f} s of steps")
    return result


def _is_same(folder: Path, model, settings: dict) -> bool:
    try:
        checkpoint.check_same_model(folder, model, "fastgen.demo")
        checkpoint.load_resume(folder)
    except (ValueError, OSError):
        return False
    saved = checkpoint.read_config(folder)["training"]
    return all(saved.get(k) == v for k, v in settings.items() if k in saved)


def _classify(data, codes: Tensor, labels: Tensor) -> tuple[float, float]:
    """The share of right answers of an SVC trained on the real digits: (of the test digits, of
    the samples)."""
    from sklearn.svm import SVC

    def flat(images: Tensor):
        return images.flatten(1).numpy()

    svc = SVC(gamma=0.001).fit(flat(data.train.images), data.train.labels.numpy())
    on_real = svc.score(flat(data.test.images), data.test.labels.numpy())
    return on_real, svc.score(flat(codes), labels.numpy())


def _draw(folder: Path, data, samples: Tensor, baselines: dict, results: dict) -> None:
    real = torch.stack(
        [data.test.images[data.test.labels == c][:_SHOWN] for c in range(data.classes)]
    )
    figures.real_beside_samples(
        folder / "samples.png",
        real,
        samples[:, :_SHOWN],
        levels=data.levels,
        class_names=[str(c) for c in range(data.classes)],
        title="Handwritten digits, real and sampled",
        caption=f"8 x 8 pixels, {data.levels} grey levels. A class-conditional gated PixelCNN "
        f"after {results['fastgen'].train_seconds:.0f} s of training.",
        as_ink=True,
    )
    curves = {}
    for name, folder_name in _FOLDERS.items():
        if name in results:
            rows = read_log(folder / folder_name / LOG)
            seconds = [row["train_seconds"] for row in rows]
            curves[f"{name}, test"] = seconds, [row["test_bits_per_dim"] for row in rows]
    rows = read_log(folder / _FOLDERS["fastgen"] / LOG)
    curves["fastgen, train"] = (
        [row["train_seconds"] for row in rows],
        [row["train_bits_per_dim"] for row in rows],
    )
    figures.training_curves(
        folder / "training.png",
        curves,
        baselines=baselines,
        xlabel="seconds of training",
        title="A gated PixelCNN learns 8 x 8 digits",
    )


def _report(data, baselines: dict, results: dict) -> None:
    rows = [(name, f"{value:.3f}", "", "") for name, value in baselines.items()]
    for name, result in results.items():
        seconds = result.train_seconds
        speed = (
            f"{results['plain PyTorch'].train_seconds / seconds:.2f}x" if len(results) > 1 else ""
        )
        figure = f"{result.test['bits_per_dim']:.3f}"
        rows.append((f"gated PixelCNN, {name}", figure, f"{seconds:.1f}", speed))
    print(f"\n{'':<32}{'test bits/dim':>13}{'seconds':>10}{'speed':>8}")
    for name, figure, seconds, speed in rows:
        print(f"{name:<32}{figure:>13}{seconds:>10}{speed:>8}")


def _kernels() -> str:
    """ "cpu" for each op, or whichever kernel the demo's device has run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ran = {stem: [b.name for b in backends(stem) if device in b.runs_on] for stem in stems()}
    return ", ".join(f"{stem}: {'/'.join(names)}" for stem, names in ran.items())
