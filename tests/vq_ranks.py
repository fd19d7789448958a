"""Training of the quantiser layers on one rank of several: run as a script by each of them."""

import sys

import torch
from torch import distributed, nn

from fastgen.nn import GroupedResidualVQ, ResidualVQ, VectorQuantize

STEPS = 3
ROWS = 40

PLAIN = dict(dim=6, codebook_size=12)
STAGES = PLAIN | dict(num_quantizers=3)
CASES = {
    "averages": (VectorQuantize, PLAIN),
    "cosine": (VectorQuantize, PLAIN | dict(use_cosine_sim=True)),
    "heads": (
        VectorQuantize,
        PLAIN
        | dict(heads=2, codebook_dim=3, separate_codebook_per_head=True, threshold_ema_dead_code=2),
    ),
    "revival": (VectorQuantize, PLAIN | dict(threshold_ema_dead_code=2.5)),
    "k-means": (VectorQuantize, PLAIN | dict(kmeans_init=True)),
    "own k-means": (VectorQuantize, PLAIN | dict(kmeans_init=True, sync_kmeans=False)),
    "masked": (VectorQuantize, PLAIN | dict(threshold_ema_dead_code=2)),
    "fixed point": (
        VectorQuantize,
        PLAIN | dict(deterministic=True, kmeans_init=True, threshold_ema_dead_code=1),
    ),
    "residual": (ResidualVQ, STAGES | dict(threshold_ema_dead_code=1)),
    "shared": (ResidualVQ, STAGES | dict(shared_codebook=True, threshold_ema_dead_code=1)),
    "dropout": (GroupedResidualVQ, STAGES | dict(groups=2, quantize_dropout=True)),
}
OWN = ("own k-means",)  # whose ranks are not meant to agree
# rows of the first rank, of ROWS; the second has the rest
SPLITS = {"even": 20, "uneven": 33, "none": ROWS, "none first": 0}


def build(case):
    torch.manual_seed(0)
    cls, options = CASES[case]
    return cls(**options)


def batch(case, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(ROWS, 6, generator=generator) * torch.linspace(0.5, 2, 6)
    mask = torch.rand(ROWS, generator=generator) > 0.4 if case == "masked" else None
    return x, mask


def train(layer, case, rank, part):
    """The state after some steps on the rows `part`, and the indices of each step."""
    torch.manual_seed(100 + rank)
    indices = []
    for step in range(STEPS):
        x, mask = batch(case, step)
        arguments = {} if mask is None else dict(mask=mask[part])
        x = x[part].requires_grad_()
        quantized, found, loss = layer(x, **arguments)
        (quantized.sum() + loss.sum()).backward()
        indices.append(found)
    return dict(state=layer.state_dict(), indices=indices)


def train_in_parallel(part):
    """State of an encoder and a quantiser under DistributedDataParallel."""
    torch.manual_seed(distributed.get_rank())  # it starts the others from rank 0
    encoder = nn.Sequential(nn.Linear(6, 6), VectorQuantize(**PLAIN, threshold_ema_dead_code=1))
    parallel = nn.parallel.DistributedDataParallel(encoder)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    for step in range(STEPS):
        quantized, _, loss = parallel(batch("parallel", step)[0][part])
        (quantized.square().mean() + loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return encoder.state_dict()


def calls_of_all_reduce():
    calls, original = [0], distributed.all_reduce

    def counted(*args, **kwargs):
        calls[0] += 1
        return original(*args, **kwargs)

    distributed.all_reduce = counted
    return calls


def main(rank, ranks, folder):
    torch.set_num_threads(1)
    # layers are older than the process group
    layers = {(case, split): build(case) for case in CASES for split in SPLITS}
    alone = VectorQuantize(**PLAIN, sync_codebook=False)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    results, calls = {}, calls_of_all_reduce()
    for (case, split), layer in layers.items():
        part = slice(0, SPLITS[split]) if rank == 0 else slice(SPLITS[split], None)
        before = calls[0]
        results[case, split] = train(layer, case, rank, part)
        results[case, split]["calls"] = calls[0] - before
    before = calls[0]
    alone.load_state_dict(build("averages").state_dict())
    part = slice(0, 20) if rank == 0 else slice(20, None)
    results["alone", "even"] = train(alone, "averages", rank, part)
    if rank == 0:  # the others do not take part in what is not training
        layer = layers["averages", "even"]
        layer(torch.randn(5, 6), freeze_codebook=True)
        layer.eval()(torch.randn(5, 6))
    results["calls", "alone"] = calls[0] - before
    results["parallel"] = train_in_parallel(part)
    torch.save(results, f"{folder}/rank{rank}")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
