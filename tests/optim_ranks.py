"""Training with the optimisers on one rank of several: run as a script by each of them."""

import sys

import torch
from torch import distributed, nn

from fastgen.optim import ClippedAdam, ClippedRMSprop

STEPS = 3
CLIP = 0.2
CASES = {
    "rmsprop": (ClippedRMSprop, dict(lr=0.01, momentum=0.9, centered=True, weight_decay=0.1)),
    "adam": (ClippedAdam, dict(lr=0.01, amsgrad=True)),
}


def critic():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1))
    net.unused = nn.Parameter(torch.ones(5))
    return net


def train(net, case):
    cls, options = CASES[case]
    optimizer = cls(net.parameters(), clip=CLIP, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        net(torch.randn(20, 6, generator=generator)).square().mean().backward()
        optimizer.step()
    return optimizer


def whole(net, optimizer):
    """Parameters and state, gathered from all ranks."""
    found = {}
    for name, param in net.named_parameters():
        tensors = {"param": param.detach(), **optimizer.state.get(param, {})}
        for key, value in tensors.items():
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[name, key] = value.clone()
    return found


def given_gradients(mesh):
    """A sharded parameter whose gradient is still to be summed over the ranks."""
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

    param = nn.Parameter(distribute_tensor(torch.linspace(-1, 1, 15).view(5, 3), mesh, [Shard(0)]))
    optimizer = ClippedRMSprop([param], lr=0.01, clip=0.5)
    part = torch.full((5, 3), 1.0 + distributed.get_rank())
    param.grad = DTensor.from_local(part, mesh, [Partial()])
    optimizer.step()
    return {
        "param": param.detach().full_tensor(),
        "square_avg": optimizer.state[param]["square_avg"].full_tensor(),
        "local": param.to_local().detach().clone(),
        "saturation": optimizer.saturation,
    }


def main(rank, ranks, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    mesh = init_device_mesh("cpu", (ranks,))
    results = {"given": given_gradients(mesh)}
    for case in CASES:
        net = critic()
        fully_shard(net[0], mesh=mesh)
        fully_shard(net, mesh=mesh)
        results[case] = whole(net, train(net, case))
    torch.save(results, f"{folder}/rank{rank}")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
