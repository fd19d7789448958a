"""VectorQuantize: vector-quantize-pytorch's layer of this name, over the fused ops."""

from collections import namedtuple
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgen.nn import vq_options
from fastgen.nn.code_losses import code_cross_entropy, orthogonal_loss
from fastgen.nn.code_usage import CodeUsage
from fastgen.nn.moving_codebook import MovingCodebook
from fastgen.nn.vq_inputs import check_indices, feature_axis, row_mask
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

    Attributes after a forward: `counts`, how often it chose each code, (K,) or (G, K), over all
    ranks in training; of these `usage`, `perplexity` and `dead_codes`, computed when read.

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
        for name in ("dim", "codebook_size", "heads", "kmeans_iters", "codebook_dim"):
            value = given[name]
            if not (name == "codebook_dim" and value is None) and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                self._refuse(name, "must be a positive int", repr(value), "give a size")
        if not 0 <= decay <= 1:
            self._refuse("decay", "must be in [0, 1]", decay, "0.8 to 0.99 are usual")
        if not eps > 0:
            self._refuse("eps", "must be positive", eps, "1e-5 is usual")
        ema_update = True if ema_update is None else ema_update
        learnable_codebook = bool(learnable_codebook)
        if learnable_codebook and ema_update:
            self._refuse(
                "learnable_codebook",
                "must have ema_update=False beside it",
                f"ema_update={ema_update}",
                "a code follows its gradient or its average",
            )
        if learnable_codebook and use_cosine_sim:
            self._refuse(
                "learnable_codebook",
                "must be False with use_cosine_sim",
                True,
                "a gradient step leaves the unit sphere",
            )
        if accept_image_fmap and accept_3d_fmap:
            self._refuse(
                "accept_3d_fmap", "must be False with accept_image_fmap", True, "choose one"
            )

        codebook_dim = dim if codebook_dim is None else codebook_dim
        self.dim, self.heads, self.codebook_size = dim, heads, codebook_size
        self.separate_codebook_per_head = separate_codebook_per_head
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
            heads=heads if separate_codebook_per_head else None,
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
            indices: int64 in the result's shape, -1 to leave one out: return a cross entropy at
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
        live = self._mask_of_rows(mask, dim)
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
            rows, codebook.codes, dim=dim, mask=live, rotation=bool(self.rotation_trick)
        )
        counts = found.counts
        chosen = self._indices_of(found.indices, dim)

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
        dim = axis
        if self.heads > 1:
            rows, dim = rows.unflatten(axis, (self.heads, -1)), axis + 1
        elif self.separate_codebook_per_head:
            rows, dim = rows.unsqueeze(axis), axis + 1
        return self._codebook.transform_input(rows, dim), dim

    @property
    def _splits(self):
        return self.heads > 1 or self.separate_codebook_per_head

    def _mask_of_rows(self, mask, dim):
        if mask is None or not self._splits or self.separate_codebook_per_head:
            return mask
        shape = [*mask.shape]
        shape.insert(dim - 1, self.heads)
        return mask.unsqueeze(dim - 1).expand(shape)

    def _indices_of(self, indices, dim):
        """Indices of rows with the heads as the last axis; a single head has none."""
        if self.heads > 1:
            return indices.movedim(dim - 1, -1)
        return indices.squeeze(dim - 1) if self._splits else indices

    # --- what comes out ---

    def _routed(self, x, found, dim):
        """quantized with the gradient it is to have: to x, or to a trained codebook, or none."""
        if self.training and x.requires_grad and self.route_gradients_to_input:
            return found.quantized
        quantized = found.quantized.detach()
        if not self._codebook.learnable_codebook:
            return quantized
        if self.separate_codebook_per_head:
            codes = self._codebook.decode(found.indices.movedim(dim - 1, -1))
            codes = codes.movedim((-2, -1), (dim - 1, dim))
        else:
            codes = self._codebook.decode(found.indices).movedim(-1, dim)
        return codes + (quantized - codes).detach()

    def _output(self, quantized, x, dim, axis, mask):
        quantized = (quantized.flatten(axis, dim) if self._splits else quantized).to(x.dtype)
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
            embed = self._codebook.embed
            codes = snapshot(embed if self.separate_codebook_per_head else embed[0])
            own = vq_codebook_loss(codes, found)
            loss = loss + (own - own.detach())  # the same value, with the codes' gradient
        return loss

    def _cross_entropy(self, rows, dim, mask, indices):
        embed = self._codebook.embed
        codes = snapshot(embed if self.separate_codebook_per_head else embed[0])
        if self._splits:
            indices = (indices if self.heads > 1 else indices.unsqueeze(-1)).movedim(-1, dim - 1)
        shape = [*rows.shape[:dim], *rows.shape[dim + 1 :]]
        if list(indices.shape) != shape or indices.dtype != torch.int64:
            self._refuse(
                "indices",
                f"must be int64 with {torch.Size(shape).numel()} entries, x's shape without D",
                f"{indices.dtype} {tuple(indices.shape)}",
                "pass what a forward returned",
            )
        live = self._mask_of_rows(mask, dim)
        if live is not None:
            live = live.unsqueeze(dim - 1) if live.dim() < len(shape) else live
            indices = torch.where(live, indices, -1)
        return code_cross_entropy(rows, codes, indices, dim, cosine=self.use_cosine_sim)

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
        if self.heads > 1:
            x = x.unflatten(-1, (self.heads, -1))
        if self.separate_codebook_per_head:
            x = x.movedim(-2, 0) if self.heads > 1 else x.unsqueeze(0)
        else:
            x = x.unsqueeze(0)
        self._codebook.expire_codes_(self._codebook.transform_input(x))

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of indices as a forward returns them; -1 gives zeros.

        Returns (..., D), of separate heads side by side; (..., heads, D) for heads that share a
        codebook. With channels first the last axis is moved behind the batch.

        Raises TypeError or IndexError for indices that are not int64 in -1 .. K - 1 (not read
        inside torch.compile).
        """
        codes = self._decoded(indices)
        if self.separate_codebook_per_head:
            codes = codes.flatten(-2)
        return codes.movedim(-1, 1) if self._channel_first else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """The quantized values that a forward with these indices returns; -1 gives zeros."""
        codes = self._decoded(indices)
        codes = self.project_out(codes.flatten(-2) if self._splits else codes)
        if self.has_projections:
            kept = (
                (indices >= 0).all(-1, keepdim=True) if self.heads > 1 else indices[..., None] >= 0
            )
            codes = torch.where(kept, codes, 0)
        return codes.movedim(-1, 1) if self._channel_first else codes

    @property
    def _channel_first(self):
        return self._space is not None or not self.channel_last

    def _decoded(self, indices):
        """(..., D), with an axis of heads before D if there is one."""
        last = self.heads if self.heads > 1 else None
        check_indices(type(self).__name__, indices, self.codebook_size, last)
        if self.separate_codebook_per_head and self.heads == 1:
            indices = indices.unsqueeze(-1)
        return self._codebook.decode(indices)

    def _refuse(self, argument, expected, got, remedy):
        vq_options.refuse(type(self).__name__, argument, expected, got, remedy)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.codebook_size}, heads={self.heads}"
