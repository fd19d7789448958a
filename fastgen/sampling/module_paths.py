"""Which module of a model is running."""

import threading

from torch import nn

from fastgen.sampling.errors import UnsupportedModelError


class ModulePaths:
    """The path of the running module, by global forward hooks. Refuses modules in train mode whose
    result differs there.

    root: the model; names of modules are those in it. Of functions that call modules: the class of
        the outermost one and the names in it.
    """

    _REFUSED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)

    def __init__(self, root):
        self.modules = {}
        self._thread = threading.get_ident()  # hooks are global, traces are not
        self._names = {}
        self._stack = []
        if isinstance(root, nn.Module):
            self._learn(root, "")

    def _learn(self, module, prefix):
        for name, child in module.named_modules():
            self._names.setdefault(child, ".".join(p for p in (prefix, name) if p))

    def current(self):
        return self._stack[-1] if self._stack else ""

    def __enter__(self):
        hooks = nn.modules.module
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *exception):
        for handle in self._handles:
            handle.remove()

    def _enter(self, module, args):
        if threading.get_ident() != self._thread:
            return
        if module not in self._names:
            self._learn(module, type(module).__name__)
        name = self._names[module]
        self._stack.append(name)
        self.modules[name] = module
        if isinstance(module, self._REFUSED) and module.training:
            raise UnsupportedModelError(
                f"fastgen.compile_sampler: module {name!r} ({type(module).__name__}) is in train "
                "mode; call .eval() on the model"
            )

    def _leave(self, module, args, output):
        if threading.get_ident() == self._thread:
            self._stack.pop()
