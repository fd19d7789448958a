"""MovingCodebook: the codes of a quantiser, and how a training step moves them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.codebook_draw import RowDraw
from fastgen.nn.codebook_state import summed_over_ranks, world
from fastgen.nn.fixed_point import fixed_point_sums
from fastgen.ops.vq_ema_update_ import vq_ema_update_
from fastgen.ops.vq_quantize import Quantized, vq_quantize
from fastgen.reference.vq_rows import rows_of_indices

_NORM_EPS = 1e-6


class MovingCodebook(nn.Module):
    """`_codebook` of `VectorQuantize`: the buffers, and what writes them in training.

    `embed` (G, K, D), a parameter if `learnable`; `cluster_size` (G, K) and `embed_avg` (G, K, D),
    the moving averages; `initted`, a bool scalar, False until a k-means start. G is 1 unless
    `separate` heads have a codebook each; then rows have an axis of G heads before their values.

    Args: those of `VectorQuantize`, which documents them.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        heads: int | None,
        decay: float,
        eps: float,
        kmeans_init: bool,
        kmeans_iters: int,
        sync_kmeans: bool,
        threshold_ema_dead_code: float,
        use_cosine_sim: bool,
        learnable: bool,
        ema_update: bool,
        manual_ema_update: bool,
        sync_codebook: bool | None,
        deterministic: bool,
    ):
        super().__init__()
        self.codebook_size, self.heads, self.num_codebooks = codebook_size, heads, heads or 1
        self.decay, self.eps = decay, eps
        self.kmeans_iters, self.sync_kmeans = kmeans_iters, sync_kmeans
        self.threshold_ema_dead_code = self.reset_cluster_size = threshold_ema_dead_code
        self.use_cosine_sim, self.learnable_codebook = use_cosine_sim, learnable
        self.ema_update, self.manual_ema_update = ema_update, manual_ema_update
        self.sync_codebook, self.deterministic = sync_codebook, deterministic
        embed = torch.zeros(self.num_codebooks, codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = self.transform_input(embed)
        self.register_buffer("initted", torch.tensor(not kmeans_init))
        self.register_buffer("cluster_size", torch.ones(self.num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)
        # what `initted` says, known without waiting for the device
        self._started = not kmeans_init

    def transform_input(self, x: Tensor, dim: int = -1) -> Tensor:
        """Unit vectors for the cosine, in at least float32; anything else as it is."""
        if not self.use_cosine_sim:
            return x
        return F.normalize(
            x.to(torch.promote_types(x.dtype, torch.float32)), dim=dim, eps=_NORM_EPS
        )

    @property
    def codes(self) -> Tensor:
        """(K, D), or (G, K, D) for separate heads; without gradient. Among unit vectors the nearest
        one has the largest cosine; a code that faded to less than half a unit is never chosen."""
        codes = self.embed.detach()
        if self.use_cosine_sim:
            faded = codes.norm(dim=-1, keepdim=True) < 0.5
            codes = torch.where(faded, torch.nan, codes)
        return codes if self.heads else codes[0]

    def decode(self, indices: Tensor) -> Tensor:
        """(..., D), for separate heads (..., G, D) from (..., G); index -1 gives zeros. With a
        gradient to `embed`."""
        place = indices.clamp(min=0)
        if self.heads:
            head = torch.arange(self.heads, device=indices.device)
            found = self.embed[head, place]
        else:
            found = self.embed[0][place]
        return torch.where(indices.unsqueeze(-1) >= 0, found, 0)

    @torch.no_grad()
    def set_(self, codes: Tensor) -> None:
        """Codes (G, K, D) from outside, with averages to match; nothing is left to be started."""
        if codes.shape != self.embed.shape:
            raise ValueError(
                f"fastgen.nn.VectorQuantize: codebook must be {tuple(self.embed.shape)}, got "
                f"{tuple(codes.shape)}; the first axis is that of separate heads"
            )
        self.embed.copy_(codes)
        self.embed_avg.copy_(self.embed * self.cluster_size.unsqueeze(-1))
        self.initted.fill_(True)
        self._started = True

    # --- a training step ---

    @torch.no_grad()
    def update_(
        self,
        x: Tensor,
        dim: int,
        found: Quantized,
        *,
        ema_update: bool | None = None,
        weight: Tensor | Callable | None = None,
    ) -> Tensor:
        """Moves the codes towards the rows that chose them, and revives dead ones; returns the
        counts in the shape of those found, of all ranks if averages are tracked."""
        ema_update = self.ema_update if ema_update is None else ema_update
        revives = self.threshold_ema_dead_code > 0
        if not ema_update and not revives:
            return found.counts
        ranks = self._ranks()
        draw = self._draw(x, dim, found, ranks) if revives else None
        counts, sums = self._summed(x, dim, found, ranks, draw)
        if ema_update and not self.manual_ema_update and weight is None:
            state = self.embed, self.cluster_size, self.embed_avg
            vq_ema_update_(*state, counts, sums, decay=self.decay, eps=self.eps)
            if self.use_cosine_sim:
                self._set_seen_(self.transform_input(self.embed), counts)
        else:
            self._track_(counts, sums, weight)
            if ema_update and not self.manual_ema_update:
                self.update_ema(counts)
        if revives:
            self._revive_(draw)
        return counts.view_as(found.counts)

    def update_ema(self, counts: Tensor | None = None) -> None:
        """`embed` from the moving averages, for `manual_ema_update`; heads whose `counts` (G, K)
        are all 0 stay as they are."""
        with torch.no_grad():
            size = self.cluster_size.double()
            total = size.sum(-1, keepdim=True)
            smoothed = (size + self.eps) / (total + self.codebook_size * self.eps) * total
            embed = self.transform_input(self.embed_avg.double() / smoothed.unsqueeze(-1))
            counts = torch.ones_like(size) if counts is None else counts
            self._set_seen_(embed, counts)

    def _set_seen_(self, embed, counts):
        """Of heads that saw no row, not a bit changes."""
        seen = (counts.sum(-1, keepdim=True) > 0).unsqueeze(-1)
        self.embed.copy_(torch.where(seen, embed.to(self.embed), self.embed))

    def _track_(self, counts, sums, weight):
        """The moving averages alone; `weight` (K,) or (G, K) scales the step of each code, or is
        called for it with (sums, counts)."""
        seen = counts.sum(-1, keepdim=True) > 0  # a batch without rows changes nothing
        if callable(weight):
            weight = weight(sums, counts)
        step = torch.full_like(sums[..., 0], 1 - self.decay)
        step = torch.where(seen, step if weight is None else step * weight, 0)
        self.cluster_size.copy_(torch.lerp(self.cluster_size.double(), counts.double(), step))
        self.embed_avg.copy_(torch.lerp(self.embed_avg.double(), sums, step.unsqueeze(-1)))

    def _summed(self, x, dim, found, ranks, draw=None):
        """counts (G, K) and sums (G, K, D) over all ranks, in one all_reduce together with what a
        draw needs."""
        counts, sums = found.counts, found.sums
        if not self.heads:
            counts, sums = counts.unsqueeze(0), sums.unsqueeze(0)
        unit = None
        if self.deterministic:
            rows = self._rows(x, dim).flatten(1, -2)
            indices = rows_of_indices(found.indices, dim, self.heads)
            valid = self._valid(dim, found)
            sums, unit = fixed_point_sums(rows, indices, valid, self.codebook_size, ranks[1])
        if ranks[1] > 1:
            travel = (draw.sizes, draw.key) if draw else ()
            counts, sums, *travel = summed_over_ranks(counts, sums, *travel)
            if draw:
                draw.sizes, draw.key = travel
        return counts, sums if unit is None else sums * unit

    # --- dead codes ---

    def expire_codes_(self, batch_samples: Tensor, seq_mask: Tensor | None = None) -> None:
        """Revives dead codes by rows of `batch_samples` (G, ..., D), or (R, D) of one codebook;
        `seq_mask` bool, without D, says which rows to draw from."""
        if self.threshold_ema_dead_code <= 0 or not self.training:
            return
        with torch.no_grad():
            rows = batch_samples if batch_samples.dim() > 2 else batch_samples.unsqueeze(0)
            valid = rows.isfinite().all(-1)
            valid = valid if seq_mask is None else valid & seq_mask
            ranks = self._ranks()
            draw = RowDraw(rows, valid.flatten(1), ranks)
            if ranks[1] > 1:
                draw.sizes, draw.key = summed_over_ranks(draw.sizes, draw.key)
            self._revive_(draw)

    def _revive_(self, draw):
        """Code, average and count together, or the next step would bury the code again."""
        dead = self.cluster_size < self.threshold_ema_dead_code
        # on the CPU reading it waits for nothing, and saves a millisecond of small ops
        if dead.is_cpu and not torch.compiler.is_compiling() and not bool(dead.any()):
            return
        rows, drawn = draw.rows(dead)
        size = self.reset_cluster_size
        code = drawn.unsqueeze(-1)
        self.embed.copy_(torch.where(code, rows.to(self.embed), self.embed))
        self.embed_avg.copy_(torch.where(code, rows.to(self.embed_avg) * size, self.embed_avg))
        self.cluster_size.copy_(torch.where(drawn, size, self.cluster_size))

    # --- the start ---

    def needs_start(self) -> bool:
        if not self._started and bool(self.initted):  # set from outside
            self._started = True
        return not self._started

    @torch.compiler.disable
    @torch.no_grad()
    def start_(self, x: Tensor, dim: int, mask: Tensor | None) -> None:
        """Lloyd's iterations from random rows of the first batch. Without any row the codebook
        stays as it is, and the next batch starts it."""
        shape = self.embed.shape if self.heads else self.embed.shape[1:]
        dtype = torch.promote_types(x.dtype, torch.float32)
        means = torch.zeros(shape, dtype=dtype, device=x.device)
        ranks = self._ranks() if self.sync_kmeans else (0, 1)
        draw = self._draw(x, dim, vq_quantize(x, means, dim=dim, mask=mask), ranks)
        if ranks[1] > 1:
            draw.sizes, draw.key = summed_over_ranks(draw.sizes, draw.key)
        if not bool((draw.sizes.sum(0) > 0).all()):
            return
        means = draw.repeated_rows(self.codebook_size).to(dtype)
        for _ in range(self.kmeans_iters):
            found = vq_quantize(x, means.reshape(shape), dim=dim, mask=mask)
            counts, sums = self._summed(x, dim, found, ranks)
            moved = self.transform_input(sums / counts.clamp(min=1).unsqueeze(-1))
            means = torch.where(counts.unsqueeze(-1) > 0, moved.to(dtype), means)
        self.cluster_size.copy_(counts)
        self.embed_avg.copy_(means * counts.unsqueeze(-1))
        self.update_ema()
        self.initted.fill_(True)
        self._started = True

    def init_embed_(self, data: Tensor, mask: Tensor | None = None) -> None:
        """The k-means start from `data` (G, R, D), if there has been none; `mask` bool (G, R) or
        (R,) chooses rows."""
        if self.needs_start():
            data = self.transform_input(data)
            mask = mask[0] if mask is not None and mask.dim() == 2 else mask
            self.start_(data.movedim(0, -2) if self.heads else data[0], -1, mask)

    # --- shared pieces ---

    def _ranks(self):
        """This rank and the number of ranks that it follows."""
        return (0, 1) if self.sync_codebook is False else world()

    def _rows(self, x, dim):
        """x as (G, ..., D), a view."""
        return x.movedim((dim - 1, dim), (0, -1)) if self.heads else x.movedim(dim, -1).unsqueeze(0)

    def _valid(self, dim, found):
        """bool (G, R): rows that are finite and not masked."""
        live = (found.indices >= 0) & ~found.commitment.view_as(found.indices).isnan()
        return rows_of_indices(live, dim, self.heads)

    def _draw(self, x, dim, found, ranks):
        return RowDraw(self._rows(x, dim), self._valid(dim, found), ranks)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "initted" in state_dict:
            self._started = bool(state_dict[prefix + "initted"])
