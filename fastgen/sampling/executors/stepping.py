"""Drawing step by step in Python: what every executor can do, whatever the likelihood."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

TICK_SECONDS = 0.05


@dataclass
class Draw:
    """How codes are drawn.

    likelihood: as in fastgen.likelihoods; top_k and top_p are passed to its `sample` by name, and
        only where they are given.
    uniforms: float64 (n, D, codes of the program).
    """

    likelihood: object
    uniforms: Tensor
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def codes(self, params, uniforms):
        """int64 (m, C) for params (m, K, 1) and uniforms (m, D, C)."""
        limits = {"top_k": self.top_k, "top_p": self.top_p}
        limits = {name: value for name, value in limits.items() if value is not None}
        return self.likelihood.sample(params, uniforms, self.temperature, **limits)


class StepDraws:
    """The draws of one step, as index tensors."""

    def __init__(self, program, step):
        draws = program.draws
        self.begin, self.end = int(draws.step_start[step]), int(draws.step_start[step + 1])
        part = slice(self.begin, self.end)
        self.param = torch.from_numpy(draws.param[part]).long()
        self.cell = torch.from_numpy(draws.cell[part]).long()
        self.index = torch.from_numpy(draws.index[part]).long()  # (draws, codes a draw)


def run_steps(executor, codes, *, conditions=(), draw=None, known=None, params=None, group, tick):
    """`run` of an executor by means of its `stepper`; see ReferenceExecutor.run."""
    program, n = executor.program, len(codes)
    steps = [StepDraws(program, step) for step in range(program.steps)]
    wrong = None
    next_tick = time.monotonic()
    for first in range(0, n, group):
        images = slice(first, min(first + group, n))
        stepper = executor.stepper(images.stop - first, [c[images] for c in conditions])
        for step, draws in enumerate(steps):
            if tick is not None and time.monotonic() >= next_tick:
                tick((first + (images.stop - first) * step / program.steps) / n)
                next_tick = time.monotonic() + TICK_SECONDS
            values = stepper.advance(step)
            if params is not None:
                params[images, draws.begin : draws.end] = values.to(params.dtype)
            held = codes[images][:, draws.index]
            if draw is not None:
                free = torch.ones_like(held, dtype=torch.bool)
                if known is not None:
                    free = ~known[images][:, draws.index]
                bad = values.isnan().any(-1) & free.any(-1)
                if bad.any():
                    sample, at = (int(i) for i in bad.nonzero()[0])
                    if wrong is None or first + sample < wrong[0]:
                        wrong = first + sample, draws.begin + at
                held = torch.where(free, _draw(draw, values.nan_to_num(), images, draws), held)
                codes[images, draws.index] = held
            stepper.put(step, held)
        if wrong is not None:
            return wrong
    return None


def _draw(draw, values, images, draws):
    m, count, parameters = values.shape
    noise = draw.uniforms[images][:, :, draws.index]  # (m, D, draws, codes a draw)
    noise = noise.transpose(1, 2).flatten(0, 1)
    new = draw.codes(values.reshape(m * count, parameters, 1), noise.to(values.device))
    return new.view(m, count, -1).cpu()
