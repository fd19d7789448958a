"""How a VAE is trained: by its evidence lower bound."""

import math

import torch
from torch import Tensor, nn

ACTIVE = 0.01  # nats; a latent variable with fewer tells nothing of the image


class Evidence:
    """The objective of `VAE` and `ConditionalVAE`, see `fastgen.train`: AdamW on the mean over
    images of ``nll + beta kl``, whose weight rises over the first `kl_warmup` of the training.

    Figures: loss, with beta and free bits; nll, kl and elbo, in nats per image and without them;
    active_units, latent variables of more than 0.01 nats, the mean over batches of the test
    images; bits_per_dim, of the elbo, where it is a bound of the probability of levels (with a
    gaussian likelihood of the test images alone, by integrating the bins). In the log also
    test_kl_0, test_kl_1, ...: the divergence of each latent variable.
    """

    figures = ("loss", "nll", "kl", "elbo", "active_units", "bits_per_dim")
    done = 0.0  # share of the training, written there

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, clip_grad: float):
        self.model, self.clip_grad = model, clip_grad
        if not model.pixels.has_mass:
            self.figures = self.figures[:-1]
        self.test_figures = tuple(f"kl_{d}" for d in range(model.latent_dim))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        self.optimizers = {"adamw": optimizer}

    @property
    def weight(self) -> float:
        """Of the divergence, by now."""
        warmup = self.model.kl_warmup
        return self.model.beta * (min(1.0, self.done / warmup) if warmup else 1.0)

    def step(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        optimizer = self.optimizers["adamw"]
        optimizer.zero_grad(set_to_none=True)
        out = self.model(codes, condition)
        loss = (out.nll + self.weight * out.counted_kl).mean()
        (loss / codes[0].numel()).backward()  # per value: one clip_grad for every image size
        if self.clip_grad > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        optimizer.step()
        figures = self._figures(loss, out)
        if self.model.pixels.has_mass and self.model.pixels.nll_is_of_levels:
            figures["bits_per_dim"] = self._bits(out.nll + out.kl, codes)
        return {name: value.detach() for name, value in figures.items()}

    def evaluate(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        model = self.model
        out = model(codes, condition)
        loss = (out.nll + model.beta * out.counted_kl).mean()
        each = model.kl_per_dimension(codes, condition)
        figures = self._figures(loss, out) | dict(zip(self.test_figures, each, strict=True))
        figures["active_units"] = (each > ACTIVE).sum()
        if model.pixels.has_mass:
            nats = out.kl - model.pixels.log_mass(out.params, codes)
            figures["bits_per_dim"] = self._bits(nats, codes)
        return figures

    @staticmethod
    def _figures(loss: Tensor, out) -> dict[str, Tensor]:
        figures = {"nll": out.nll, "kl": out.kl, "elbo": out.elbo}
        return {"loss": loss} | {name: value.mean() for name, value in figures.items()}

    @staticmethod
    def _bits(nats: Tensor, codes: Tensor) -> Tensor:
        return nats.mean() / (codes[0].numel() * math.log(2))
