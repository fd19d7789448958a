"""Whether the tensors a program was made from still hold what they held then.

By content: version counters miss writes through `.data`, the commonest idiom of masked
convolutions, and whole new tensors may stand where old ones stood.
"""

import hashlib
import operator
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgen._load import EXTENSION


class Watch:
    """The tensors of modules, found anew at each look by where they hang.

    Watched are every parameter and buffer of the modules that were called, and of all other tensors
    those in `leaves`, whether they hang in a module or nowhere. A tensor that is no leaf, such as
    an attention map kept for a picture, is not. Numbers, flags and strings that are attributes are
    watched too, but for those that calls themselves change, such as counters.

    Args:
        modules: held weakly, so that a watch does not keep a model alive.
        called: those of them that were called.
        leaves: tensors that the program depends on.
        like: for modules that are copies: the modules to look at in their place, in equal order.
        before: `settings` of the modules to look at from before they were called; without, no
            number, flag or string is watched.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        called: Iterable[nn.Module],
        leaves: Iterable[Tensor],
        like: Iterable[nn.Module] | None = None,
        before: dict | None = None,
    ):
        modules, called = list(modules), set(called)
        missing = {_storage(leaf): leaf for leaf in leaves}
        found = set()
        # (weak module, its children's ids, whether all its parameters, further places, getter)
        self._modules = []
        for module, watched in zip(modules, modules if like is None else like, strict=True):
            places = []
            for place, tensor in _tensors(module):
                own = place[0] in ("_parameters", "_buffers")
                if _storage(tensor) in missing:
                    found.add(_storage(tensor))
                    if not own or module not in called:
                        places.append(place)
            steady = _steady(watched, (before or {}).get(watched, {}))
            self._modules.append(
                (weakref.ref(watched), _children(watched), module in called, places, steady)
            )
        self._others = [_whole(leaf) for key, leaf in missing.items() if key not in found]
        self._last = _Look([])
        self._content = self._look()

    def changed(self) -> bool:
        return self._look() != self._content

    def _look(self):
        tensors, values = [], []
        for reference, children, was_called, places, steady in self._modules:
            module = reference()
            if module is None or _children(module) != children:
                return None
            if was_called:
                tensors += module._parameters.values()
                tensors += module._buffers.values()
            if steady is not None:
                try:
                    values.append(steady(vars(module)))
                except KeyError:
                    return None
            for place in places:
                tensor = _at(module, place)
                if not isinstance(tensor, Tensor):
                    return None
                tensors.append(tensor)
        tensors += self._others
        return values, self._hashed([t for t in tensors if t is not None])

    def _hashed(self, tensors):
        """A hash of the tensors and what they are like."""
        last = self._last
        if not last.is_of(tensors):
            last = self._last = _Look(tensors)
        return content(last.dense, last.parts), last.likeness


class _Look:
    """Tensors as they were found, so that finding them so again is quick."""

    def __init__(self, tensors):
        plain = [_is_plain(t) for t in tensors]
        self.dense = [
            t if is_plain else t.detach().cpu().contiguous()
            for t, is_plain in zip(tensors, plain, strict=True)
        ]
        self.parts = [(t.data_ptr(), t.nbytes) for t in self.dense]
        self.likeness = [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]
        self._places = None  # where nothing was copied: (tensor, address, shape, stride)
        if all(plain):
            self._places = [(t, t.data_ptr(), t.shape, t.stride()) for t in tensors]

    def is_of(self, tensors):
        if self._places is None or len(tensors) != len(self._places):
            return False
        for t, (seen, address, shape, stride) in zip(tensors, self._places, strict=True):
            if t is not seen or t.data_ptr() != address:
                return False
            if t.shape != shape or t.stride() != stride:
                return False
        return True


def content(tensors: list[Tensor], parts: list[tuple[int, int]]):
    """64-bit hash of dense tensors on the CPU; parts: (address, bytes) of each."""
    if EXTENSION is not None and hasattr(EXTENSION, "fingerprint"):
        return EXTENSION.fingerprint(parts)
    digest = hashlib.blake2b(digest_size=8)
    for t in tensors:
        flat = t.detach().as_strided((t.numel(),), (1,))
        digest.update(flat.view(torch.uint8).numpy().data if t.numel() else b"")
    return digest.digest()


def _is_plain(t):
    """Dense, on the CPU."""
    dense = t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)
    return dense and t.device.type == "cpu"


def _storage(tensor):
    return tensor.untyped_storage()._cdata if tensor.numel() else id(tensor)


def _whole(tensor):
    """All bytes of the storage, of which a leaf may be a part."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _children(module):
    return [id(child) for child in module._modules.values()]


def settings(modules: Iterable[nn.Module]) -> dict:
    """Numbers, flags, strings and tuples of them that are attributes: module -> {name: value}."""
    return {m: {k: v for k, v in vars(m).items() if _is_setting(k, v)} for m in modules}


def _is_setting(name, value):
    if name == "training" or name.startswith("_"):
        return False
    if isinstance(value, tuple):
        return all(v is None or isinstance(v, (bool, int, float, str)) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _steady(module, before):
    """Gets the settings that are still as they were before from a module's attributes."""
    now = vars(module)
    names = [name for name, value in before.items() if name in now and now[name] == value]
    return operator.itemgetter(*names) if names else None


def _tensors(module):
    """((attribute,) or (attribute, key), tensor): where tensors hang, parameters too."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield (name,), value
        elif isinstance(value, (list, tuple, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            yield from (((name, key), item) for key, item in items if isinstance(item, Tensor))


def _at(module, place):
    found = vars(module)
    try:
        for key in place:
            found = found[key]
    except (KeyError, IndexError, TypeError):
        return None
    return found
