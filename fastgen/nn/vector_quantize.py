"""VectorQuantize: vector-quantize-pytorch's layer of this name, over the fused ops."""

from collections import namedtuple
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgen.nn import vq_options
from fastgen.nn.code_losses import code_cross_entropy, orthogonal_loss
from fastgen.nn.code_usage import CodeUsage
from fastgen.nn.moving_codebook import MovingCodebook
from fastgen.nn.vq_heads import Heads
from fastgen.nn.vq_inputs import checked_indices, feature_axis, row_mask
from fastgen.ops._snapshot import snapshot
from fastgen.ops.vq_quantize import vq_codebook_loss, vq_quantize

LossBreakdown = namedtuple(
    "LossBreakdown", ["commitment", "codebook_diversity", "orthogonal_reg", "inplace_optimize"]
)


class VectorQuantize(CodeUsage, nn.Module):
    """Replaces vectors by their nearest codes. A drop-in for `VectorQuantize` of
    vector-quantize-pytorch 1.32: constructor, forward, attributes and state_dict have its names.

    ``forward(x) -> (quantized, indices, loss)``; training also moves the codes.

    Args:
        dim: D of x.
        codebook_size: K.
        codebook_dim: D of the codes, between two Linear projections; None is `dim`.
        heads: x is projected or split into this many vectors of `codebook_dim`, quantised each.
        separate_codebook_per_head: a codebook for each head instead of one for all.
        decay, eps: of the moving averages, see `fastgen.vq_ema_update_`.
        freeze_codebook: training writes nothing.
        kmeans_init, kmeans_iters: the first training batch starts the codes by k-means.
        use_cosine_sim: vectors and codes are normalised.
        layernorm_after_project_in: a LayerNorm behind the first projection.
        threshold_ema_dead_code: codes whose `cluster_size` falls below are replaced by random,
            distinct rows of the batch; 0 never.
        channel_last: False for x (B, D, N).
        accept_image_fmap, accept_3d_fmap: for x (B, D, H, W) and (B, D, T, H, W). Read in place.
        commitment_weight: of the loss.
        commitment_use_cross_entropy_loss: the loss is the cross entropy of the distances at the
            chosen codes. Slower: holds N x K scores.
        orthogonal_reg_weight, orthogonal_reg_active_codes_only, orthogonal_reg_max_codes: adds the
            mean squared cosine between codes. Slower: holds K x K cosines. The codes become a
            parameter, which is moved by averages and by this gradient.
        rotation_trick: the gradient of quantized turns with the code; None: if dim > 1. False:
            straight through.
        ema_update: the codes are moving averages. False to train them by gradient
            (`learnable_codebook`), or not at all.
        manual_ema_update: averages are tracked, and `_codebook.update_ema()` is yours to call.
        learnable_codebook: the codes are a parameter, and the loss moves them too; needs
            ``ema_update=False``.
        sync_codebook: False keeps this rank apart; otherwise ranks are followed whenever
            torch.distributed is initialised.
        sync_kmeans: False: the start alone is each rank's own.
        return_zeros_for_masked_padding: False: masked vectors come out as they came in.
        route_gradients_to_input: False: quantized has no gradient to x.
        deterministic: statistics in fixed point, the same for any number of ranks. Slower: one
            more pass over x, and one more all_reduce. Not in vector-quantize-pytorch.
        Others (`fastgen.nn.vq_options`) are accepted with their default only.

    Attributes: `counts`, how often the last forward chose each code, (K,) or (G, K), zeros before
    any; of these `usage`, `perplexity` and `dead_codes`, computed when read. See `CodeUsage`.

    Raises:
        NotImplementedError: an option without a form here.
        ValueError: options that exclude each other or are out of range.

    Source: van den Oord et al., Neural Discrete Representation Learning, 2017; Fifty et al.,
    Restructuring Vector Quantization with the Rotation Trick, 2024.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_diversity_loss_weight: float = 0.0,
        codebook_diversity_temperature: float = 100.0,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        straight_through: bool = False,
        rotation_trick: bool | None = None,
        directional_reparam: bool = False,
        directional_reparam_variance: float = 5e-3,
        sync_codebook: bool | None = None,
        sync_affine_param: bool = False,
        ema_update: bool | None = None,
        vq_bridge: nn.Module | None = None,
        manual_ema_update: bool = False,
        learnable_codebook: bool | None = None,
        in_place_codebook_optimizer: Callable | None = None,
        manual_in_place_optimizer_update: bool = False,
        affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        sync_update_v: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
        deterministic: bool = False,
    ):
        given = locals()
        vq_options.refuse_others(type(self).__name__, vq_options.VECTOR_QUANTIZE, given)
        super().__init__()
        vq_options.check_vector_quantize(type(self).__name__, given)
        ema_update = True if ema_update is None else ema_update
        learnable_codebook = bool(learnable_codebook)

        codebook_dim = dim if codebook_dim is None else codebook_dim
        # of any integer type, such as NumPy's
        dim, codebook_size, codebook_dim = int(dim), int(codebook_size), int(codebook_dim)
        heads, kmeans_iters = int(heads), int(kmeans_iters)
        self.dim, self.heads, self.codebook_size = dim, heads, codebook_size
        self.separate_codebook_per_head = separate_codebook_per_head
        self._heads = Heads(heads, separate_codebook_per_head and heads > 1)
        self.has_projections = codebook_dim * heads != dim
        self.project_in = self.project_out = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(dim, codebook_dim * heads)
            if layernorm_after_project_in:
                self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(codebook_dim * heads))
            self.project_out = nn.Linear(codebook_dim * heads, dim)

        self.eps, self.freeze_codebook = eps, freeze_codebook
        self.commitment_weight, self.has_commitment_loss = commitment_weight, commitment_weight > 0
        self.commitment_use_cross_entropy_loss = commitment_use_cross_entropy_loss
        self.learnable_codebook, self.use_cosine_sim = learnable_codebook, use_cosine_sim
        self.has_codebook_orthogonal_loss = orthogonal_reg_weight > 0
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes
        self.rotation_trick = dim > 1 if rotation_trick is None else rotation_trick
        self.route_gradients_to_input = route_gradients_to_input
        self.accept_image_fmap, self.accept_3d_fmap = accept_image_fmap, accept_3d_fmap
        self.channel_last = channel_last
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding

        self._codebook = MovingCodebook(
            codebook_dim,
            codebook_size,
            heads=heads if self._heads.separate else None,
            decay=decay,
            eps=eps,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            sync_kmeans=sync_kmeans,
            threshold_ema_dead_code=threshold_ema_dead_code,
            use_cosine_sim=use_cosine_sim,
            learnable=learnable_codebook or self.has_codebook_orthogonal_loss,
            ema_update=ema_update,
            manual_ema_update=manual_ema_update,
            sync_codebook=sync_codebook,
            deterministic=deterministic,
        )

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Callable | None = None,
        ema_update_weight: Tensor | Callable | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ):
        """Quantises x, and in training mode moves the codes.

        Args:
            x: (B, N, D) or any (..., D); (B, D, N) without channel_last; (B, D, H, W) or
                (B, D, T, H, W) as a feature map. float32, float64, bfloat16 or float16; computes in
                float32, or float64 for float64.
            indices: int in the result's shape, -1 to leave one out: return a cross entropy at
                these codes. Slower: holds N x K scores.
            mask: bool, x's shape without D: False vectors are left out of everything.
            lens: int (B,), for the mask ``arange(N) < lens``.
            freeze_codebook: overrides the constructor's.
            return_loss_breakdown: a fourth result, `LossBreakdown`.
            ema_update: overrides the constructor's.
            ema_update_weight: (K,) or (G, K), scales each code's step of the averages; or called
                with (sums, counts) for it.
            Others are accepted with their default only.

        Returns:
            quantized: x's shape and dtype; 0 where masked.
            indices: int64, x's shape without D, and with a last axis of heads if heads > 1; -1
                where masked.
            loss: scalar, commitment_weight times the mean of (x - code)^2 over what is not masked,
                plus the regularisation; 0 in eval mode.
            With `indices=`: (quantized, cross entropy).

        A vector with NaN or infinity gives index 0, NaN values, a NaN loss, and moves no code.

        Raises:
            TypeError, ValueError: as `fastgen.vq_quantize`; shapes that do not fit.
            RuntimeError: a codebook that waits for its k-means start, in eval mode or frozen.
        """
        name = type(self).__name__
        vq_options.refuse_others(name, vq_options.VECTOR_QUANTIZE_FORWARD, locals())
        axis = feature_axis(name, x, self.dim, self._space, self.channel_last)
        mask = row_mask(name, x, axis, mask, lens)
        frozen = self.freeze_codebook if freeze_codebook is None else freeze_codebook
        moves = self.training and not frozen
        codebook = self._codebook

        rows, dim = self._rows(x, axis)
        live = self._heads.mask_of_rows(mask, dim)
        if codebook.needs_start():
            if not moves:
                state = "frozen" if self.training else "in eval mode"
                raise RuntimeError(
                    f"fastgen.nn.{name}: kmeans_init must start the codebook in a training step, "
                    f"got a first call {state}; call train() and forward on a batch first, or "
                    "load a state_dict"
                )
            codebook.start_(rows, dim, live)

        found = vq_quantize(
            rows if self.training else rows.detach(),
            codebook.codes,
            dim=dim,
            mask=live,
            rotation=bool(self.rotation_trick),
        )
        counts = found.counts
        chosen = self._heads.indices_of_rows(found.indices, dim)

        # all of these before the codes move
        quantized = self._routed(x, found, dim)
        if indices is not None:
            loss = self._cross_entropy(rows, dim, mask, indices)
        else:
            commitment = self._commitment(rows, dim, mask, found, chosen, frozen)
        if moves:
            counts = codebook.update_(
                rows, dim, found, ema_update=ema_update, weight=ema_update_weight
            )
        self._counts = counts

        quantized = self._output(quantized, x, dim, axis, mask)
        if indices is not None:
            return quantized, loss
        loss, breakdown = self._losses(commitment)
        return (quantized, chosen, loss, breakdown)[: 4 if return_loss_breakdown else 3]

    # --- what went in, as rows ---

    @property
    def _space(self):
        """Axes behind the channels of a feature map; None for none."""
        return 2 if self.accept_image_fmap else 3 if self.accept_3d_fmap else None

    def _rows(self, x, axis):
        """x projected and split into heads, and the axis of its values."""
        rows = x
        if self.has_projections:
            # back to x's dtype under autocast: the lookup is exact in what it is given
            rows = self.project_in(x.movedim(axis, -1)).to(x.dtype).movedim(-1, axis)
        rows, dim = self._heads.split(rows, axis)
        return self._codebook.transform_input(rows, dim), dim

    # --- what comes out ---

    def _routed(self, x, found, dim):
        """quantized with the gradient it is to have: to x, or to a trained codebook, or none."""
        if self.training and x.requires_grad and self.route_gradients_to_input:
            return found.quantized
        quantized = found.quantized.detach()
        if not self._codebook.learnable_codebook:
            return quantized
        codes = self._codebook.decode(self._heads.indices_of_rows(found.indices, dim))
        codes = self._heads.codes_of_rows(codes, dim)
        return codes + (quantized - codes).detach()

    def _output(self, quantized, x, dim, axis, mask):
        quantized = self._heads.joined(quantized, dim).to(x.dtype)
        if self.has_projections:
            quantized = self.project_out(quantized.movedim(axis, -1)).movedim(-1, axis)
        if mask is None or (self.return_zeros_for_masked_padding and not self.has_projections):
            return quantized
        masked_out = 0 if self.return_zeros_for_masked_padding else x
        return torch.where(mask.unsqueeze(axis), quantized, masked_out)

    def _commitment(self, rows, dim, mask, found, chosen, frozen):
        """The unweighted loss between vectors and codes, 0 in eval mode."""
        if not self.training or not self.has_commitment_loss:
            return found.commitment.new_zeros(())
        if self.commitment_use_cross_entropy_loss:
            return self._cross_entropy(rows, dim, mask, chosen)
        kept = max(found.indices.numel(), 1)
        if mask is not None:
            kept = (found.indices >= 0).sum().clamp(min=1)
        loss = found.commitment.sum() / kept
        if self.learnable_codebook and not frozen:
            own = vq_codebook_loss(self._trained_codes(), found)
            loss = loss + (own - own.detach())  # the same value, with the codes' gradient
        return loss

    def _cross_entropy(self, rows, dim, mask, indices):
        indices = checked_indices(type(self).__name__, indices, self.codebook_size)
        expected = self._heads.indices_of_rows(rows.select(dim, 0), dim).shape
        if indices.shape != expected:
            self._refuse(
                "indices",
                f"must be {tuple(expected)}, x's shape without D",
                tuple(indices.shape),
                "pass what a forward returned",
            )
        if mask is not None:
            mask = mask.unsqueeze(-1) if self.heads > 1 else mask
            indices = torch.where(mask, indices, -1)
        indices = self._heads.rows_of_indices(indices, dim)
        codes = self._trained_codes()
        return code_cross_entropy(rows, codes, indices, dim, cosine=self.use_cosine_sim)

    def _trained_codes(self):
        """The codes as they are now, with their gradient: (K, D), or (G, K, D) for separate
        heads."""
        embed = self._codebook.embed
        return snapshot(embed if self._heads.separate else embed[0])

    def _losses(self, commitment):
        zero = torch.zeros_like(commitment)
        loss, orthogonal = zero, zero
        if self.training:
            if self.has_commitment_loss:
                loss = commitment * self.commitment_weight
            if self.has_codebook_orthogonal_loss:
                counts = None
                if self.orthogonal_reg_active_codes_only:
                    counts = self.counts.view(-1, self.codebook_size)
                # a copy: the next forward may write into the codes before this one's backward
                codes = snapshot(self._codebook.embed)
                orthogonal = orthogonal_loss(codes, counts, self.orthogonal_reg_max_codes)
                loss = loss + orthogonal * self.orthogonal_reg_weight
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                loss = loss if loss.requires_grad else loss.requires_grad_()  # backward() works
        return loss, LossBreakdown(commitment, zero, orthogonal, zero)

    # --- codes and their use ---

    @property
    def codebook(self) -> Tensor:
        """(K, D), or (G, K, D) for separate heads. Assigning to it sets the averages too, so that
        the next training step starts from it."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor):
        self._codebook.set_(codes if self.separate_codebook_per_head else codes.unsqueeze(0))

    @property
    def ema_update(self) -> bool:
        return self._codebook.ema_update

    def expire_codes_(self, x: Tensor) -> None:
        """Revives dead codes by vectors of x (B, N, heads * codebook_dim), in training mode."""
        x, _ = self._heads.split(x, x.dim() - 1)
        x = x.movedim(-2, 0) if self._heads.separate else x.unsqueeze(0)
        self._codebook.expire_codes_(self._codebook.transform_input(x))

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of indices as a forward returns them; -1 gives zeros.

        Returns (..., D), of separate heads side by side; (..., heads, D) for heads that share a
        codebook. With channels first the last axis is moved behind the batch.

        Raises TypeError or IndexError for indices that are not integers in -1 .. K - 1 (not read
        inside torch.compile).
        """
        codes = self._decoded(indices)
        if self._heads.separate:
            codes = codes.flatten(-2)
        return codes.movedim(-1, 1) if self._channel_first else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """The quantized values that a forward with these indices returns; -1 gives zeros."""
        codes = self._decoded(indices)
        codes = self.project_out(self._heads.joined(codes, codes.dim() - 1))
        if self.has_projections:
            kept = indices.unsqueeze(-1) >= 0
            kept = kept.all(-2) if self.heads > 1 else kept
            codes = torch.where(kept, codes, 0)
        return codes.movedim(-1, 1) if self._channel_first else codes

    @property
    def _channel_first(self):
        return self._space is not None or not self.channel_last

    def _decoded(self, indices):
        """(..., D), with an axis of heads before D if there is one."""
        last = self.heads if self.heads > 1 else None
        indices = checked_indices(type(self).__name__, indices, self.codebook_size, last)
        return self._codebook.decode(indices)

    def _refuse(self, argument, expected, got, remedy):
        vq_options.refuse(type(self).__name__, argument, expected, got, remedy)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.codebook_size}, heads={self.heads}"
