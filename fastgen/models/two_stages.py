"""How a quantized autoencoder is trained: first the autoencoder, then the priors of its codes."""

import math

import torch
from torch import Tensor, nn


class AutoencoderThenPriors:
    """The objective of `VQVAE` and `VQVAE2`, see `fastgen.train`: two fifths of the budget go to
    the autoencoder, the rest to the priors, for which each batch is encoded by the autoencoder as
    it is then.

    Figures: mse, of images in [-1, 1]; psnr, in dB, the mean over images, at most 100; for each map
    its codebook's usage (share of codes that are not dead) and perplexity, and bits_per_code of
    its prior; bits_per_dim, those of all codes for each value of an image: a rate, no likelihood
    of the image.
    """

    # a step of the priors takes twice as long, and they are the last to be good
    stages = (0.4, 0.6)
    stage = 0

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, clip_grad: float):
        self.model, self.clip_grad = model, clip_grad
        prefixes = [f"{name}_" for name in model.names] if len(model.names) > 1 else [""]
        self._of_codebooks = [(f"{p}usage", f"{p}perplexity") for p in prefixes]
        self._of_priors = [f"{p}bits_per_code" for p in prefixes]
        self._warned: set[str] = set()
        self.figures = ("mse", "psnr", *sum(self._of_codebooks, ()), *self._of_priors)
        self.figures += ("bits_per_dim",)
        priors = list(model.priors.parameters())
        theirs = {id(p) for p in priors}
        autoencoder = [p for p in model.parameters() if id(p) not in theirs]
        options = {"lr": lr, "betas": (0.9, 0.99), "weight_decay": weight_decay, "fused": True}
        self.optimizers = {
            "autoencoder": torch.optim.AdamW(autoencoder, **options),
            "priors": torch.optim.AdamW(priors, **options),
        }

    @property
    def can_sample(self) -> bool:
        return self.stage == 1

    def step(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        if self.stage == 0:
            loss, figures = self._reconstruction(codes)
            self._update("autoencoder", loss)
        else:
            loss, figures = self._coding(codes, condition)
            self._update("priors", loss)
        return {name: value.detach() for name, value in figures.items()}

    def evaluate(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        figures = self._reconstruction(codes)[1]
        return figures if self.stage == 0 else figures | self._coding(codes, condition)[1]

    def warnings(self) -> list[str]:
        """About codebooks whose codes have died, once for each."""
        found = []
        for name, codebook in zip(self.model.names, self.model.codebooks, strict=True):
            dead = int(codebook.dead_codes)
            if dead > codebook.num_codes / 10 and name not in self._warned:
                self._warned.add(name)
                advice = "take fewer codes (--num-codes)"
                if codebook.revive_below == 0:
                    advice = f"revive them by revive_below=0.1 (--revive-below 0.1), or {advice}"
                found.append(
                    f"fastgen.train: {dead} of the {codebook.num_codes} codes of the map {name!r} "
                    f"are dead (chosen less than a hundredth of the equal share); {advice}"
                )
        return found

    def _reconstruction(self, codes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(the loss, the figures) of the first stage."""
        y, loss = self.model(codes)
        x = self.model.scaled(codes)
        mse = (y - x).square().mean()
        clamped = (y.detach().clamp(-1, 1) - x).square().flatten(1).mean(1)
        # of a range of 2; 1e-10 of its square more, so that a perfect image has 100 dB
        psnr = -10 * torch.log10(clamped / 4 + 1e-10).mean()
        return mse + loss, {"mse": mse, "psnr": psnr} | self._codebook_figures()

    def _codebook_figures(self) -> dict[str, Tensor]:
        figures: dict[str, Tensor] = {}
        for names, codebook in zip(self._of_codebooks, self.model.codebooks, strict=True):
            figures |= zip(names, (codebook.usage, codebook.perplexity), strict=True)
        return figures

    def _coding(self, codes: Tensor, condition) -> tuple[Tensor, dict[str, Tensor]]:
        """(the loss, the figures) of the second stage."""
        bits = [-nats.mean() / math.log(2) for nats in self.model.prior_log_probs(codes, condition)]
        places = [math.prod(shape) for shape in self.model.map_shapes]
        per_code = [b / count for b, count in zip(bits, places, strict=True)]
        figures = dict(zip(self._of_priors, per_code, strict=True))
        # each prior learns by its own term: a mean over places would starve the small map
        return sum(per_code), figures | {"bits_per_dim": sum(bits) / codes[0].numel()}

    def _update(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip_grad > 0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_grad)
        optimizer.step()
