"""Autoencoder: images through a few numbers and back; linear, it is PCA."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgen.models.image_model import ImageModel
from fastgen.models.image_nets import Net, image_decoder, image_encoder
from fastgen.models.latent_space import LatentSpace
from fastgen.models.reconstruction import Reconstruction


class AutoencoderOutput(NamedTuple):
    """recon: (B, C, H, W) on the scale of x. z: (B, latent_dim). loss: (B,), the squared error
    summed over the values of an image."""

    recon: Tensor
    z: Tensor
    loss: Tensor


class Autoencoder(LatentSpace, ImageModel):
    """An encoder to `latent_dim` numbers, and a decoder back.

    Images are int64 levels (B, C, H, W); the networks see x = images / (levels - 1), in [0, 1], and
    floats are taken to be on that scale. The loss of an image is its squared error,
    sum (recon - x)^2: twice the negative log-likelihood of a Gaussian of variance 1 around the
    reconstruction, but for a constant.

    Source: Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks,
    2006. Linear, the optimum is the span of the first principal axes: Baldi and Hornik, Neural
    Networks and Principal Component Analysis, 1989.

    Args:
        encoder: a module (B, C, H, W) -> (B, latent_dim); default `image_encoder`.
        decoder: a module (B, latent_dim) -> (B, C, H, W); default `image_decoder`.
        latent_dim: how many numbers an image goes through.
        shape: (C, H, W) of the images.
        levels: number of values of the images.
        linear: one linear layer each way, with bias, in place of deep networks.
        net: of the default pair: mlp, or conv for larger images.
        width: of the default pair: hidden units (default 256), or channels (default 64).
        layers: of the default pair: hidden layers, or residual blocks.

    ``forward(images)`` gives an `AutoencoderOutput`; ``encode(images)`` to z,
    ``decode(z)``, ``reconstruct(images)`` and, of `LatentSpace`, ``interpolate``, ``traverse`` and
    ``latent_arithmetic`` to images; ``score(images)`` to how badly each is reconstructed, (B,).
    """

    objective = Reconstruction
    psnr_names: tuple[str, ...] = ("psnr",)

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        latent_dim: int = 16,
        *,
        shape: tuple[int, int, int],
        levels: int = 256,
        linear: bool = False,
        net: Net | None = None,
        width: int | None = None,
        layers: int = 2,
    ):
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(shape, levels)
        for name in ("encoder", "decoder"):
            self._check_module(name, given[name])
            given[name] = None if given[name] is None else type(given[name]).__name__
        self.config = given | {"shape": list(self.shape)}
        self._check_int("latent_dim", latent_dim, "say how many numbers an image goes through")
        for name in ("width", "layers"):
            if given[name] is not None:
                self._check_int(name, given[name], "leave it out for the default")
        self.latent_dim, self.linear = latent_dim, linear
        if linear:
            own = {"encoder": encoder, "decoder": decoder, "net": net, "width": width}
            encoder, decoder = self._linear_pair(own)
        sizes = {"net": net, "width": width, "layers": layers}
        if encoder is None:
            encoder = image_encoder(self.shape, latent_dim, **sizes)
        if decoder is None:
            decoder = image_decoder(latent_dim, self.shape, **sizes)
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor) -> AutoencoderOutput:
        x = self.scaled(images)
        return self._output(x, x)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> z (B, latent_dim)."""
        return self._encoded(self.scaled(images))

    def latent(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """`encode`, under the name that `LatentSpace` knows."""
        self._check_no_condition(condition)
        return self.encode(images)

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (B, latent_dim) -> images, int64 (B, C, H, W): the nearest levels."""
        if not isinstance(z, Tensor) or z.dim() != 2 or z.shape[1] != self.latent_dim:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            self._refuse("z", f"must be (B, {self.latent_dim})", got, "pass what encode returned")
        self._check_no_condition(condition)
        return self.levelled(self._decoded(z.to(self._dtype())))

    @torch.no_grad()
    def score(self, images: Tensor) -> Tensor:
        """(B,): the squared error of each reconstruction, large for images unlike those of the
        training."""
        x = self.scaled(images)
        return (self._decoded(self._encoded(x)) - x).square().flatten(1).sum(1)

    @torch.no_grad()
    def fit_pca(self, images: Tensor) -> "Autoencoder":
        """Sets a linear autoencoder to its optimum for these images (N, C, H, W), N at least
        `latent_dim`: the mean and the first principal axes, from a decomposition in float64 of N or
        of C H W squared numbers. Returns itself."""
        if not self.linear:
            self._refuse("fit_pca", "wants a linear model", "a deep one", "build it by linear=True")
        mean, axes = pca(self.scaled(images).flatten(1), self.latent_dim)
        layer = self.encoder[1]
        layer.weight.copy_(axes)
        layer.bias.copy_(-axes @ mean)
        layer = self.decoder[0]
        layer.weight.copy_(axes.T)
        layer.bias.copy_(mean)
        return self

    def scaled(self, images: Tensor) -> Tensor:
        """Images as floats on the scale that the networks see, in the parameters' dtype; floats are
        taken to be on it already."""
        if isinstance(images, Tensor) and images.is_floating_point():
            if tuple(images.shape[1:]) != self.shape:
                expected = f"must be (B, {', '.join(map(str, self.shape))})"
                remedy = "or build the model for that shape"
                self._refuse("images", expected, tuple(images.shape), remedy)
            return images.to(self._dtype())
        self._check_codes(images)
        self._check_range("images", "levels", images, self.levels)
        return images.to(self._dtype()) / max(self.levels - 1, 1)

    def levelled(self, x: Tensor) -> Tensor:
        """Floats on the scale of `scaled` as the nearest levels, int64."""
        top = self.levels - 1
        return (x * top).round().clamp(0, top).long()

    def _check_no_condition(self, condition: Tensor | None) -> None:
        if condition is not None:
            self._refuse("condition", "must be None", "labels", "an autoencoder knows no classes")

    def _output(self, seen: Tensor, x: Tensor) -> AutoencoderOutput:
        z = self._encoded(seen)
        recon = self._decoded(z)
        return AutoencoderOutput(recon, z, (recon - x).square().flatten(1).sum(1))

    def _encoded(self, x: Tensor) -> Tensor:
        remedy = "choose that latent_dim, or change its last layer"
        return self._fitting("encoder", self.encoder(x), (len(x), self.latent_dim), remedy)

    def _decoded(self, z: Tensor) -> Tensor:
        remedy = f"let it end with nn.Unflatten(1, {self.shape}) or with as many channels"
        return self._fitting("decoder", self.decoder(z), (len(z), *self.shape), remedy)

    def _fitting(self, name: str, made, shape: tuple[int, ...], remedy: str) -> Tensor:
        got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        if got != shape:
            self._refuse(name, f"must give {shape} here", got, remedy)
        return made

    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters()), torch.get_default_dtype())

    def _linear_pair(self, own: dict) -> tuple[nn.Module, nn.Module]:
        for name, value in own.items():
            if value is not None:
                got = f"{name}={value!r}" if isinstance(value, int | str) else name
                self._refuse("linear", "brings its own pair", got, f"leave out {name}")
        values = math.prod(self.shape)
        return (
            nn.Sequential(nn.Flatten(), nn.Linear(values, self.latent_dim)),
            nn.Sequential(nn.Linear(self.latent_dim, values), nn.Unflatten(1, self.shape)),
        )

    def _check_module(self, name: str, module) -> None:
        if isinstance(module, str):
            self._refuse(
                name,
                "must be a module",
                f"{module!r}, the name of one whose code the checkpoint does not have",
                "build the model with that module and give it to "
                "fastgen.checkpoint.load(directory, model)",
            )
        if module is not None and not isinstance(module, nn.Module):
            remedy = "leave it out for the default one"
            self._refuse(name, "must be an nn.Module", type(module).__name__, remedy, TypeError)


def pca(x: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Rows x (N, D) -> (mean (D,), the first principal axes (components, D), orthonormal), in
    float64. Axes along which no row differs are 0; the largest entry of an axis is positive.

    Raises ValueError for fewer rows or columns than components.
    """
    if min(x.shape) < components:
        raise ValueError(
            f"fastgen.models.pca: x must have at least {components} rows and columns for as many "
            f"components, got {tuple(x.shape)}; give more images, or a smaller latent_dim"
        )
    x = x.double()
    mean = x.mean(0)
    _, values, axes = torch.linalg.svd(x - mean, full_matrices=False)
    axes, values = axes[:components], values[:components]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return mean, torch.where(values[:, None] > 1e-12 * values[0], axes * signs, 0)
