"""A group's update by lists of tensors through the dispatcher."""

import torch

from fastgen.ops import _updates, clip_weights_


def shard(tensor, like=None):
    """The part of a distributed tensor (DTensor, FSDP2) that this process holds, laid out as
    `like`'s; any other tensor as it is."""
    if like is not None and getattr(tensor, "placements", None) != getattr(
        like, "placements", None
    ):  # such as a gradient that is still to be summed over the processes
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    return getattr(tensor, "_local_tensor", tensor)


def on_device(tensor, device):
    """A scaler's tensor or a learning rate on the device of the parameters it is for."""
    if not isinstance(tensor, torch.Tensor):
        return None  # none, or the scaler's sum over no gradients
    if tensor.device == device:
        return tensor
    return tensor.to(device, non_blocking=device.type != "cpu")


class GroupLists:
    """The tensors of one group in one step."""

    def __init__(self, bounds, params, grads, idle, states, steps, has_complex):
        self.bounds = bounds
        self.params, self.grads, self.idle = params, grads, idle
        self.states, self.steps = states, steps
        self.has_complex = has_complex

    def run(self, optimizer, group, scale, inf):
        """The counts of weights at a bound, and how many weights they are of."""
        with torch.no_grad():
            if self.has_complex:
                optimizer._torch_update(group, self.params, self.grads, self.states, self.steps)
                return [], 0
            params = [shard(p) for p in self.params]
            grads = [shard(g, p) for g, p in zip(self.grads, self.params, strict=True)]
            lists = [params, grads, *([shard(t) for t in state] for state in self.states)]
            lists.append(self.steps)
            idle = [shard(p) for p in self.idle] if group["clip"] is not None else []
            counts = []
            for device in dict.fromkeys(p.device for p in params):
                of_device = [
                    [t for t, p in zip(tensors, params, strict=True) if p.device == device]
                    if tensors
                    else []
                    for tensors in lists
                ]
                rate = on_device(group["lr"], device)
                counts.append(
                    optimizer._OP(
                        *of_device, rate, group["lr"] if rate is None else 0.0,
                        *optimizer._numbers(group), *self.bounds, on_device(scale, device),
                        on_device(inf, device),
                    )
                )  # fmt: skip
            for (tensors,) in _updates.by_device(idle):
                counts.append(clip_weights_.OP(tensors, *self.bounds))
            return counts, sum(p.numel() for p in (*params, *idle))
