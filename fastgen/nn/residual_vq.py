"""ResidualVQ: a cascade of quantisers, each for what the one before has left."""

import operator
import random

import torch
from torch import Tensor, nn

from fastgen.nn import vq_options
from fastgen.nn.codebook_draw import shared_seed
from fastgen.nn.vector_quantize import VectorQuantize
from fastgen.nn.vq_inputs import checked_indices, feature_axis, row_mask


class ResidualVQ(nn.Module):
    """Stage q quantises the residual of the stages before it; their codes add up to the result. A
    drop-in for `ResidualVQ` of vector-quantize-pytorch 1.32.

    Args:
        dim: D of x.
        num_quantizers: Q; None with a tuple of codebook sizes.
        codebook_size: K, or one for each stage.
        codebook_dim: D of the codes, between two Linear projections around all stages.
        shared_codebook: one codebook for all stages, moved once at the end of a step.
        heads: 1.
        quantize_dropout: a training step uses a random number of stages only: the last one used is
            uniform in `quantize_dropout_cutoff_index` .. Q - 1, and rounded up so that a multiple
            of `quantize_dropout_multiple_of` stages is used.
        accept_image_fmap: for x (B, D, H, W).
        quant_grad_frac: how much of a stage's gradient flows on to the next one through the
            residual; 0 none.
        return_zeros_for_masked_padding: False: masked vectors come out as they came in.
        Others: those of `VectorQuantize`, for every stage; or, from `fastgen.nn.vq_options`,
        accepted with their default only.

    Residuals stay in float32 (float64 for float64) between stages whatever x's dtype.

    Attributes: `usage`, `perplexity` and `dead_codes` of each stage in the last forward, (Q,); a
    dropped stage chose nothing.

    Raises:
        NotImplementedError: an option without a form here.
        ValueError: options that exclude each other or are out of range.

    Source: Zeghidour et al., SoundStream, 2021, algorithm 1.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int | None = None,
        codebook_size: int | tuple[int, ...],
        codebook_dim: int | None = None,
        shared_codebook: bool = False,
        diveq: bool = False,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        accept_image_fmap: bool = False,
        implicit_neural_codebook: bool = False,
        mlp_kwargs: dict | None = None,
        beam_size: int | None = None,
        eval_beam_size: int | None = None,
        beam_score_quantizer_weights: list[float] | None = None,
        quant_grad_frac: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        **vq_kwargs,
    ):
        given = locals() | {"mlp_kwargs": mlp_kwargs or {}}
        vq_options.refuse_others(type(self).__name__, vq_options.RESIDUAL_VQ, given)
        super().__init__()
        if heads != 1:
            self._refuse("heads", "must be 1", heads, "use GroupedResidualVQ for parts of a vector")
        if not isinstance(codebook_size, tuple):
            if num_quantizers is None:
                self._refuse(
                    "num_quantizers", "must be given", None, "or give a tuple as codebook_size"
                )
            codebook_size = (codebook_size,) * operator.index(num_quantizers)
        if num_quantizers not in (None, len(codebook_size)) or not codebook_size:
            self._refuse(
                "codebook_size",
                f"must be an int or {num_quantizers} of them",
                codebook_size,
                "one size for each stage",
            )
        if shared_codebook and len(set(codebook_size)) > 1:
            self._refuse(
                "codebook_size", "must be one with shared_codebook", codebook_size, "give an int"
            )
        self.num_quantizers = len(codebook_size)
        self.uniform_codebook_size = len(set(codebook_size)) == 1
        if not 0 <= quantize_dropout_cutoff_index < self.num_quantizers:
            self._refuse(
                "quantize_dropout_cutoff_index",
                f"must be in 0 .. {self.num_quantizers - 1}",
                quantize_dropout_cutoff_index,
                "it is the first stage that can be the last one used",
            )

        codebook_dim = dim if codebook_dim is None else codebook_dim
        self.codebook_dim, self.has_projections = codebook_dim, codebook_dim != dim
        self.project_in = self.project_out = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(dim, codebook_dim)
            self.project_out = nn.Linear(codebook_dim, dim)

        if shared_codebook:
            vq_kwargs["manual_ema_update"] = True
        self.layers = nn.ModuleList(
            VectorQuantize(
                dim=codebook_dim,
                codebook_size=size,
                codebook_dim=codebook_dim,
                accept_image_fmap=accept_image_fmap,
                return_zeros_for_masked_padding=return_zeros_for_masked_padding,
                **vq_kwargs,
            )
            for size in codebook_size
        )
        self.codebook_sizes = tuple(layer.codebook_size for layer in self.layers)
        for layer in self.layers[1:] if shared_codebook else ():
            layer._codebook = self.layers[0]._codebook

        self.dim, self.accept_image_fmap = dim, accept_image_fmap
        self.shared_codebook = shared_codebook
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.quantize_dropout = quantize_dropout and self.num_quantizers > 1
        self.quantize_dropout_cutoff_index = quantize_dropout_cutoff_index
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of
        self.quant_grad_frac = quant_grad_frac
        self.vq_is_ema_updating = self.layers[0].ema_update

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ):
        """Quantises x stage by stage, and in training mode moves the codes.

        Args:
            x: (B, N, D) or any (..., D); (B, D, H, W) with accept_image_fmap.
            mask: bool, x's shape without D: False vectors are left out of everything.
            indices: int as returned, of all stages, none -1: return the sum of the stages' cross
                entropies at these codes. Slower: holds N x K scores.
            return_all_codes: a fourth result, the codes of each stage.
            freeze_codebook: writes nothing.
            rand_quantize_dropout_fixed_seed: of the quantize dropout; None draws one.

        Returns:
            quantized: x's shape and dtype.
            indices: int64, x's shape without D, and a last axis of Q; -1 of dropped stages and
                where masked.
            losses: (Q,), 0 of dropped stages.
            all_codes: (Q, ..., D of the codes), if asked for.
            With `indices=`: (quantized, cross entropy).
        """
        name = type(self).__name__
        vq_options.refuse_others(name, vq_options.RESIDUAL_VQ_FORWARD, locals())
        layer = self.layers[0]
        axis = feature_axis(name, x, self.dim, layer._space, layer.channel_last)
        mask = row_mask(name, x, axis, mask, None)
        indices = torch.stack(indices, -1) if isinstance(indices, list) else indices
        if indices is not None and not torch.compiler.is_compiling() and bool((indices < 0).any()):
            self._refuse("indices", "must be those of all stages", -1, "take them in eval mode")

        residual = self._project(self.project_in, x, axis)
        residual = residual.to(torch.promote_types(x.dtype, torch.float32))
        last = self.num_quantizers - 1
        if self.training and self.quantize_dropout and indices is None:
            seed = rand_quantize_dropout_fixed_seed
            last = self._last_stage(shared_seed(x.device) if seed is None else seed)
            last = last.to(x.device) if isinstance(last, Tensor) else last

        quantized = torch.zeros_like(residual)
        all_indices, losses, residuals = [], [], []
        for stage, layer in enumerate(self.layers):
            used = stage <= last  # a tensor inside torch.compile
            if used is False:
                layer.forget_counts()
                all_indices.append(torch.full_like(all_indices[0], -1))
                losses.append(torch.zeros_like(losses[0]))
                continue
            residuals.append(residual)
            live = mask
            if used is not True:
                live = used.expand(residual.select(axis, 0).shape) if mask is None else mask & used
            at = None if indices is None else indices[..., stage]
            out, *found = layer(residual, mask=live, indices=at, freeze_codebook=freeze_codebook)
            all_indices.append(found[0])
            losses.append(found[-1])
            residual = residual - _with_gradient(out, self.quant_grad_frac)
            quantized = quantized + out
        if self.training and self.shared_codebook and not freeze_codebook:
            self._move_shared(residuals, mask, axis)

        output = self._project(self.project_out, quantized.to(x.dtype), axis)
        if mask is not None:
            masked_out = 0 if self.return_zeros_for_masked_padding else x
            output = torch.where(mask.unsqueeze(axis), output, masked_out)
        if indices is not None:
            return output, torch.stack(losses).sum()
        all_indices = torch.stack(all_indices, -1)
        out = output, all_indices, torch.stack(losses)
        return (*out, self._codes(all_indices)) if return_all_codes else out

    def _project(self, projection, x, axis):
        return projection(x.movedim(axis, -1)).movedim(-1, axis) if self.has_projections else x

    def _last_stage(self, seed):
        """The last stage that this step uses: an int; a tensor for a seed that is one, and inside
        torch.compile."""
        first, multiple = self.quantize_dropout_cutoff_index, self.quantize_dropout_multiple_of
        if isinstance(seed, Tensor):
            last = first + seed % (self.num_quantizers - first)
        elif torch.compiler.is_compiling():
            last = _drawn_in_graph(seed, first, self.num_quantizers)
        else:
            last = _drawn(seed, first, self.num_quantizers)
        return (last + multiple) // multiple * multiple - 1

    def _move_shared(self, residuals, mask, axis):
        codebook = self.layers[0]._codebook
        if self.vq_is_ema_updating:
            used = [layer.counts for layer in self.layers[: len(residuals)]]
            codebook.update_ema(torch.stack(used).sum(0, keepdim=True))
        if codebook.threshold_ema_dead_code > 0:
            rows = torch.stack(residuals).detach().movedim(axis + 1, -1)
            live = None if mask is None else mask.expand(rows.shape[:-1]).reshape(1, -1)
            rows = codebook.transform_input(rows.flatten(0, -2))
            codebook.expire_codes_(rows.unsqueeze(0), live)

    # --- codes and their use ---

    @property
    def codebook_size(self) -> int:
        return self.layers[0].codebook_size

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """(Q, K, D), or a tuple of (K, D) if the sizes differ."""
        codebooks = tuple(layer._codebook.embed[0] for layer in self.layers)
        return torch.stack(codebooks) if self.uniform_codebook_size else codebooks

    @property
    def usage(self) -> Tensor:
        """The share of codes that each stage's last forward chose, (Q,)."""
        return torch.stack([layer.usage for layer in self.layers])

    @property
    def dead_codes(self) -> Tensor:
        """How many codes each stage's last forward did not choose, int64 (Q,)."""
        return torch.stack([layer.dead_codes for layer in self.layers])

    @property
    def perplexity(self) -> Tensor:
        """exp of the entropy of each stage's choices in its last forward, (Q,)."""
        return torch.stack([layer.perplexity for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """(Q, ..., D): the codes of indices (..., Q) as a forward returns them; -1 gives zeros.
        With quantize_dropout fewer stages will do: (..., fewer).

        Raises TypeError, ValueError or IndexError for other indices."""
        given = indices.shape[-1] if isinstance(indices, Tensor) and indices.dim() else None
        last = given if self.quantize_dropout and (given or 0) < self.num_quantizers else None
        last = self.num_quantizers if last is None else last
        indices = checked_indices(type(self).__name__, indices, self.codebook_sizes, last)
        return self._codes(indices)

    def _codes(self, indices):
        layers = self.layers[: indices.shape[-1]]
        stages = [layer._codebook.decode(indices[..., q]) for q, layer in enumerate(layers)]
        stages += [torch.zeros_like(stages[0])] * (self.num_quantizers - len(stages))
        return torch.stack(stages)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """The quantized values that a forward with these indices returns; a vector whose indices
        are all -1 gives zeros."""
        output = self.project_out(self.get_codes_from_indices(indices).sum(0))
        if self.has_projections:
            output = torch.where((indices >= 0).any(-1, keepdim=True), output, 0)
        return output.movedim(-1, 1) if self.layers[0]._channel_first else output

    def _refuse(self, argument, expected, got, remedy):
        vq_options.refuse(type(self).__name__, argument, expected, got, remedy)


def _drawn(seed: int, first: int, end: int) -> int:
    return random.Random(seed).randrange(first, end)


@torch.library.custom_op("fastgen::residual_vq_last_stage", mutates_args=())
def _drawn_in_graph(seed: int, first: int, end: int) -> Tensor:
    """The same as a scalar: torch.compile cannot follow Python's generator."""
    return torch.tensor(_drawn(seed, first, end))


@_drawn_in_graph.register_fake
def _(seed, first, end):
    return torch.empty((), dtype=torch.int64)


def _with_gradient(t, share):
    """t with `share` of its gradient."""
    return t.detach() if share <= 0 else share * t + (1 - share) * t.detach()
