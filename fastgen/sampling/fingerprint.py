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
        self._memory = []  # of the last look: (tensor, address, bytes, description)
        self._content = self._look()

    def changed(self) -> bool:
        return self._look() != self._content

    def _look(self):
        tensors = []
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
        tensors += self._others
        return self._hashed([t for t in tensors if t is not None])

    def _hashed(self, tensors):
        """A hash of the tensors and their descriptions. Where every tensor is still the same object
        in the same memory, little is done beside the hash."""
        last = self._memory if len(self._memory) == len(tensors) else [(None,) * 4] * len(tensors)
        memory = []
        for t, (seen, address, size, description) in zip(tensors, last, strict=True):
            before, description = description, (t.shape, t.stride(), t.dtype)
            if t is not seen or not address or t.data_ptr() != address or description != before:
                plain = t.device.type == "cpu" and _is_dense(t)
                address, size = (t.data_ptr(), t.nbytes) if plain else (0, 0)
            memory.append((t, address, size, description))
        self._memory = memory
        kept = [t if address else _dense_copy(t) for t, address, _, _ in memory]
        parts = [
            (address, size) if address else (copy.data_ptr(), copy.nbytes)
            for copy, (_, address, size, _) in zip(kept, memory, strict=True)
        ]
        return content(kept, parts), [description for *_, description in memory]


def content(tensors: list[Tensor], parts: list[tuple[int, int]]):
    """64-bit hash of dense tensors on the CPU; parts: (address, bytes) of each."""
    if EXTENSION is not None and hasattr(EXTENSION, "fingerprint"):
        return EXTENSION.fingerprint(parts)
    digest = hashlib.blake2b(digest_size=8)
    for t in tensors:
        flat = t.detach().as_strided((t.numel(),), (1,))
        digest.update(flat.view(torch.uint8).numpy().data if t.numel() else b"")
    return digest.digest()


def _is_dense(t):
    return t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)


def _dense_copy(t):
    return t.detach().cpu().contiguous()


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
