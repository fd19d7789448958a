"""What every autoregressive image model here shares: checks, scaling, likelihood, sampling."""

import math

import torch
from torch import Tensor, nn

from fastgen.likelihoods import Categorical
from fastgen.models.image_model import ImageModel
from fastgen.sampling.sampler import Sampler, compile_sampler


class Autoregressive(ImageModel):
    """p(image | condition) as a product over its codes, one softmax over all levels for each.

    A subclass defines ``forward(codes, condition=None) -> logits (B, levels, C, H, W)`` for int64
    codes (B, C, H, W) in 0 .. levels - 1, and `config`, the arguments that rebuild it:
    ``type(model)(**model.config)``.

    Args:
        shape: (C, H, W) of the images.
        levels: number of values a code takes.
        classes: number of labels; then a condition is int64 labels (B,).
        condition_channels: channels of a condition map, float (B, condition_channels, H, W). With
            both, a condition is the tuple (labels, map).

    Attributes:
        order: "raster", or "subpixel" where the colours of a pixel are drawn one after the other
            and each sees those before it.
        memory_format: of the activations inside.
    """

    memory_format = torch.channels_last

    def __init__(self, shape, levels, classes=None, condition_channels=None):
        super().__init__(shape, levels, classes)
        if condition_channels is not None:
            remedy = "leave it out for a model without"
            self._check_int("condition_channels", condition_channels, remedy)
        self.condition_channels = condition_channels
        self.order = "raster" if self.shape[0] == 1 else "subpixel"
        self.likelihood = Categorical(levels)

    def _configure(self, multiple, *, channels, head_channels, layers, embedding, **others):
        """Checks the sizes, sets `config` and `embedding`, and returns (channels, head_channels)
        with their defaults; channels are a multiple of `multiple`, head_channels of the colours."""
        colors = self.shape[0]
        channels = (64 if colors == 1 else 96) if channels is None else channels
        head_channels = 2 * channels if head_channels is None else head_channels
        for name, value, divisor in (
            ("channels", channels, multiple),
            ("head_channels", head_channels, colors),
        ):
            self._check_int(name, value, "leave it out for the default")
            self._check_multiple(name, value, divisor)
        self._check_int("layers", layers, "0 leaves the first layer and the head", least=0)
        self.embedding = None
        if embedding is not None:
            self._check_int("embedding", embedding, "leave it out for codes that are brightnesses")
            self.embedding = nn.Embedding(self.levels, embedding)
        self.config = {
            "shape": list(self.shape),
            "levels": self.levels,
            "channels": channels,
            "layers": layers,
            "head_channels": head_channels,
            "embedding": embedding,
            "classes": self.classes,
            "condition_channels": self.condition_channels,
            **others,
        }
        return channels, head_channels

    def log_prob(self, codes: Tensor, condition=None) -> Tensor:
        """log p(codes | condition) in nats, (B,)."""
        self._check_values(codes, condition)
        return self.likelihood.log_prob(self(codes, condition), codes).flatten(1).sum(1)

    def bits_per_dim(self, codes: Tensor, condition=None) -> Tensor:
        """-log_prob / (C H W ln 2), (B,)."""
        return self.log_prob(codes, condition) / (-math.prod(self.shape) * math.log(2))

    def sampler(self, backend: str = "auto") -> Sampler:
        """The compiled sampler behind `sample`, made at the first call; the model must be in eval
        mode. float64 for a float64 model, else float32."""
        dtype = next(self.parameters()).dtype
        return compile_sampler(
            self,
            self.shape,
            self.likelihood,
            order=self.order,
            condition=self._example_condition(),
            dtype=torch.float64 if dtype == torch.float64 else torch.float32,
            backend=backend,
        )

    def sample(
        self,
        n: int,
        condition=None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        batch: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """n new images, int64 (n, C, H, W), in eval mode; see `fastgen.sampling.Sampler.sample`."""
        self._check_condition(condition, n)
        self._check_labels(condition)
        was_training = self.training
        self.eval()
        try:
            return self.sampler().sample(
                n,
                condition=condition,
                seed=seed,
                generator=generator,
                uniforms=uniforms,
                first_index=first_index,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                known=known,
                known_mask=known_mask,
                batch=batch,
                progress=progress,
            )
        finally:
            self.train(was_training)

    def _example_condition(self):
        weight, parts = next(self.parameters()), []
        if self.classes is not None:
            parts.append(torch.full((1,), self.classes - 1, device=weight.device))
        if self.condition_channels is not None:
            parts.append(weight.new_zeros(1, self.condition_channels, *self.shape[1:]).detach())
        return tuple(parts) if len(parts) > 1 else parts[0] if parts else None

    def _inputs(self, codes: Tensor, condition):
        """Codes as floats in [-1, 1], or as their vectors, colour by colour, and the condition,
        checked, in the parameters' dtype and in `memory_format`."""
        self._check_codes(codes)
        self._check_condition(condition, len(codes))
        if self.embedding is None:
            x = self._placed(codes) * (2 / max(self.levels - 1, 1)) - 1
        else:
            x = self._placed(self.embedding(codes).movedim(-1, 2).flatten(1, 2))
        if self.condition_channels is None:
            return x, condition
        if self.classes is None:
            return x, self._placed(condition)
        return x, (condition[0], self._placed(condition[1]))

    def _placed(self, x):
        dtype = next(self.parameters()).dtype
        # a copy says the format in its strides even for one channel, where both formats would do
        return torch.empty_like(x, dtype=dtype, memory_format=self.memory_format).copy_(x)

    def _logits(self, y: Tensor) -> Tensor:
        """(B, C * levels, H, W), colour by colour, as (B, levels, C, H, W)."""
        return y.unflatten(1, (self.shape[0], self.levels)).transpose(1, 2)

    def _check_condition(self, condition, batch):
        """The condition's structure and shapes, without reading its values."""
        wanted = []
        if self.classes is not None:
            wanted.append(("int64 labels", (batch,)))
        if self.condition_channels is not None:
            wanted.append(("a float map", (batch, self.condition_channels, *self.shape[1:])))
        if not wanted:
            if condition is not None:
                self._refuse(
                    "condition",
                    "must be None",
                    type(condition).__name__,
                    "build the model with classes= or condition_channels= to condition it",
                )
            return

        def refuse(got, remedy, error=ValueError):
            # said only when needed: text of a symbolic batch size would break torch.compile
            expected = " and ".join(f"{kind} {shape}" for kind, shape in wanted)
            self._refuse("condition", f"must be {expected}", got, remedy, error)

        parts = condition if len(wanted) == 2 else (condition,)
        if not isinstance(parts, tuple) or len(parts) != len(wanted):
            refuse(type(condition).__name__, "pass (labels, map)")
        for (kind, shape), part in zip(wanted, parts, strict=True):
            if not isinstance(part, Tensor):
                error = ValueError if part is None else TypeError
                refuse(type(part).__name__, "pass a tensor", error)
            if kind == "int64 labels" and part.dtype != torch.int64:
                refuse(part.dtype, "convert with .long()", TypeError)
            if kind == "a float map" and not part.is_floating_point():
                refuse(part.dtype, "convert with .float()", TypeError)
            if tuple(part.shape) != shape:
                refuse(tuple(part.shape), "give one per image")

    def _check_labels(self, condition):
        if self.classes is not None:
            labels = condition[0] if isinstance(condition, tuple) else condition
            self._check_range("condition", "labels", labels, self.classes)

    def _check_values(self, codes, condition):
        """The ranges of codes and labels; needs their shapes checked."""
        if torch.compiler.is_compiling() or codes.device.type != "cpu":
            return  # reading values would break the graph, or wait for the device
        self._check_codes(codes)
        self._check_condition(condition, len(codes))
        self._check_range("codes", "codes", codes, self.levels)
        self._check_labels(condition)
