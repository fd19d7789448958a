"""Codebook: the vector quantiser of the VQ-VAE, in the plain form of its paper."""

import torch
from torch import Tensor, nn

from fastgen.nn.codebook_state import summed_over_ranks, world
from fastgen.ops._snapshot import snapshot
from fastgen.ops.vq_ema_update_ import vq_ema_update_
from fastgen.ops.vq_nearest import vq_nearest
from fastgen.ops.vq_quantize import vq_codebook_loss, vq_quantize

_DEAD = 0.01  # of the equal share


class Codebook(nn.Module):
    """Replaces every vector by the nearest of `num_codes` learned ones.

    ``forward(z, dim=1) -> (quantized, indices, loss)``::

        indices   = argmin_k |z - embed[k]|
        quantized = embed[indices]                       # gradient straight through to z
        loss      = beta mean((z - embed[indices])^2)    # gradient to z
                  + mean((z - embed[indices])^2)         # gradient to embed; without ema only

    In training mode the codes then follow their vectors: with `ema` as moving averages (the
    paper's appendix A.1), without by the gradient of the loss. In eval mode nothing is written.

    Args:
        num_codes: K.
        dim: D, values of a code.
        beta: weight of the commitment.
        ema: codes are moving averages (a buffer); else trained by gradient (a parameter).
        decay: of the moving averages, in [0, 1].
        revive_below: a code chosen less than this times the equal share (rows / K, both moving
            averages) is dead, and becomes a random row of the batch, with an equal share. A new
            codebook is spread over its first batch then: each code becomes the mean of the rows
            that choose it or, if these are too few, a random row. 0: never; 0.1 is a good value.
        device, dtype: of the codes.

    Shapes: z float, with D values along `dim`, (B, D, H, W) for the default; quantized like z;
    indices int64, z's shape without `dim`; loss a scalar, 0 of an empty batch. A vector with NaN
    or infinity gives index 0, NaN values and a NaN loss, and moves no code.

    Buffers: `embed` (K, D), a parameter without `ema`; `cluster_size` (K,), how often a code is
    chosen in a batch, a moving average; with `ema` also `embed_avg` (K, D), the sums of vectors.

    Under torch.distributed each training step sums counts and sums over the ranks in one
    all_reduce: the buffers are the same bits on all ranks, and those of one rank with the joined
    batch up to rounding. Without `ema` the gradient of `embed` is left to DistributedDataParallel.

    Raises:
        TypeError, ValueError: as `fastgen.vq_quantize`; sizes or rates out of range.

    Source: van den Oord et al., Neural Discrete Representation Learning, 2017, eq. 3.
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        beta: float = 0.25,
        ema: bool = True,
        decay: float = 0.99,
        revive_below: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        for name, value in (("num_codes", num_codes), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"fastgen.nn.Codebook: {name} must be a positive int, got {value!r}"
                )
        for name, value, most in (
            ("beta", beta, float("inf")),
            ("decay", decay, 1),
            ("revive_below", revive_below, 1),
        ):
            if not 0 <= value <= most:
                raise ValueError(
                    f"fastgen.nn.Codebook: {name} must be in [0, {most}], got {value!r}"
                )
        self.num_codes, self.dim, self.beta = num_codes, dim, beta
        self.ema, self.decay, self.revive_below = ema, decay, revive_below
        embed = torch.empty(num_codes, dim, device=device, dtype=dtype)
        embed.uniform_(-1 / num_codes, 1 / num_codes)
        # averages over no batch yet: all codes are dead, and revived by rows of the first one
        size = 0.0 if revive_below > 0 else 1.0
        self.register_buffer("cluster_size", torch.full_like(embed[:, 0], size))
        if ema:
            self.register_buffer("embed", embed)
            self.register_buffer("embed_avg", embed * size)
        else:
            self.embed = nn.Parameter(embed)

    def forward(self, z: Tensor, dim: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        out = vq_quantize(z, self.embed, dim=dim)
        loss = self.beta * out.commitment.sum() / max(out.commitment.numel(), 1)
        if not self.ema:
            # a copy: reviving writes into the codes before the backward pass
            loss = loss + vq_codebook_loss(snapshot(self.embed), out)
        if self.training:
            self._update(z, dim, out.counts, out.sums)
        return out.quantized, out.indices, loss

    def encode(self, z: Tensor, dim: int = 1) -> Tensor:
        """The indices alone; writes nothing."""
        return vq_nearest(z, self.embed, dim=dim)

    def decode(self, indices: Tensor, dim: int = 1) -> Tensor:
        """The codes of `indices`, int64 of any shape, with their D values along `dim` of the
        result.

        Raises TypeError or ValueError for another dtype or dim; IndexError for an index outside
        0 .. K - 1, on the CPU only: elsewhere reading them would wait for the device.
        """
        if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
            got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(
                f"fastgen.nn.Codebook: indices must be an int64 tensor, got {got}; "
                "convert with .long()"
            )
        if not -indices.dim() - 1 <= dim <= indices.dim():
            raise ValueError(
                f"fastgen.nn.Codebook: dim must be an axis of the result, {-indices.dim() - 1} .. "
                f"{indices.dim()}, got {dim}"
            )
        reads = indices.device.type == "cpu" and not torch.compiler.is_compiling()
        if reads and indices.numel():
            low, high = (int(v) for v in torch.aminmax(indices))
            if low < 0 or high >= self.num_codes:
                raise IndexError(
                    f"fastgen.nn.Codebook: indices must be in 0 .. {self.num_codes - 1}, got "
                    f"{low if low < 0 else high}; they belong to another codebook"
                )
        return self.embed[indices].movedim(-1, dim)

    @property
    def usage(self) -> Tensor:
        """The share of codes that are not dead, a scalar."""
        return 1 - self._dead().float().mean()

    @property
    def dead_codes(self) -> Tensor:
        """How many codes are chosen less than a hundredth of the equal share, by the moving
        average; an int64 scalar."""
        return self._dead().sum()

    @property
    def perplexity(self) -> Tensor:
        """exp of the entropy of `cluster_size`, a scalar: how many codes, used alike, would be as
        varied as these are used. K before the first batch."""
        size = self.cluster_size.double()
        # equal counts of 1 where nothing has been counted yet
        size = torch.where(size.sum() > 0, size, 1)
        return torch.special.entr(size / size.sum()).sum().exp().float()

    def _dead(self) -> Tensor:
        return self.cluster_size < _DEAD * self.cluster_size.sum() / self.num_codes

    @torch.no_grad()
    def _update(self, z: Tensor, dim: int, counts: Tensor, sums: Tensor) -> None:
        spare = self._spare_rows(z, dim) if self.revive_below > 0 else ()
        if self.ema:
            counts, sums, *spare = summed_over_ranks(counts, sums, *spare)
            averages = self.embed, self.cluster_size, self.embed_avg
            vq_ema_update_(*averages, counts, sums, decay=self.decay)
        else:
            counts, *spare = summed_over_ranks(counts, *spare)
            moved = torch.lerp(counts.to(self.cluster_size), self.cluster_size, self.decay)
            self.cluster_size.copy_(torch.where(counts.sum() > 0, moved, self.cluster_size))
        if spare:
            self._revive(*spare)

    def _spare_rows(self, z: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Random rows of the batch: float64 (K, D), and int64 (K,) with 1 where there is one.
        The ranks fill every slot by turns, so that a sum over them joins their rows."""
        rank, ranks = world()
        rows = z.new_zeros(self.num_codes, self.dim, dtype=torch.float64)
        filled = torch.zeros_like(rows[:, 0], dtype=torch.int64)
        z = z.movedim(dim, -1)
        slots = torch.arange(rank, self.num_codes, ranks, device=z.device)
        chosen = torch.randperm(z.numel() // self.dim, device=z.device)[: len(slots)]
        slots = slots[: len(chosen)]
        found = z[torch.unravel_index(chosen, z.shape[:-1])].double().reshape(-1, self.dim)
        finite = found.isfinite().all(1)
        rows[slots] = torch.where(finite.unsqueeze(1), found, 0)
        filled[slots] = finite.long()
        return rows, filled

    def _revive(self, rows: Tensor, filled: Tensor) -> None:
        """The dead codes, in their order, become the filled rows, as long as there are some: code,
        count and sum together, or the next update would bury the code again."""
        size = self.cluster_size.double()
        share = size.sum() / self.num_codes
        dead = size < self.revive_below * share
        place = (dead.cumsum(0) - 1).clamp(min=0)
        row = rows[filled.argsort(descending=True, stable=True)[place]]
        alive = (dead & (place < filled.sum())).unsqueeze(1)
        self.embed.copy_(torch.where(alive, row, self.embed))
        self.cluster_size.copy_(torch.where(alive[:, 0], share, size))
        if self.ema:
            self.embed_avg.copy_(torch.where(alive, row * share, self.embed_avg))

    @classmethod
    def from_state_dict(cls, sd, layout: str, **constructor_arguments) -> "Codebook":
        """A codebook with the codes of another library's layer.

        Args:
            sd: the layer's own state_dict.
            layout: "rosinality": moving averages, `embed` (D, K), `cluster_size` (K,) and
                `embed_avg` (D, K). "taming": `embedding.weight` (K, D), trained by gradient, so
                here without `ema` unless that is given.
            constructor_arguments: `beta`, `ema` and so on; K and D are those of the codes.

        Raises ValueError for an unknown layout, missing tensors or shapes that do not fit.
        """
        keys = {
            "rosinality": ("embed", "cluster_size", "embed_avg"),
            "taming": ("embedding.weight",),
        }
        if layout not in keys:
            raise ValueError(
                f"fastgen.nn.Codebook: layout must be 'rosinality' or 'taming', got {layout!r}"
            )
        missing = [key for key in keys[layout] if key not in sd]
        if missing:
            raise ValueError(
                f"fastgen.nn.Codebook: sd must hold {', '.join(keys[layout])} for the layout "
                f"{layout!r}, got {', '.join(sd) or 'nothing'}; take the layer's own part of a "
                "model's state_dict, without its prefix"
            )
        embed = sd[keys[layout][0]].detach()
        if embed.dim() != 2 or embed.numel() == 0:
            raise ValueError(
                f"fastgen.nn.Codebook: {keys[layout][0]} must be a matrix, got shape "
                f"{tuple(embed.shape)}"
            )
        if layout == "rosinality":
            embed, averages = embed.t(), sd["embed_avg"].detach().t()
            size = sd["cluster_size"].detach()
            if averages.shape != embed.shape or size.shape != embed.shape[:1]:
                raise ValueError(
                    f"fastgen.nn.Codebook: embed_avg and cluster_size must fit embed "
                    f"{tuple(sd['embed'].shape)}, got {tuple(sd['embed_avg'].shape)} and "
                    f"{tuple(size.shape)}"
                )
        else:
            constructor_arguments = {"ema": False} | constructor_arguments
            averages, size = embed, embed.new_ones(len(embed))
        placed = {"device": embed.device, "dtype": embed.dtype}
        codebook = cls(*embed.shape, **placed | constructor_arguments)
        state = {"embed": embed, "cluster_size": size, "embed_avg": averages}
        own = codebook.state_dict()
        codebook.load_state_dict({name: state[name] for name in own})
        return codebook

    def extra_repr(self) -> str:
        return f"{self.num_codes}, {self.dim}, beta={self.beta}, ema={self.ema}"
