"""Whether the tensors a program was made from still hold what they held then.

By content: version counters miss writes through `.data`, the commonest idiom of masked
convolutions, and whole new tensors may stand where old ones stood.
"""

import hashlib
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgen._load import EXTENSION


class Watch:
    """The tensors of modules, found anew at each look by where they hang.

    Watched are every parameter and buffer, and of the other tensors those in `leaves`, whether
    they are attributes (or stand in a list, tuple or dict that is one) or hang nowhere. A tensor
    attribute that is no leaf, such as an attention map kept for a picture, is not.

    Args:
        modules: held weakly, so that a watch does not keep a model alive.
        leaves: tensors that the program depends on.
        like: for modules that are copies: the modules to look at in their place, in equal order.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        leaves: Iterable[Tensor],
        like: Iterable[nn.Module] | None = None,
    ):
        modules = list(modules)
        missing = {_storage(leaf): leaf for leaf in leaves}
        self._places = []  # (weak module, its children's ids, [attribute or (attribute, key)])
        found = set()
        for module, watched in zip(modules, modules if like is None else like, strict=True):
            places = []
            for place, tensor in _attributes(module):
                if _storage(tensor) in missing:
                    places.append(place)
                    found.add(_storage(tensor))
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    found.add(_storage(tensor))
            self._places.append((weakref.ref(watched), _children(watched), places))
        self._others = [_whole(leaf) for key, leaf in missing.items() if key not in found]
        self._content = self._look()

    def changed(self) -> bool:
        return self._look() != self._content

    def _look(self):
        tensors, layout = [], []
        for reference, children, places in self._places:
            module = reference()
            if module is None or _children(module) != children:
                return None
            tensors += module._parameters.values()
            tensors += module._buffers.values()
            for place in places:
                tensor = _at(module, place)
                if not isinstance(tensor, Tensor):
                    return None
                tensors.append(tensor)
        tensors = [t for t in tensors + self._others if t is not None]
        for t in tensors:
            layout.append((t.shape, t.dtype))
        return content(tensors), layout


def content(tensors: list[Tensor]):
    """A hash of the tensors' values, of as many bits as make a chance agreement no matter."""
    memory = []
    kept = []  # copies must live until they are read
    for t in tensors:
        t = t.detach()
        if t.device.type != "cpu":
            t = t.cpu()
        if not t.is_contiguous() and not t.is_contiguous(memory_format=torch.channels_last):
            t = t.contiguous()
        kept.append(t)
        memory.append((t.data_ptr(), t.nbytes))
    if EXTENSION is not None and hasattr(EXTENSION, "fingerprint"):
        return EXTENSION.fingerprint(memory)
    digest = hashlib.blake2b(digest_size=8)
    for t in kept:
        flat = torch.as_strided(t, (t.numel(),), (1,)).view(torch.uint8) if t.numel() else t
        digest.update(flat.numpy().data if t.numel() else b"")
    return digest.digest()


def _storage(tensor):
    return tensor.untyped_storage()._cdata if tensor.numel() else id(tensor)


def _whole(tensor):
    """All bytes of the storage, of which a leaf may be a part."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _children(module):
    return [id(child) for child in module._modules.values()]


def _attributes(module):
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (list, tuple, dict)) and name not in ("_parameters", "_buffers"):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            yield from (((name, key), item) for key, item in items if isinstance(item, Tensor))


def _at(module, place):
    try:
        if isinstance(place, str):
            return vars(module)[place]
        return vars(module)[place[0]][place[1]]
    except (KeyError, IndexError):
        return None
