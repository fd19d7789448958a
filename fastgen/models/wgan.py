"""WGAN, of "Wasserstein GAN" (2017), with clipped weights or with a gradient penalty."""

import math

import torch
from torch import Tensor, nn

from fastgen.models.adversarial import Adversarial, is_number
from fastgen.models.gan_losses import LOSSES
from fastgen.models.gan_nets import default_net, image_critic, image_generator
from fastgen.models.image_nets import Net
from fastgen.ops.clip_weights_ import clip_weights_
from fastgen.ops.philox_uniform import rand
from fastgen.optim import ClippedRMSprop

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class WGAN(Adversarial):
    """A Wasserstein GAN around your generator and critic, or default ones.

    The critic maximises the difference of its means over real and generated images: up to a factor
    the Wasserstein distance, if it is Lipschitz. Two ways to keep it so: `clip`, all its weights in
    [-c, c], with RMSprop; or `penalty`, on the norm of its gradient between images, with Adam.

    Source: Arjovsky et al., Wasserstein GAN, 2017; Gulrajani et al., Improved Training of
    Wasserstein GANs, 2017.

    Args:
        generator: a module, z (B, latent_dim) -> images in [-1, 1], (B, C, H, W) or flat; None for
            the default.
        critic: a module, images as floats in [-1, 1] (B, C, H, W) -> (B,) or (B, 1); None for the
            default.
        clip: bound of the critic's weights after each of its updates, those of normalisation
            layers apart: a scale held below 0.01 would leave nothing of the signal. Default the
            paper's 0.01, and 0.1 of a default mlp, whose layers have few inputs to add up.
        n_critic: updates of the critic for each of the generator, in `fastgen.train`.
        penalty: weight of the gradient penalty; 10 is the paper's. Its critic must not have batch
            norm, which makes a gradient one of the whole batch.
        shape: (C, H, W) of the images.
        levels: number of values of the images; None for real-valued ones in [-1, 1].
        latent_dim: number of latent variables; default 64, or as many as an image has values where
            these are fewer.
        ema: of the moving average of the generator's weights that samples are made with; None
            keeps no average.
        net: kind of default networks: mlp or conv; default by the size of images.
        width: units of their hidden layers (default 128), or channels at full resolution
            (default 32).
        layers: their hidden layers, of mlp alone (default 3): conv has as many as the size asks.

    Methods are those of `GAN`.
    """

    loss = "wasserstein"
    _critic_name = "critic"

    def __init__(
        self,
        generator: nn.Module | None = None,
        critic: nn.Module | None = None,
        clip: float | None = None,
        n_critic: int = 5,
        *,
        penalty: float | None = None,
        shape: tuple[int, int, int],
        levels: int | None,
        latent_dim: int | None = None,
        ema: float | None = 0.99,
        net: Net | None = None,
        width: int | None = None,
        layers: int | None = None,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(shape, 2 if levels is None else levels)
        if clip is None and penalty is None:
            is_mlp = critic is None and (net or default_net(shape)) == "mlp"
            clip = config["clip"] = 0.1 if is_mlp else 0.01
        if clip is not None and penalty is not None:
            self._refuse("clip", "takes the penalty's place", f"{clip} and {penalty}", "give one")
        for name, value in (("clip", clip), ("penalty", penalty)):
            if value is not None and not (is_number(value) and 0 < value < math.inf):
                remedy = "0.01 is the paper's clip, 10 the paper's penalty"
                self._refuse(name, "must be a positive number", value, remedy)
        self._check_int("n_critic", n_critic, "5 is the papers'")
        self.clip, self.penalty, self.n_critic = clip, penalty, n_critic
        sizes = {"net": net, "width": width, "layers": layers}
        self._configure(
            config,
            generator=lambda: image_generator(self.latent_dim, self.shape, **sizes),
            critic=lambda: self._default_critic(sizes),
        )
        if penalty is not None:
            for layer in self.critic.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    remedy = "take nn.LayerNorm, nn.GroupNorm or none"
                    self._refuse("critic", "must not have batch norm", layer, remedy)

    @property
    def critic_figures(self) -> tuple[str, ...]:
        return ("wasserstein", "gradient_penalty" if self.clip is None else "saturation")

    def critic_loss(
        self, images: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what the critic minimises, figures of it): critic_loss, wasserstein (the difference of
        its means, which the loss is the negative of) and gradient_penalty, if there is one."""
        real, fake, labels = self._opponents(images, condition)
        loss = LOSSES[self.loss][0](*self._judged_both(real, fake, labels))
        figures = {"wasserstein": -loss.detach()}
        if self.penalty is not None and torch.is_grad_enabled():
            penalty = figures["gradient_penalty"] = self.penalty * self._excess(real, fake)
            loss = loss + penalty
        return loss, {"critic_loss": loss} | figures

    def critic_step(
        self,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        condition: Tensor | None = None,
        *,
        clip_grad: float = 0.0,
    ) -> dict[str, Tensor]:
        figures = super().critic_step(optimizer, images, condition, clip_grad=clip_grad)
        if self.clip is None:
            return figures
        if any(group.get("clip") is not None for group in optimizer.param_groups):
            return figures | {"saturation": optimizer.saturation}
        # an optimizer of your own does not clip
        clipped, _ = self._clipped_and_free()
        saturation = clip_weights_(clipped, self.clip, return_saturation=True)
        return figures | {"saturation": saturation}

    critic_step.__doc__ = Adversarial.critic_step.__doc__

    def critic_optimizer(self, lr=None, *, weight_decay=0.0):
        """`fastgen.optim.ClippedRMSprop`, with normalisation layers in a group that is not clipped;
        with a penalty Adam of betas (0.5, 0.9). lr by default the model's."""
        if self.clip is None:
            return self._adam(self.critic, lr, weight_decay, betas=(0.5, 0.9))
        clipped, free = self._clipped_and_free()
        groups = [{"params": clipped, "clip": self.clip}]
        groups += [{"params": free, "clip": None}] if free else []
        return ClippedRMSprop(groups, lr=self._lr(lr), weight_decay=weight_decay)

    def generator_optimizer(self, lr=None, *, weight_decay=0.0):
        """`fastgen.optim.ClippedRMSprop` without a clip; with a penalty Adam of betas (0.5, 0.9).
        lr by default the model's."""
        if self.clip is None:
            return self._adam(self.generator, lr, weight_decay, betas=(0.5, 0.9))
        parameters = self.generator.parameters()
        return ClippedRMSprop(parameters, lr=self._lr(lr), weight_decay=weight_decay, clip=None)

    def _default_critic(self, sizes):
        critic = image_critic(self.shape, **sizes)
        if self.clip is not None:
            # made smaller, not clipped, to begin with: that would put nearly all weights on a bound
            for parameter in critic.parameters():
                parameter.data.mul_((self.clip / parameter.detach().abs().max()).clamp(max=1))
            clip_weights_(critic, self.clip)  # the product may round upwards
        return critic

    def _clipped_and_free(self):
        """The critic's parameters, and those of its normalisation layers."""
        free = {
            id(p)
            for layer in self.critic.modules()
            if isinstance(layer, _NORMS)
            for p in layer.parameters(recurse=False)
        }
        each = list(self.critic.parameters())
        return [p for p in each if id(p) not in free], [p for p in each if id(p) in free]

    def _excess(self, real, fake):
        """Mean over images between a real and a generated one of (|gradient| - 1)^2."""
        t = rand(len(real), 1, 1, 1, dtype=real.dtype, device=real.device)
        between = torch.lerp(fake, real, t).requires_grad_()
        total = self._judged(between, None).sum()
        (gradient,) = torch.autograd.grad(total, between, create_graph=True)
        gradient = gradient.flatten(1).to(total.dtype)
        norm = torch.linalg.vector_norm(gradient, dim=1)
        return (norm - 1).square().mean()
