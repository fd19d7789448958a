"""What GAN, WGAN and ConditionalGAN share: two networks, their updates, samples, latent vectors."""

import copy
import math
import numbers

import torch
from torch import Tensor, nn

from fastgen.models.adversarial_training import TwoPlayers
from fastgen.models.gan_losses import LOSSES
from fastgen.models.gan_nets import default_net
from fastgen.models.image_model import ImageModel
from fastgen.models.latent_space import LatentVectors
from fastgen.models.pixel_likelihoods import PixelLikelihood
from fastgen.models.seeded_blocks import BLOCK, STREAM, in_blocks, labels_of_samples
from fastgen.ops.ema_update_ import ema_update_
from fastgen.ops.philox_normal import randn
from fastgen.ops.philox_uniform import rand
from fastgen.sampling.arguments import check_draws, seed_of


class Adversarial(LatentVectors, ImageModel):
    """Holds `generator`, `critic`, `average` (a copy of the generator that holds the moving average
    of its weights, or None), `loss` and `config`.

    The generator makes images in [-1, 1] of z, normal (B, latent_dim); the critic gives a number
    for each image, higher for what it holds for real. A conditional model calls both with the
    labels too.
    """

    objective = TwoPlayers
    conditional = "ConditionalGAN"
    # several times the papers' rates, which are for hundreds of thousands of steps
    train_defaults = {"lr": 1e-3, "batch_size": 64, "clip_grad": 0.0}
    sample_forwards = 1
    n_critic = 1
    critic_figures: tuple[str, ...] = ()  # of critic_step, beside critic_loss

    def _configure(self, config, generator, critic):
        """Checks arguments, and sets what they say.

        generator, critic: functions that make the default ones.
        """
        for part in ("generator", self._critic_name):
            self._check_module(part, config[part])
        self.levels = config["levels"]
        if self.levels == 1:
            self._refuse("levels", "must be at least 2", 1, "one level leaves nothing to learn")
        for name in ("latent_dim", "width", "layers"):
            if config[name] is not None:
                self._check_int(name, config[name], "leave it out for the default")
        ema = config["ema"]
        if ema is not None and not (is_number(ema) and 0 <= ema < 1):
            self._refuse("ema", "must lie in 0 .. 1, 1 excluded", ema, "None keeps no average")
        names = {part: self._name_of(config[part]) for part in ("generator", self._critic_name)}
        # a map to the plane from more than the plane folds: the ring's modes were missed by it
        self.latent_dim = config["latent_dim"] or min(64, math.prod(self.shape))
        self.ema = ema
        self.config = config | names | {"shape": list(self.shape), "latent_dim": self.latent_dim}
        self.pixels = PixelLikelihood(self.shape, self.levels)
        own = config["generator"], config[self._critic_name]
        self.generator = generator() if own[0] is None else own[0]
        self.critic = critic() if own[1] is None else own[1]
        # one pass of real and generated images together is quicker where layers are small (of a
        # default conv it is slower, 13.9 ms for 10.9 of digits: 128 images leave the cache); in
        # one's own critic images may see each other, as through batch norm
        is_mlp = (config["net"] or default_net(self.shape)) == "mlp"
        self._joins = own[1] is None and is_mlp
        self._checked_optimizers = {}
        self.average = None
        if ema is not None:
            self.average = copy.deepcopy(self.generator).requires_grad_(False)

    def critic_loss(
        self, images: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what the critic minimises, figures of it), of real images and as many generated ones."""
        real, fake, labels = self._opponents(images, condition)
        loss = LOSSES[self.loss][0](*self._judged_both(real, fake, labels))
        return loss, {"critic_loss": loss}

    def generator_loss(
        self, n: int, condition: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what the generator minimises, figures of it), of n images."""
        self._check_int("n", n, "say how many images")
        like = self._like()
        labels = self._labels(condition, n, like.device)
        fake = self._generated(self._noise(n, like), labels)
        loss = LOSSES[self.loss][1](self._judged(fake, labels))
        return loss, {"generator_loss": loss}

    def critic_step(
        self,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        condition: Tensor | None = None,
        *,
        clip_grad: float = 0.0,
    ) -> dict[str, Tensor]:
        """One update of the critic by real images (B, C, H, W) and as many generated ones; the
        figures.

        optimizer: of the critic, such as `critic_optimizer()`.
        condition: int64 labels (B,) of a model with classes.
        clip_grad: largest norm of the gradient; 0 leaves it alone.
        """
        loss, figures = self.critic_loss(images, condition)
        self._update("critic", optimizer, loss, clip_grad)
        return {name: value.detach() for name, value in figures.items()}

    def generator_step(
        self,
        optimizer: torch.optim.Optimizer,
        n: int,
        condition: Tensor | None = None,
        *,
        clip_grad: float = 0.0,
    ) -> dict[str, Tensor]:
        """One update of the generator by n of its images, and of its average; the figures.

        optimizer: of the generator, such as `generator_optimizer()`.
        condition, clip_grad: as in `critic_step`.
        """
        loss, figures = self.generator_loss(n, condition)
        self._update("generator", optimizer, loss, clip_grad)
        self.update_average()
        return {name: value.detach() for name, value in figures.items()}

    def update_average(self) -> None:
        """Moves `average` by one step of `ema` towards the generator, buffers too;
        `generator_step` does."""
        if self.average is not None:
            ema_update_(self.average, self.generator, self.ema)

    def critic_optimizer(
        self, lr: float | None = None, *, weight_decay: float = 0.0
    ) -> torch.optim.Optimizer:
        """The optimiser that the model's papers have for the critic; lr by default the model's."""
        return self._adam(self.critic, lr, weight_decay)

    def generator_optimizer(
        self, lr: float | None = None, *, weight_decay: float = 0.0
    ) -> torch.optim.Optimizer:
        """As `critic_optimizer`, for the generator."""
        return self._adam(self.generator, lr, weight_decay)

    def discriminate(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """The critic's number for each image, (B,): higher for what it holds for real."""
        labels = self._checked(images, condition)
        return self._judged(self.pixels.scaled(images, self._dtype()), labels)

    @torch.no_grad()
    def score(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B,): larger for images that the critic holds for generated. It knows what it has met:
        this is no likelihood."""
        return -self.discriminate(images, condition)

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (B, latent_dim) -> images as the nearest levels, int64 (B, C, H, W); real-valued ones
        as floats. By the average, if there is one."""
        if not isinstance(z, Tensor) or z.dim() != 2 or z.shape[1] != self.latent_dim:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            expected = f"must be a tensor (B, {self.latent_dim})"
            self._refuse("z", expected, got, "latents() gives one")
        labels = self._labels(condition, len(z), z.device)
        was_training = self.training
        self.eval()
        try:
            return self._decoded(z, labels)
        finally:
            self.train(was_training)

    def latents(
        self,
        n: int,
        truncation: float | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
    ) -> Tensor:
        """z (n, latent_dim) of the images that `sample` makes with the same arguments."""
        check_draws(None, n, first_index, temperature, None, None, None)
        self._check_truncation(truncation)
        seed = seed_of(seed, generator, None)
        if n == 0:
            return self._like().new_zeros(0, self.latent_dim)
        return in_blocks(
            self, n, None, first_index, lambda i, _: self._block(i, seed, truncation, temperature)
        )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | int | None = None,
        truncation: float | None = None,
        *,
        condition: Tensor | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        batch: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """n new images, int64 (n, C, H, W) (real-valued ones as floats), in eval mode.

        y, or condition: int64 labels (n,), or one for all, of a model with classes.
        truncation: latent variables beyond +-truncation are drawn again: likelier images, and less
            varied ones.
        temperature: standard deviation of the latent variables.
        seed, generator: image i of a seed is the same whatever n.
        first_index: the number of the first image in the seed's stream.
        batch, progress: as the other models have them; a sample takes a forward, whatever these.
        """
        check_draws(None, n, first_index, temperature, None, None, batch)
        self._check_truncation(truncation)
        labels = labels_of_samples(self, n, y, condition)
        if n == 0:
            return self.pixels.images(self._like().new_zeros(0, *self.shape))
        seed = seed_of(seed, generator, None)
        return in_blocks(
            self,
            n,
            labels,
            first_index,
            lambda i, part: self._decoded(self._block(i, seed, truncation, temperature), part),
        )

    @torch.no_grad()
    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        steps: int = 8,
        mode: str = "spherical",
        *,
        condition: Tensor | None = None,
    ) -> Tensor:
        """(B, steps, C, H, W): from the images of latent vectors a (B, latent_dim) to those of b,
        both included.

        mode: "spherical", which keeps the length that normal vectors have, or "linear".
        """
        return self._between(a, b, steps, mode, condition)

    @torch.no_grad()
    def latent_arithmetic(
        self, a: Tensor, b: Tensor, c: Tensor, *, condition: Tensor | None = None
    ) -> Tensor:
        """The images of a - b + c, of latent vectors (B, latent_dim); each may be the mean of the
        vectors of several images that have something in common.

        Source: Radford et al., Unsupervised Representation Learning with Deep Convolutional
        Generative Adversarial Networks, 2016.
        """
        if not a.shape == b.shape == c.shape:
            got = f"{tuple(a.shape)}, {tuple(b.shape)} and {tuple(c.shape)}"
            self._refuse("a, b, c", "must be of one shape", got, "expand the shorter ones")
        return self.decode(a - b + c, condition)

    def _update(self, player, optimizer, loss, clip_grad):
        if not (is_number(clip_grad) and clip_grad >= 0):
            remedy = "0 leaves the gradient alone"
            self._refuse("clip_grad", "must be a number >= 0", clip_grad, remedy)
        groups = optimizer.param_groups
        parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        # looked at once: a walk over the modules is a fiftieth of a small network's update
        seen = id(optimizer), *map(id, parameters[:1]), len(parameters)
        if self._checked_optimizers.get(player) != seen:
            own = {id(p) for p in getattr(self, player).parameters()}
            if not parameters or any(id(p) not in own for p in parameters):
                expected = f"must have parameters to train, all of them the {player}'s"
                got = "others, too" if parameters else "none"
                self._refuse("optimizer", expected, got, f"{player}_optimizer() makes one")
            self._checked_optimizers[player] = seen
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)  # the other network's gradients are left alone
        if clip_grad > 0:
            nn.utils.clip_grad_norm_(parameters, clip_grad)
        optimizer.step()

    def _opponents(self, images, condition):
        """Images in [-1, 1], as many generated ones, and labels of both."""
        labels, like = self._checked(images, condition), self._like()
        if not len(images):
            self._refuse("images", "must be at least one", "none", "leave out empty batches")
        with torch.no_grad():
            fake = self._generated(self._noise(len(images), like), labels)
        return self.pixels.scaled(images, like.dtype), fake, labels

    def _generated(self, z, labels, net=None):
        """Images in [-1, 1] that a generator makes of z."""
        x = (self.generator if net is None else net)(z, *self._given(labels))
        shape = (len(z), *self.shape)
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        if got not in (shape, (len(z), math.prod(self.shape))):
            remedy = f"change its last layer; it was given z {tuple(z.shape)}"
            self._refuse("generator", f"must give {shape}", got, remedy)
        return x.reshape(shape).to(z.dtype)  # from half precision under autocast

    def _judged(self, x, labels):
        """The critic's numbers (B,) for images in [-1, 1], in at least float32."""
        out = self.critic(x, *self._given(labels))
        if not isinstance(out, Tensor) or out.numel() != len(x) or out.shape[:1] != x.shape[:1]:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            self._refuse(
                self._critic_name,
                f"must give one number for each image, ({len(x)},) or ({len(x)}, 1)",
                got,
                "change its last layer",
            )
        return out.view(len(x)).to(torch.promote_types(out.dtype, torch.float32))

    def _judged_both(self, real, fake, labels):
        if not self._joins:
            return self._judged(real, labels), self._judged(fake, labels)
        labels = None if labels is None else labels.repeat(2)
        return self._judged(torch.cat((real, fake)), labels).chunk(2)

    def _decoded(self, z, labels):
        net = self.generator if self.average is None else self.average
        return self.pixels.images(self._generated(z.to(self._dtype()), labels, net))

    def _block(self, index, seed, truncation, temperature):
        """z of samples index * BLOCK and on, of a seed."""
        size, like = (BLOCK, self.latent_dim), self._like()
        seed = (seed + index * STREAM) % 2**64
        if truncation is None:
            return temperature * randn(size, seed=seed, dtype=like.dtype, device=like.device)
        # by the inverse of the distribution function, between its values at +-truncation
        u = rand(size, seed=seed, dtype=torch.float64, device=like.device) + 2**-25
        most = math.erf(truncation / math.sqrt(2))
        return (temperature * torch.special.ndtri((1 + (2 * u - 1) * most) / 2)).to(like.dtype)

    def _noise(self, n, like):
        return randn((n, self.latent_dim), dtype=like.dtype, device=like.device)

    def _adam(self, net, lr, weight_decay, betas=(0.5, 0.999)):
        return torch.optim.AdamW(
            net.parameters(), lr=self._lr(lr), betas=betas, weight_decay=weight_decay, fused=True
        )

    def _lr(self, lr):
        return self.train_defaults["lr"] if lr is None else lr

    def _check_truncation(self, truncation):
        if truncation is not None and not (is_number(truncation) and 0 < truncation < math.inf):
            remedy = "None draws from the whole normal distribution"
            self._refuse("truncation", "must be a positive number", truncation, remedy)

    def _labels(self, condition, batch, device):
        """int64 (batch,); None where there are no classes."""
        if self.classes is None and condition is None:
            return None
        return super()._labels(condition, batch, device)

    @staticmethod
    def _given(labels):
        """What the networks are given beside their input."""
        return () if labels is None else (labels,)

    def _like(self):
        return next(self.generator.parameters())

    def _dtype(self):
        return self._like().dtype


def is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
