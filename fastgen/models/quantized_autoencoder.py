"""What VQVAE and VQVAE2 share: images to maps of codes and back, and sampling by the priors."""

import torch
from torch import Tensor, nn

from fastgen.models.code_prior import CodePrior, one_by_one
from fastgen.models.image_model import ImageModel
from fastgen.models.two_stages import AutoencoderThenPriors
from fastgen.nn import Codebook
from fastgen.sampling.arguments import seed_of

_STREAM = 0x9E3779B97F4A7C15  # from the random numbers of one map to those of the next


class QuantizedAutoencoder(ImageModel):
    """An autoencoder whose latent variables are maps of codebook indices, each with a prior.

    A subclass names its maps, uppermost first (`names`), and defines

    - `_build(channels, blocks, code_dim)`: its encoders and decoders;
    - `_quantized(x) -> (vectors, loss)`: the maps of images x in [-1, 1] as vectors
      (B, code_dim, h, w), and the loss of the codebooks, which learn in training mode;
    - `_indices(x)`: the maps as indices (B, h, w);
    - `_decoded(*vectors) -> y`: what the decoder makes of the vectors.

    The reconstruction is the mean of a Gaussian of fixed variance: its likelihood is the squared
    error of images in [-1, 1].

    Attributes: `codebooks` and `priors`, one for each map; `map_shapes`, their (h, w).
    """

    objective = AutoencoderThenPriors
    sample_forwards = 4  # measured: 64 patches, with compiling 1.5 times their evaluation
    names: tuple[str, ...]

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        *,
        channels: int = 64,
        blocks: int = 2,
        downsample: int = 2,
        num_codes: int = 512,
        code_dim: int = 64,
        beta: float = 0.25,
        ema: bool = True,
        decay: float = 0.99,
        revive_below: float = 0.1,
        prior_channels: int = 48,
        prior_layers: int = 5,
        dropout: float = 0.0,
        classes: int | None = None,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(shape, levels, classes)
        self.config = config | {"shape": list(self.shape)}
        for name in ("channels", "num_codes", "code_dim", "prior_channels"):
            self._check_int(name, config[name], "leave it out for the default")
        for name in ("blocks", "prior_layers"):
            self._check_int(name, config[name], "leave it out for the default", least=0)
        self.halvings = self._checked_halvings(downsample)
        self.map_shapes = [
            tuple(side // (downsample << above) for side in self.shape[1:])
            for above in reversed(range(len(self.names)))
        ]
        codebook = {"beta": beta, "ema": ema, "decay": decay, "revive_below": revive_below}
        prior = {"channels": prior_channels, "layers": prior_layers, "dropout": dropout}
        self.codebooks = nn.ModuleList(
            Codebook(num_codes, code_dim, **codebook) for _ in self.names
        )
        self.priors = nn.ModuleList(
            CodePrior(
                map_shape,
                num_codes,
                upper_codes=num_codes if level else None,
                classes=classes,
                **prior,
            )
            for level, map_shape in enumerate(self.map_shapes)
        )
        self._build(channels, blocks, code_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> (reconstruction, a float in about [-1, 1]; loss of the
        codebooks)."""
        self._check_codes(images)
        vectors, loss = self._quantized(self.scaled(images))
        return self._decoded(*vectors), loss

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images, int64 (B, C, H, W) -> codes, int64 (B, h, w); of several maps a tuple of these,
        uppermost first. Writes nothing."""
        self._check_codes(images)
        maps = self._indices(self.scaled(images))
        return maps if len(maps) > 1 else maps[0]

    @torch.no_grad()
    def decode(self, codes: Tensor | tuple[Tensor, ...]) -> Tensor:
        """What `encode` returns -> images, int64 (B, C, H, W).

        Raises ValueError for other shapes, TypeError for another dtype, IndexError for codes that
        the codebook does not have.
        """
        maps = codes if isinstance(codes, tuple) else (codes,)
        shapes = [tuple(m.shape[1:]) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
        if shapes != self.map_shapes or len({len(m) for m in maps}) > 1:
            expected = " and ".join(f"(B, {h}, {w})" for h, w in self.map_shapes)
            got = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
            self._refuse("codes", f"must be int64 {expected}", got, "pass what encode returned")
        books = zip(self.codebooks, maps, strict=True)
        y = self._decoded(*(book.decode(indices) for book, indices in books))
        top = self.levels - 1
        return ((y + 1) * (top / 2)).round().clamp(0, top).long()

    def reconstruct(self, images: Tensor) -> Tensor:
        """`decode(encode(images))`: what the codes keep of images."""
        return self.decode(self.encode(images))

    def prior_log_probs(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """log p(map | map above, labels) for each map of the images' codes, in nats, (B,).
        Gradients reach the priors alone."""
        codes = self.encode(images)
        maps = codes if isinstance(codes, tuple) else (codes,)
        each = zip(self.priors, maps, (None, *maps), strict=False)
        return [prior.log_prob(indices, upper, condition) for prior, indices, upper in each]

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        batch: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """n new images, int64 (n, C, H, W): each map of codes by the compiled sampler of its prior,
        given the map above, then decoded.

        condition: int64 labels (n,) of a model with classes. The others as of
        `fastgen.sampling.Sampler.sample`, for each map.
        """
        seed = seed_of(seed, generator, None)
        maps: list[Tensor] = []
        for level, prior in enumerate(self.priors):
            codes = prior.sample(
                n,
                maps[-1] if maps else None,
                condition,
                seed=(seed + level * _STREAM) % 2**64,
                first_index=first_index,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                batch=batch,
                progress=progress,
            )
            maps.append(codes)
        return one_by_one(lambda *codes: self.decode(codes), *maps)

    def scaled(self, images: Tensor) -> Tensor:
        """Images as floats in [-1, 1], in the parameters' dtype and channels-last."""
        x = images.to(next(self.parameters()).dtype) * (2 / max(self.levels - 1, 1)) - 1
        return x.contiguous(memory_format=torch.channels_last)

    def _checked_halvings(self, downsample: int) -> int:
        self._check_int("downsample", downsample, "use 2 or 4")
        if downsample < 2 or downsample & (downsample - 1):
            self._refuse("downsample", "must be 2, 4, 8, ...", downsample, "use 2 or 4")
        side = downsample << (len(self.names) - 1)
        if self.shape[1] % side or self.shape[2] % side:
            self._refuse(
                "shape",
                f"must have a height and width divisible by {side}, for downsample {downsample}",
                self.shape,
                "resize the images (--size), or choose another downsample",
            )
        return downsample.bit_length() - 1
