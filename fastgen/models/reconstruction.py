"""How an autoencoder is trained: by the error of its reconstructions."""

import torch
from torch import Tensor, nn


class Reconstruction:
    """The objective of `Autoencoder` and `DenoisingAutoencoder`, see `fastgen.train`: AdamW on the
    mean squared error.

    Figures: mse, for each value of images in [0, 1], so an image's loss divided by C H W; psnr, in
    dB, the mean over images, at most 100. Where the model was given noisy images (`noisy` of its
    output), noisy_psnr: theirs.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, clip_grad: float):
        self.model, self.clip_grad = model, clip_grad
        self.figures = ("mse", *model.psnr_names)
        options = {"lr": lr, "betas": (0.9, 0.99), "weight_decay": weight_decay, "fused": True}
        self.optimizers = {"adamw": torch.optim.AdamW(model.parameters(), **options)}

    def step(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        optimizer = self.optimizers["adamw"]
        optimizer.zero_grad(set_to_none=True)
        figures = self.evaluate(codes, condition)
        figures["mse"].backward()
        if self.clip_grad > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        optimizer.step()
        return {name: value.detach() for name, value in figures.items()}

    def evaluate(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        output, x = self.model(codes), self.model.scaled(codes)
        shown = {"psnr": output.recon, "noisy_psnr": getattr(output, "noisy", None)}
        figures = {name: psnr(shown[name], x) for name in self.model.psnr_names}
        return {"mse": output.loss.mean() / x[0].numel()} | figures


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """In dB, of images in [0, 1], the mean over them."""
    errors = (y.detach().clamp(0, 1) - x).square().flatten(1).mean(1)
    # 1e-10 more, so that a perfect image has 100 dB
    return -10 * torch.log10(errors + 1e-10).mean()
