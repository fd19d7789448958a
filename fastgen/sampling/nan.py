"""Where a NaN comes from."""

from contextlib import ExitStack

from torch import Tensor, nn


def first_nan_module(forward, modules: dict[str, nn.Module]) -> str | None:
    """The path of the first of the modules to return a NaN in `forward()`; None if none does."""
    found = []

    def hook(path):
        def look(module, inputs, output):
            if not found and _has_nan(output):
                found.append(path)

        return look

    with ExitStack() as hooks:
        for path, module in modules.items():
            hooks.callback(module.register_forward_hook(hook(path)).remove)
        forward()
    return found[0] if found else None


def _has_nan(output):
    if isinstance(output, Tensor):
        return output.is_floating_point() and bool(output.isnan().any())
    if isinstance(output, dict):
        output = output.values()
    return isinstance(output, (list, tuple, type({}.values()))) and any(map(_has_nan, output))
