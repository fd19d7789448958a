"""Training: one loop for every kind of model, by steps or by minutes, resumable bit for bit.

What a kind of model wants of a step is its *objective*: `Likelihood` below, or the class that a
model names as its attribute `objective`. An objective is built as `objective(model, lr=...,
weight_decay=..., clip_grad=...)` and has

    figures: tuple[str, ...]                         the names of what it measures
    optimizers: dict[str, torch.optim.Optimizer]     their state is saved, their rates scheduled
    step(codes, condition) -> dict[str, Tensor]      one update; the figures, batch means
    evaluate(codes, condition) -> dict[str, Tensor]  the figures, batch means

and, where it trains one part of a model after the other,

    stages: tuple[float, ...]                        their shares of the budget, which add up to 1
    stage: int                                       written here: the number of the present one
    can_sample: bool                                 whether samples are worth a picture by now

Each stage has a warm-up and a schedule of its own, and none comes twice: a prolonged training goes
on with the last. What a stage, a step or an evaluation does not measure is nan in the log. It may
have, too,

    done: float                                      written here before each step: the share of
                                                     the present stage's budget that is used up
    steps_done: int                                  written here too: how many steps were before
    prepare(data)                                    called once, before all others
    test_figures: tuple[str, ...]                    measured by `evaluate` alone, or by
    evaluate_whole() -> dict[str, float]             once an evaluation; both for the log only
    warnings() -> list[str]                          asked after each row of the log

Of the model itself it wants `config` (its constructor's arguments). It may have `train_defaults`,
its own defaults of `batch_size`, `lr` and `clip_grad`. Where it has `sample(n, condition, seed=)`,
there are pictures of samples; `sample_forwards` says how many forwards one takes, if it is not one
for each value. Where it has `reconstruct(codes) -> codes`, perhaps with an
argument `condition` for labels, there are pictures of test images above their reconstructions; or
of the rows that `comparison(codes) -> {name: codes}` gives, where it has that.

Every random choice of step k (the images of the batch, dropout) is a function of (seed, k), so
there is no random state to save, and a run does not depend on when it was interrupted.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastgen import checkpoint
from fastgen.device import chosen
from fastgen.log import Log
from fastgen.progress import Progress, clock

LOG = "log.csv"
_WARMUP_STEPS = 50
_DEFAULTS = {"batch_size": 32, "lr": 2e-3, "clip_grad": 1.0}  # of models without their own
_GRIDS = 4  # unless told
_GRID_SHARE = 0.1  # most of the time that grids may take, unless their number was given
# what decides the bits of a step, so may not change on resuming
_FIXED = ("batch_size", "lr", "schedule", "weight_decay", "clip_grad", "seed")
_SAVED = (*_FIXED, "minutes", "steps", "evaluations", "test_images", "grids")
_COUNTERS = ("step", "seconds", "train_seconds", "rate", "row", "grid", "test", "measured")
_COUNTERS += ("stage", "stage_step")


@dataclass(frozen=True)
class Result:
    """What a training came to.

    steps, seconds: in all, over every resumption; train_seconds: those spent in steps alone.
    test: the objective's figures over the whole test split.
    """

    steps: int
    seconds: float
    train_seconds: float
    test: dict[str, float]


class Likelihood:
    """Maximum likelihood by AdamW, for every model with `log_prob(codes, condition)`.

    Figures: loss, in nats per image; bits_per_dim, the same per value and in bits.
    """

    figures = ("loss", "bits_per_dim")

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, clip_grad: float):
        self.model = model
        self.clip_grad = clip_grad
        # fused: one pass over the parameters, on CPU too
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        self.optimizers = {"adamw": optimizer}

    def step(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        optimizer = self.optimizers["adamw"]
        optimizer.zero_grad(set_to_none=True)
        nats = -self.model.log_prob(codes, condition).mean()
        (nats / codes[0].numel()).backward()  # per value: one clip_grad for every image size
        if self.clip_grad > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        optimizer.step()
        return self._figures(nats.detach(), codes)

    def evaluate(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        return self._figures(-self.model.log_prob(codes, condition).mean(), codes)

    @staticmethod
    def _figures(nats: Tensor, codes: Tensor) -> dict[str, Tensor]:
        return {"loss": nats, "bits_per_dim": nats / (codes[0].numel() * math.log(2))}


def train(
    model: nn.Module,
    data,
    *,
    out: str | os.PathLike,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    schedule: Literal["cosine", "constant"] = "cosine",
    weight_decay: float = 0.0,
    clip_grad: float | None = None,
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    data_arguments: dict | None = None,
    evaluations: int = 10,
    test_images: int = 500,
    grids: int | None = None,
    checkpoint_minutes: float = 10.0,
    progress: bool = True,
    after_step: Callable[[int], None] | None = None,
) -> Result:
    """Trains `model` on `data.train` and keeps checkpoints, a log and sample grids in `out`.

    model: one of fastgen.models, or any module as said above.
    data: a fastgen.data.Dataset.
    out: folder for config.json, model.safetensors, resume.safetensors, log.csv, samples/ (of models
        that draw images) and, of autoencoders, reconstructions/.
    minutes: time budget, evaluations included. Give this or steps.
    steps: number of optimiser steps in all.
    batch_size: images per step; default the model's own, else 32.
    lr: peak learning rate, reached after 50 steps; default the model's own, else 2e-3.
    schedule: cosine falls to zero at the end of the budget, constant stays.
    weight_decay: AdamW's, decoupled.
    clip_grad: largest gradient norm, 0 leaves gradients alone; default the model's own, else 1.
    seed: of the order of images and of what is random in a step, such as dropout.
    device: cpu, cuda, ...; default is the GPU if there is one.
    resume: go on with the checkpoint in out; with steps, the same bits as without interruption.
    data_arguments: how the data was loaded; kept in config.json, where the command line looks
        for it when it resumes.
    evaluations: how often in all to measure the test split and write a row of the log.
    test_images: at most so many images in each of these; the last one takes all.
    grids: how often in all to write a grid of samples with fixed noise, and of reconstructions;
        default up to 4, fewer where they would take more than a tenth of the time.
    checkpoint_minutes: time between checkpoints; the end and Ctrl-C always write one.
    progress: a bar on the terminal, or lines where there is none.
    after_step: called with the number of steps done.

    Ctrl-C ends the step, writes a checkpoint and raises KeyboardInterrupt saying so.

    Raises ValueError (arguments, another model's checkpoint in out), FileNotFoundError (nothing to
    resume), FileExistsError (a checkpoint in out, and resume not asked for), OSError (cannot
    write; the previous checkpoint is intact), FloatingPointError (the loss is not finite).
    """
    arguments = {k: v for k, v in locals().items() if k not in ("model", "data", "after_step")}
    for name, value in (_DEFAULTS | getattr(model, "train_defaults", {})).items():
        arguments[name] = value if arguments[name] is None else arguments[name]
    _check_arguments(model, data, arguments)
    with torch.random.fork_rng(), _Interrupts() as interrupts:
        run = _Run(model, data, arguments, interrupts)
        with Progress("train", enabled=progress) as bar:
            try:
                return run.go(bar, after_step)
            except KeyboardInterrupt:
                run.save()
        raise KeyboardInterrupt(
            f"fastgen.train: interrupted after step {run.step}; a checkpoint is kept in {out}, "
            "go on with resume=True (--resume)"
        )


class _Run:
    """The state of one training, and the loop over it."""

    def __init__(self, model: nn.Module, data, arguments: dict, interrupts: _Interrupts):
        self.data, self.arguments, self.interrupts = data, arguments, interrupts
        self.out = Path(arguments["out"])
        self.device = chosen(arguments["device"])
        self.model = model.to(self.device)
        kind = getattr(model, "objective", Likelihood)
        options = {name: arguments[name] for name in ("lr", "weight_decay", "clip_grad")}
        self.objective = kind(model, **options)
        if hasattr(self.objective, "prepare"):
            self.objective.prepare(data)
        self.peak_rates = [group["lr"] for group in self._groups()]
        self.stage, self.stage_step = 0, 0  # the present one, and the step it began at
        self.order = Order(len(data.train.images), arguments["batch_size"], arguments["seed"])
        self.step, self.seconds, self.train_seconds, self.rate = 0, 0.0, 0.0, 0.0
        # since the last row of the log
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        self.sums = {name: zero.clone() for name in self.objective.figures}
        self.measured = dict.fromkeys(self.objective.figures, 0)  # how many steps are in each sum
        self.row = {"step": 0, "seconds": 0.0, "train_seconds": 0.0}
        self.grid = dict(self.row)
        self.test: dict[str, float] = {}
        if arguments["resume"]:
            self._restore()
        elif (self.out / checkpoint.CONFIG).exists():
            raise FileExistsError(
                f"fastgen.train: out={str(self.out)!r} holds a checkpoint already; go on with it "
                "by resume=True (--resume) or choose another folder"
            )
        self.began = time.monotonic() - self.seconds
        self.saved = time.monotonic()
        if not arguments["resume"]:
            self.save()  # a folder that cannot be written shall show now, not after the training
        self.log = Log(self.out / LOG, self._columns(), keep=self.row["step"])

    def go(self, bar: Progress, after_step: Callable[[int], None] | None) -> Result:
        start = self.step
        while True:
            done = self._done(self._now())
            if self._is_due(self.row, self.arguments["evaluations"], done):
                self._write_row(done)
            if self._is_due(self.grid, self._grids(), done):
                self._write_grid(bar)
            if done >= 1:
                break
            with self.interrupts.held():
                self._take_step(done)
            if after_step is not None:
                after_step(self.step)
            if bar.due:
                images = (self.step - start) * self.order.batch_size
                bar.update(self._done(self._now()), images=images, **self._shown())
            if time.monotonic() - self.saved > 60 * self.arguments["checkpoint_minutes"]:
                self.save()
        bar.update(1.0, images=(self.step - start) * self.order.batch_size, **self._shown())
        self.save()
        return Result(self.step, self.seconds, self.train_seconds, self.test)

    def save(self) -> None:
        """Writes a checkpoint of this very step."""
        self._check_finite()
        with self.interrupts.held():
            self.seconds = self._now()["seconds"]
            tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
            scalars: dict = {name: getattr(self, name) for name in _COUNTERS}
            scalars["sums"] = {name: value.item() for name, value in self.sums.items()}
            for name, optimizer in self.objective.optimizers.items():
                tensors |= checkpoint.optimizer_tensors(name, optimizer)
            data = {"name": self.data.name, "shape": list(self.data.shape)}
            data |= {"levels": self.data.levels, "classes": self.data.classes}
            data |= {"arguments": self.arguments["data_arguments"] or {}}
            training = {k: v for k, v in self.arguments.items() if k in _SAVED}
            checkpoint.save(
                self.model, self.out, data=data, training=training, resume=(tensors, scalars)
            )
            self.saved = time.monotonic()

    def _restore(self) -> None:
        checkpoint.check_same_model(self.out, self.model, "fastgen.train")
        saved = checkpoint.read_config(self.out).get("training", {})
        for name in _FIXED:
            if name in saved and saved[name] != self.arguments[name]:
                raise ValueError(
                    f"fastgen.train: {name}={self.arguments[name]!r}, but the checkpoint in "
                    f"{self.out} was trained with {saved[name]!r}; resume with the same value"
                )
        tensors, scalars = checkpoint.load_resume(self.out)
        weights = {k[len("model/") :]: v for k, v in tensors.items() if k.startswith("model/")}
        checkpoint.check_state(weights, self.model.state_dict(), f"fastgen.train: {self.out}")
        self.model.load_state_dict(weights)
        for name, optimizer in self.objective.optimizers.items():
            checkpoint.restore_optimizer(name, optimizer, tensors)
        steps = scalars["step"] - scalars["row"]["step"]
        # a checkpoint of an earlier fastgen has not counted
        scalars = {"measured": dict.fromkeys(scalars["sums"], steps)} | scalars
        for name in _COUNTERS:
            setattr(self, name, scalars.get(name, getattr(self, name)))
        self.objective.stage = self.stage
        for name, value in scalars["sums"].items():
            self.sums[name].fill_(value)

    def _take_step(self, done: float) -> None:
        began = time.perf_counter()
        done = self.objective.done = self._enter_stage(done)
        self.objective.steps_done = self.step
        factor = min(1.0, (self.step - self.stage_step + 1) / _WARMUP_STEPS)
        if self.arguments["schedule"] == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * done))
        for group, rate in zip(self._groups(), self.peak_rates, strict=True):
            group["lr"] = rate * factor
        self.rate = self._groups()[0]["lr"]
        torch.manual_seed(_mix(self.arguments["seed"], self.step))
        self.model.train()
        figures = self.objective.step(*self._batch(self.data.train, self.order(self.step)))
        for name, value in figures.items():
            self.sums[name] += value
            self.measured[name] += 1
        self.step += 1
        self.train_seconds += time.perf_counter() - began

    def _enter_stage(self, done: float) -> float:
        """The share of the present stage's budget that is used up; first goes over to the stage
        that `done`, the share of the whole, falls into."""
        shares = getattr(self.objective, "stages", (1.0,))
        ends = list(itertools.accumulate(shares))
        there = sum(done >= end for end in ends[:-1])
        if there > self.stage:
            self.stage, self.stage_step = there, self.step
            self.objective.stage = there
        begin = ends[self.stage] - shares[self.stage]
        return min(max((done - begin) / shares[self.stage], 0.0), 1.0)

    def _groups(self) -> list[dict]:
        return [g for o in self.objective.optimizers.values() for g in o.param_groups]

    def _batch(self, split, index: Tensor) -> tuple[Tensor, Tensor | None]:
        codes = split.images[index].to(self.device, torch.int64)
        if getattr(self.model, "classes", None) is None:
            return codes, None
        return codes, split.labels[index].to(self.device)

    @torch.no_grad()
    def _evaluate(self, most: int | None) -> dict[str, float]:
        torch.manual_seed(_mix(self.arguments["seed"], self.step, 2))
        chosen = self._spread(most)
        self.model.eval()
        sums: dict[str, float] = {}
        for index in chosen.split(4 * self.order.batch_size):
            figures = self.objective.evaluate(*self._batch(self.data.test, index))
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(index)
        whole = getattr(self.objective, "evaluate_whole", dict)
        return {name: value / len(chosen) for name, value in sums.items()} | whole()

    def _spread(self, most: int | None) -> Tensor:
        """Indices of at most so many test images, evenly spaced: files often come sorted by
        class."""
        count = len(self.data.test.images)
        return torch.linspace(0, count - 1, min(count, most or count)).long()

    def _check_finite(self) -> None:
        means = self._means()
        if not all(math.isfinite(value) for value in means.values()):
            figures = ", ".join(f"{name} {value}" for name, value in means.items())
            raise FloatingPointError(
                f"fastgen.train: not finite at step {self.step}: {figures}; lower lr "
                f"(now {self.arguments['lr']}); the checkpoint in {self.out} is from before"
            )

    def _write_row(self, done: float) -> None:
        self._check_finite()
        test = self._evaluate(None if done >= 1 else self.arguments["test_images"])
        with self.interrupts.held():
            now = self._now()
            steps = self.step - self.row["step"]
            seconds = self.train_seconds - self.row["train_seconds"]
            images = self.order.batch_size
            row = {"step": self.step, "epoch": self.step * images / self.order.count}
            row |= {"seconds": round(now["seconds"], 3), "lr": self.rate}
            row |= {"train_seconds": round(self.train_seconds, 3)}
            row |= {"images_per_s": round(steps * images / seconds, 1) if seconds else 0.0}
            for split, figures in (("train", self._means()), ("test", test)):
                row |= {
                    f"{split}_{name}": figures.get(name, math.nan) for name in self._names(split)
                }
            self.log.append(row)
            self.test = {name: test[name] for name in self.objective.figures if name in test}
            self.row = now
            for name, value in self.sums.items():
                value.zero_()
                self.measured[name] = 0
        for text in getattr(self.objective, "warnings", list)():
            warnings.warn(text, stacklevel=2)

    def _write_grid(self, bar: Progress) -> None:
        from fastgen import figures

        classes = getattr(self.model, "classes", None)
        rows = classes if classes and classes <= 16 else 8
        count = figures.samples_shown(self.data.shape, 8 * rows)
        if self.arguments["grids"] is None:
            seconds = self._grid_seconds(count)
            if seconds * _GRIDS > _GRID_SHARE * self._now()["seconds"] / self._done(self._now()):
                if self.grid["step"] == 0:  # said once
                    bar.note(
                        f"no sample grids: one takes about {clock(seconds)}; grids=N (--grids N) "
                        "asks for N of them"
                    )
                self.grid = self._now()
                return
        samples = compared = None
        if self._samples():
            labels = torch.arange(count, device=self.device) // 8 % classes if classes else None
            samples = self.model.sample(count, labels, seed=self.arguments["seed"])
        if hasattr(self.model, "reconstruct"):
            self.model.eval()
            shown = self._batch(self.data.test, self._spread(count // 2))
            compared = list(comparison(self.model, *shown).values())
        look = {"levels": self.data.levels, "columns": 8}
        with self.interrupts.held():
            if samples is not None:
                real = self.data.test.images
                figures.write_samples(self._picture("samples"), samples, real=real, **look)
            if compared is not None:
                figures.write_comparison(self._picture("reconstructions"), compared, **look)
            self.grid = self._now()

    def _picture(self, kind: str) -> Path:
        path = self.out / kind / f"step-{self.step:07}.png"
        path.parent.mkdir(exist_ok=True)
        return path

    @torch.no_grad()
    def _grid_seconds(self, count: int) -> float:
        """About how long `count` samples take: a forward for each value of an image, unless the
        model says how many by its attribute `sample_forwards`; of a model without samples, how
        long reconstructions do."""
        index = torch.arange(count) % len(self.data.test.images)
        batch = self._batch(self.data.test, index)
        self.model.eval()
        began = time.perf_counter()
        self.objective.evaluate(*batch)
        forwards = getattr(self.model, "sample_forwards", math.prod(self.data.shape))
        return (time.perf_counter() - began) * (forwards if self._samples() else 1)

    def _samples(self) -> bool:
        """Whether the model draws images, and these are worth a picture by now."""
        return hasattr(self.model, "sample") and getattr(self.objective, "can_sample", True)

    def _grids(self) -> int:
        grids = self.arguments["grids"]
        return _GRIDS if grids is None else grids

    def _now(self) -> dict:
        seconds = time.monotonic() - self.began
        return {"step": self.step, "seconds": seconds, "train_seconds": self.train_seconds}

    def _done(self, mark: dict) -> float:
        """The share of the budget used up at `mark`."""
        if self.arguments["steps"] is not None:
            return mark["step"] / self.arguments["steps"]
        return mark["seconds"] / (60 * self.arguments["minutes"])

    def _is_due(self, last: dict, times: int, done: float) -> bool:
        """Whether something that happens `times` times in all was last done too long ago."""
        return int(min(done, 1.0) * times) > int(min(self._done(last), 1.0) * times)

    def _means(self) -> dict[str, float]:
        """Of the figures that have been measured since the last row of the log."""
        steps = self.measured.items()
        return {name: self.sums[name].item() / count for name, count in steps if count}

    def _shown(self) -> dict[str, float]:
        last = list(self.test.items())[-1:]  # of the test one is enough on a line
        return self._means() | {f"test_{name}": value for name, value in last}

    def _columns(self) -> list[str]:
        own = ["step", "epoch", "seconds", "lr", "train_seconds", "images_per_s"]
        return own + [f"{split}_{n}" for split in ("train", "test") for n in self._names(split)]

    def _names(self, split: str) -> tuple[str, ...]:
        """What is measured of the training or the test split."""
        more = getattr(self.objective, "test_figures", ()) if split == "test" else ()
        return (*self.objective.figures, *more)


def comparison(model: nn.Module, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
    """Images and what a model makes of them, by name, codes (N, C, H, W) each."""
    kind = getattr(model, "comparison", None) or model.reconstruct
    takes_labels = "condition" in inspect.signature(kind).parameters
    made = kind(codes, condition) if takes_labels else kind(codes)
    return made if isinstance(made, dict) else {"original": codes, "reconstructed": made}


class Order:
    """The images of step k: a fresh shuffle every epoch, batches running across the border.

    A function of (seed, k) alone; only the shuffle of the epoch in use is held.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._shuffles: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        """Indices, int64 (batch_size,)."""
        first, stop = step * self.batch_size, (step + 1) * self.batch_size
        epochs = range(first // self.count, (stop - 1) // self.count + 1)
        self._shuffles = {e: self._shuffles.get(e, self._shuffle(e)) for e in epochs}
        joined = torch.cat([self._shuffles[e] for e in epochs])
        return joined[first - epochs[0] * self.count :][: self.batch_size]

    def _shuffle(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch, 1))
        return torch.randperm(self.count, generator=generator)


class _Interrupts:
    """Ctrl-C as KeyboardInterrupt at any time, but not within `held()`: there it comes at the
    end, so that a step is never half done. (Signals reach the main thread only: in another
    thread nothing is changed.)"""

    def __enter__(self) -> _Interrupts:
        self._is_held = self._is_pending = False
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc_info) -> None:
        if self._is_main:
            signal.signal(signal.SIGINT, self._previous)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt

    def _handle(self, signum, frame) -> None:
        if self._is_held:
            self._is_pending = True
        else:
            raise KeyboardInterrupt


def _mix(*parts: int) -> int:
    """A 64-bit seed from several integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _check_arguments(model: nn.Module, data, arguments: dict) -> None:
    def refuse(name: str, expected: str, remedy: str) -> None:
        got = arguments[name]
        raise ValueError(f"fastgen.train: {name} must be {expected}, got {got!r}; {remedy}")

    minutes, steps = arguments["minutes"], arguments["steps"]
    if (minutes is None) == (steps is None):
        raise ValueError(
            f"fastgen.train: give exactly one of minutes and steps, got minutes={minutes!r}, "
            f"steps={steps!r}"
        )
    for name in (
        "minutes",
        "steps",
        "batch_size",
        "evaluations",
        "test_images",
        "checkpoint_minutes",
    ):
        if arguments[name] is not None and not arguments[name] > 0:
            refuse(name, "positive", "choose a larger one")
    for name in ("lr", "weight_decay", "clip_grad", "grids", "seed"):
        value = arguments[name]
        if value is not None and not 0 <= value < math.inf:
            refuse(name, "a number >= 0", "choose a larger one")
    if arguments["schedule"] not in ("cosine", "constant"):
        refuse("schedule", "'cosine' or 'constant'", "choose one of them")
    for split in ("train", "test"):
        if len(getattr(data, split).images) == 0:
            raise ValueError(f"fastgen.train: data.{split} has no images; give at least one")
    for name in ("shape", "levels"):
        mine, theirs = getattr(model, name, None), getattr(data, name)
        if mine is not None and mine != theirs:
            raise ValueError(
                f"fastgen.train: the model's {name} is {mine}, the data's {theirs}; "
                f"build the model with {name}={theirs!r}"
            )
    classes = getattr(model, "classes", None)
    if classes is not None and (data.classes is None or data.classes > classes):
        raise ValueError(
            f"fastgen.train: the model takes {classes} classes, the data has {data.classes}; "
            f"build the model with classes={data.classes!r}"
        )
