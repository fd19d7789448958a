"""What the optimisers with a clip share: their groups, state dicts and the step itself."""

import warnings

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.optim import Optimizer
from torch.optim import optimizer as of_torch

from fastgen import _backends
from fastgen.ops import _checks, _updates
from fastgen.optim.lists import GroupLists
from fastgen.optim.plans import GroupPlan

_HOW = ("foreach", "fused", "differentiable")  # how torch's own optimisers compute: not asked here


class Clipped:
    """The part of an optimiser that stands before torch's own class.

    A step runs a plan of C++ that is made once for each group and holds its tensors (`plans.py`),
    or gives lists of tensors to the dispatcher: under torch.compile, dispatch modes, a forced
    backend, for distributed tensors and devices without a kernel.
    """

    # of a subclass: its name in messages, torch's class, the op, the class of its plans, (state
    # key, the group's key that switches it on or None), what groups must have, torch's own words
    _NAME, _OF_TORCH, _OP, _PLAN, _STATE, _GROUP_KEYS, _SPARSE = (None,) * 7

    _step_supports_amp_scaling = True  # so torch.amp.GradScaler sets grad_scale and found_inf

    def __init__(self, *arguments, clip, **options):
        self._clip = clip
        self._plans = ()  # one GroupPlan for each group
        self._planned_state = ()  # the state they hold, and its length
        self._last = {}  # of the last step; not attributes, whose writes torch.compile loses here
        super().__init__(*arguments, **options)

    @property
    def saturation(self) -> Tensor:
        """The share of clipped weights that are at a bound after the last step, over all groups
        that clip: a float32 tensor without dimensions on the parameters' device; nan before the
        first step and where no group clips. Of distributed tensors this process's shards count."""
        counts = self._last.get("counts")  # of the groups that clip
        if not counts:
            device = next((p.device for g in self.param_groups for p in g["params"]), None)
            return torch.full((), torch.nan, dtype=torch.float32, device=device)
        total = sum(count.to(counts[0].device, torch.float64) for count in counts)
        return (total / self._last["weights"]).float()

    def add_param_group(self, param_group):
        if "clip" not in self.defaults:  # called by torch's __init__, which made the defaults
            self.defaults["clip"] = self._clip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with dupl")
            super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise

    def _check(self, group):
        name = f"fastgen.{self._NAME}"
        for key in _HOW:
            if group.get(key):
                raise ValueError(
                    f"{name}: {key} must be left out of a group, got {group[key]!r}; "
                    "the update is one kernel of fastgen's own"
                )
        if len(set(group["params"])) < len(group["params"]):
            raise ValueError(
                f"{name}: params must hold each parameter once, got one twice in a group; "
                "drop the second (module.parameters() gives shared ones once)"
            )
        self._bounds(group)
        for param in group["params"]:
            if param.dtype not in _checks.FLOATS and not param.is_complex():
                raise TypeError(
                    f"{name}: params must be float32, float64, bfloat16, float16 or complex, got "
                    f"{param.dtype}; leave it out"
                )

    def _bounds(self, group):
        clip = group["clip"]
        bounds = _updates.bounds(self._NAME, clip)
        if clip is not None and any(p.is_complex() for p in group["params"]):
            raise TypeError(
                f"fastgen.{self._NAME}: clip must be None for complex parameters, got {clip!r}; "
                "put them in a group of their own with clip=None"
            )
        return bounds

    # --- state ---

    def load_state_dict(self, state_dict):
        # registered last, so that it sees what the user's own hooks have made of it
        handle = self.register_load_state_dict_pre_hook(Clipped._adopted)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _adopted(self, state_dict):
        """The state dict with what torch's own lacks, once it is known to fit."""
        groups = []
        params = {}
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            missing = [key for key in self._GROUP_KEYS if key not in saved]
            if missing:
                self._refuse(f"a group without {', '.join(missing)}")
            kept = {key: group.get(key) for key in _HOW if key in group}
            groups.append({**saved, **kept, "clip": saved.get("clip", group["clip"])})
            self._bounds({**groups[-1], "params": group["params"]})
            params.update(zip(saved["params"], group["params"], strict=False))
        keys = {"step", *(key for key, _ in self._STATE)}
        required = {"step", *(key for key, switch in self._STATE if switch is None)}
        for index, state in state_dict["state"].items():
            if index not in params or not state:
                continue
            if not required <= state.keys() <= keys:
                self._refuse(f"state of {', '.join(sorted(map(str, state)))}")
            for key in keys.intersection(state) - {"step"}:
                if state[key].shape != params[index].shape:
                    self._refuse(
                        f"{key} of shape {tuple(state[key].shape)} for a parameter of "
                        f"{tuple(params[index].shape)}"
                    )
        # other numbers of groups are torch's to refuse
        groups += state_dict["param_groups"][len(groups) :]
        return {**state_dict, "param_groups": groups}

    def _refuse(self, got):
        raise ValueError(
            f"fastgen.{self._NAME}: state_dict must be one of this optimiser or of torch.optim."
            f"{self._OF_TORCH.__name__} over the same parameters, got {got}; nothing was loaded"
        )

    def __setstate__(self, state):
        super().__setstate__(state)
        for param, of_param in self.state.items():
            if isinstance(param, Tensor) and "step" in of_param:
                step = of_param["step"]
                of_param["step"] = step.to(self._step_device(param), torch.float32)
        self._plans = self._planned_state = ()
        self._last = {}

    @staticmethod
    def _step_device(param):
        """On a GPU steps are counted there: with a gradient scaler only it knows whether one is."""
        return param.device if param.device.type == "cuda" else torch.device("cpu")

    def _make_state(self, param, group):
        """The parameter's state, with what it lacks at zero."""
        state = self.state[param]
        if "step" not in state:
            device = param.device if group["capturable"] else self._step_device(param)
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for key, switch in self._STATE:
            if key not in state and (switch is None or group[switch]):
                state[key] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state

    # --- step ---

    def step(self, closure=None):
        """One update of every parameter that has a gradient, then the clip of all parameters.

        Args:
            closure: computes the loss again, with its gradients, and returns it; optional.

        Returns:
            What closure returns, or None.
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or of_torch._global_optimizer_pre_hooks
            or of_torch._global_optimizer_post_hooks
            or profiler._is_profiler_enabled
        ):
            return self._observed_step() if closure is None else self._observed_step(closure)
        return self._step(closure)

    # torch would wrap it in what _observed_step is wrapped in, 11 us a step also without any hook
    step.hooked = True

    def _step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        return loss

    _observed_step = Optimizer.profile_hook_step(_step)

    def _update(self, scale, inf):
        groups = self.param_groups
        if (
            torch.compiler.is_compiling()
            or _backends.forced()
            or torch._C._len_torch_dispatch_stack()
        ):
            plans = [None] * len(groups)
        else:
            if torch.cuda.is_initialized():
                self._accelerator_graph_capture_health_check()
            plans = self._fitting_plans()
        # all are checked before the first is updated
        jobs = [
            self._listed(group) if plan is None or plan.parts is None else plan
            for group, plan in zip(groups, plans, strict=True)
        ]
        counts, weights = [], 0
        for group, job in zip(groups, jobs, strict=True):
            of_group, size = job.run(self, group, scale, inf)
            if group["clip"] is not None:
                counts += of_group
                weights += size
        self._last["counts"], self._last["weights"] = counts, weights

    def _fitting_plans(self):
        groups, plans, state = self.param_groups, self._plans, self.state
        known, length = self._planned_state or (None, 0)
        if state is not known or len(state) != length or len(plans) != len(groups):
            plans = self._plans = [None] * len(groups)
        for i, group in enumerate(groups):
            if plans[i] is None or not plans[i].fits(self, group):
                plans[i] = GroupPlan(self, group)
                plans[i].fits(self, group)
        self._planned_state = state, len(state)
        return plans

    def _state_to_plan(self, param, group):
        """The state of a parameter that has some or a gradient, else nothing."""
        if param.grad is None and not self.state.get(param):
            return {}
        return self._make_state(param, group)

    def _refuse_sparse(self, group):
        if any(p.grad is not None and p.grad.is_sparse for p in group["params"]):
            raise RuntimeError(self._SPARSE) from None

    def _listed(self, group):
        self._refuse_sparse(group)
        bounds = self._bounds(group)
        params, grads, idle, steps = [], [], [], []
        first, second, third = [], [], []
        complex_numbers = self._collect(group, params, grads, idle, first, second, third, steps)
        self._check_capturable(group)
        return GroupLists(
            bounds, params, grads, idle, (first, second, third), steps, complex_numbers
        )

    def _collect(self, group, params, grads, idle, first, second, third, steps):
        """Fills the lists; whether there are complex numbers. Not of torch's name, _init_group,
        which torch.compile refuses behind a backward in the same graph."""
        for param in group["params"]:
            if param.grad is None:
                idle.append(param)
                continue
            state = self._make_state(param, group)
            params.append(param)
            grads.append(param.grad)
            steps.append(state["step"])
            for tensors, (key, switch) in zip((first, second, third), self._STATE, strict=True):
                if switch is None or group[switch]:
                    tensors.append(state[key])
        return any(param.is_complex() for param in params)

    def _check_capturable(self, group):
        if torch.compiler.is_compiling() or not group["capturable"]:
            return
        supported = of_torch._get_capturable_supported_devices()
        if any(p.grad is not None and p.device.type not in supported for p in group["params"]):
            raise AssertionError(
                "If capturable=True, params and state_steps must be on supported devices: "
                f"{supported}."
            )
