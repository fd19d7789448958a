"""What quantising costs: the autoencoder of a trained VQVAE or VQVAE2 again, without codebooks.

    fastgen train vqvae2 --data patches --minutes 10 --out runs/patches
    python benchmarks/plain_autoencoder.py runs/patches --out runs/plain

The same network, initial weights, images, steps and rates; its latent maps stay real numbers. So
it has no codes to speak of, but says how far its PSNR is from what the network could reach.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgen import checkpoint, data, figures
from fastgen.models import MODELS
from fastgen.models.two_stages import AutoencoderThenPriors
from fastgen.train import train


class PassThrough(nn.Module):
    """In place of a Codebook: the vectors as they are, no loss."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, float]:
        return z, z[:, 0].long(), 0.0


class AutoencoderAlone(AutoencoderThenPriors):
    stages = (1.0,)
    can_sample = False

    def __init__(self, model: nn.Module, **options):
        super().__init__(model, **options)
        self.figures = ("mse", "psnr")

    def _codebook_figures(self) -> dict[str, Tensor]:
        return {}

    def evaluate(self, codes: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        return self._reconstruction(codes)[1]

    def warnings(self) -> list[str]:
        return []


def plain(kind: type[nn.Module]) -> type[nn.Module]:
    class Plain(kind):
        objective = AutoencoderAlone

        def __init__(self, **config):
            super().__init__(**config)
            self.codebooks = nn.ModuleList(PassThrough() for _ in self.codebooks)

        @torch.no_grad()
        def reconstruct(self, images: Tensor) -> Tensor:
            y, _ = self(images)
            top = self.levels - 1
            return ((y + 1) * (top / 2)).round().clamp(0, top).long()

    return Plain


def psnr(images: Tensor, others: Tensor, levels: int) -> float:
    """Mean over images, dB."""
    mse = (images - others).double().div(levels - 1).square().flatten(1).mean(1)
    return -10 * torch.log10(mse.clamp(min=1e-10)).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a folder of `fastgen train vqvae` or `vqvae2`")
    parser.add_argument("--out", required=True, help="folder of the plain autoencoder")
    given = parser.parse_args()

    config = checkpoint.read_config(given.run)
    _, state = checkpoint.load_resume(given.run)
    images = data.load(**config["data"]["arguments"])
    settings = config["training"]
    torch.manual_seed(settings["seed"])
    model = plain(MODELS[config["model"]])(**config["model_config"])
    names = ("batch_size", "lr", "schedule", "weight_decay", "clip_grad", "seed", "test_images")
    resume = (Path(given.out) / checkpoint.CONFIG).exists()
    train(
        model,
        images,
        out=given.out,
        steps=state["stage_step"],
        resume=resume,
        data_arguments=config["data"]["arguments"],
        grids=1,
        **{name: settings[name] for name in names},
    )
    test = images.test.images.long()
    quantised = checkpoint.load(given.run)
    rows = {"quantised": quantised, "plain": model.eval()}
    pictures = {
        name: torch.cat([net.reconstruct(part) for part in test.split(100)])
        for name, net in rows.items()
    }
    for name, picture in pictures.items():
        print(f"{name:<10} test PSNR {psnr(test, picture, images.levels):.2f} dB")
    shown = torch.linspace(0, len(test) - 1, 16).long()
    picture = torch.cat([p[shown] for p in (test, *pictures.values())])
    figures.write_grid(
        Path(given.out) / "comparison.png", picture, levels=images.levels, columns=16
    )


if __name__ == "__main__":
    main()
