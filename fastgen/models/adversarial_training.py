"""How adversarial networks are trained: critic and generator in turn."""

import torch
from torch import Tensor, nn

from fastgen.data import rings
from fastgen.models.scores import diversity, mode_coverage

_SAMPLES = 500  # for the figures of diversity
_IMAGES = 5000  # of the training, among which a sample's nearest is looked for
_POINTS = 5000  # samples of the rings


class TwoPlayers:
    """The objective of `GAN`, `WGAN` and `ConditionalGAN`, see `fastgen.train`: an update of the
    critic each step, and after every `n_critic` of these one of the generator.

    Figures: critic_loss; generator_loss; of a `WGAN` wasserstein, the difference of the critic's
    means, with gradient_penalty or, of clipped weights, saturation: the share at the bound. In the
    log also of samples: of the rings test_modes, how many are covered, and test_share, of the
    samples within these; of other images test_spread, 1 for samples as varied as the test images,
    0 for collapse, and test_nearness to training images, 0.5 as test images have it, 1 for copies.
    """

    steps_done = 0  # written there

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, clip_grad: float):
        self.model, self.clip_grad = model, clip_grad
        self.figures = ("critic_loss", "generator_loss", *model.critic_figures)
        self.test_figures: tuple[str, ...] = ()
        self.optimizers = {
            "critic": model.critic_optimizer(lr, weight_decay=weight_decay),
            "generator": model.generator_optimizer(lr, weight_decay=weight_decay),
        }

    def prepare(self, data) -> None:
        """Takes from the data what samples are compared with."""
        self.train_images = data.train.images[_evenly(len(data.train.images), _IMAGES)]
        shown = _evenly(len(data.test.images), _SAMPLES)
        self.test_images = data.test.images[shown]
        self.labels = None if self.model.classes is None else data.test.labels[shown]
        known = "rings", (1, 1, 2), rings.LEVELS
        self.is_rings = (data.name, tuple(data.shape), data.levels) == known
        if self.is_rings:
            self.test_figures = ("modes", "share")
        elif len(shown) >= 4:  # fewer have no two halves
            self.test_figures = ("spread", "nearness")

    def step(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        model, clip_grad = self.model, self.clip_grad
        figures = model.critic_step(
            self.optimizers["critic"], codes, condition, clip_grad=clip_grad
        )
        if (self.steps_done + 1) % model.n_critic == 0:
            figures |= model.generator_step(
                self.optimizers["generator"], len(codes), condition, clip_grad=clip_grad
            )
        return figures

    def evaluate(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        figures = self.model.critic_loss(codes, condition)[1]
        return figures | self.model.generator_loss(len(codes), condition)[1]

    def evaluate_whole(self) -> dict[str, float]:
        """Of samples of one seed, with the labels of test images."""
        if not self.test_figures:
            return {}
        if self.is_rings:
            labels = None if self.labels is None else self.labels.repeat(_POINTS // _SAMPLES)
            points = rings.places(self._samples(_POINTS, labels))
            found = mode_coverage(points, rings.centres(), rings.SIGMA)
        else:
            samples = self._samples(len(self.test_images), self.labels)
            found = diversity(samples, self.train_images, self.test_images)
        return dict(zip(self.test_figures, found, strict=True))

    def _samples(self, n, labels):
        device = next(self.model.parameters()).device
        labels = None if labels is None else labels.to(device)
        return self.model.sample(n, labels, seed=0).cpu()


def _evenly(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(most, count)).long()
