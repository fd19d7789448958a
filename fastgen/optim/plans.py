"""A group's update by plans of C++ that hold its tensors from step to step."""

import torch

from fastgen.optim.lists import on_device

_PLAIN = torch._C._disabled_torch_dispatch_impl


def _planned(op, params):
    """Whether C++ may read these tensors itself: all their arithmetic is torch's own, and their
    device has a kernel."""
    return bool(params) and all(
        type(p).__torch_dispatch__ is _PLAIN
        and p.layout is torch.strided
        and not p.is_complex()
        and p.device.type in ("cpu", "cuda")
        and torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), p.device.type.upper())
        for p in params
    )


class GroupPlan:
    """One group's plans, one for each device; `parts` is None where the group's tensors have to go
    through the dispatcher.

    It holds the parameters and their state. `fits` tells whether these are the group's still. Not
    noticed, for the sake of a check whose cost does not grow with the group: parameters other than
    the first and last exchanged inside the same list, and state tensors exchanged by hand other
    than the first parameter's.
    """

    def __init__(self, optimizer, group):
        self.clip = group  # no clip: the bounds are still to be read
        self.params = group["params"]
        self.count = len(self.params)
        self.ends = self.params[:1] + self.params[-1:]
        self.switches = optimizer._switches(group)
        self.parts = self.first = None
        if not _planned(optimizer._OP, self.params):
            return
        optimizer._check_capturable(group)
        self.weights = sum(p.numel() for p in self.params)
        states = [optimizer._state_to_plan(p, group) for p in self.params]
        self.first = next((p for p, s in zip(self.params, states, strict=True) if s), None)
        if self.first is not None:
            self.state = optimizer.state[self.first]
            self.average = self.state[optimizer._STATE[0][0]]
        by_device = {}
        for param, state in zip(self.params, states, strict=True):
            by_device.setdefault(param.device, []).append((param, state))
        make = getattr(torch.classes.fastgen, optimizer._PLAN)
        none = torch.empty(0, device="cpu")
        self.parts = []
        for device, members in by_device.items():
            lists = [
                [state.get(key, none) for _, state in members]
                if switch is None or group[switch]
                else []
                for key, switch in (*optimizer._STATE, ("step", None))
            ]
            # a look-up of the method at every step would cost 1 us
            self.parts.append((device, make([param for param, _ in members], *lists).step))

    def fits(self, optimizer, group):
        params = group["params"]
        if (
            params is not self.params
            or len(params) != self.count
            or (params and (params[0] is not self.ends[0] or params[-1] is not self.ends[-1]))
            or optimizer._switches(group) != self.switches
        ):
            return False
        if self.first is not None and (
            optimizer.state.get(self.first) is not self.state
            or self.state.get(optimizer._STATE[0][0]) is not self.average
        ):
            return False
        if group["clip"] is not self.clip:
            self.bounds = optimizer._bounds(group)
            # a list may change inside: it is read at every step
            self.clip = group if isinstance(group["clip"], list) else group["clip"]
        return True

    def run(self, optimizer, group, scale, inf):
        """The counts of weights at a bound, and how many weights they are of."""
        lr, numbers, counts = group["lr"], optimizer._numbers(group), []
        for i, (device, step) in enumerate(self.parts):
            rate = on_device(lr, device)
            arguments = (
                rate, lr if rate is None else 0.0, *numbers, *self.bounds,
                on_device(scale, device), on_device(inf, device),
            )  # fmt: skip
            try:
                count = step(*arguments)
            except RuntimeError:
                optimizer._refuse_sparse(group)
                raise
            if count is None:  # the first gradient of a parameter without state
                self.__init__(optimizer, group)
                self.fits(optimizer, group)
                optimizer._planned_state = optimizer.state, len(optimizer.state)
                count = self.parts[i][1](*arguments)
            counts.append(count)
        return counts, self.weights
