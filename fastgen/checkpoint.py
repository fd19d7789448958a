"""Checkpoints: a folder that a stranger can read and a crash cannot spoil.

    config.json         schema version, model name and constructor arguments, data, training
    model.safetensors   the weights, one tensor a parameter or buffer
    resume.safetensors  weights, optimiser state and counters, for going on bit for bit

Each file is replaced by one rename after it has reached the disk, and each is complete in itself:
resume.safetensors does not need model.safetensors to be of the same step, and config.json
describes both for as long as the folder lives, because a folder never changes its model. So a
process may be killed between any two writes. Nothing here is pickled: a checkpoint cannot run code.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

SCHEMA_VERSION = 1
CONFIG, WEIGHTS, RESUME = "config.json", "model.safetensors", "resume.safetensors"
_KEYS = {"schema_version", "fastgen_version", "model", "model_config", "data", "training"}
_REQUIRED = ("schema_version", "model", "model_config")
_MAX_CONFIG_BYTES = 1 << 20


def save(
    model: nn.Module,
    directory: str | os.PathLike,
    *,
    data: Mapping | None = None,
    training: Mapping | None = None,
    resume: tuple[Mapping[str, Tensor], Mapping] | None = None,
) -> None:
    """Writes `model` to `directory`, which is made if missing.

    model: has `config`, a JSON-able dict of its constructor's arguments.
    data, training: JSON-able descriptions that go into config.json beside it.
    resume: tensors by name and a JSON-able dict, what `load_resume` shall give back.

    Raises ValueError where the folder holds another model, OSError where it cannot be written;
    what was there before is intact then.
    """
    from fastgen import __version__

    directory = Path(directory)
    config = {
        "schema_version": SCHEMA_VERSION,
        "fastgen_version": __version__,
        "model": model_name(model),
        "model_config": dict(model.config),
        "data": dict(data or {}),
        "training": dict(training or {}),
    }
    if (directory / CONFIG).exists():
        check_same_model(directory, model, "fastgen.checkpoint.save")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if resume is not None:
            tensors, scalars = resume
            write_atomically(directory / RESUME, _pack(tensors, {"state": json.dumps(scalars)}))
        write_atomically(directory / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        identity = json.dumps([config["model"], config["model_config"]])
        write_atomically(directory / WEIGHTS, _pack(model.state_dict(), {"model": identity}))
    except OSError as error:
        kept = "; the checkpoint that was there is intact" if (directory / WEIGHTS).exists() else ""
        raise type(error)(
            error.errno,
            f"fastgen.checkpoint.save: cannot write to the folder ({error.strerror}){kept}; "
            "make room or permit writing, or choose another folder",
            str(directory),
        ) from error


def load(
    directory: str | os.PathLike,
    model: nn.Module | None = None,
    *,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The model saved in `directory`, in eval mode; or `model` itself with the weights put in.

    Only the classes of `fastgen.models.MODELS` are built from a checkpoint; for any other class
    give the model.

    Raises FileNotFoundError where the folder or one of its files is missing, ValueError where it
    is damaged, written by a newer fastgen, or of another model.
    """
    directory = Path(directory)
    config = read_config(directory)
    tensors, metadata = _unpack(directory / WEIGHTS)
    identity = metadata.get("model")
    if identity is not None and json.loads(identity) != [config["model"], config["model_config"]]:
        raise ValueError(
            f"fastgen.checkpoint.load: {directory / CONFIG} does not belong to the {WEIGHTS} "
            "beside it; restore the pair from one checkpoint"
        )
    if model is None:
        model = build(config, directory)
    else:
        check_same_model(directory, model, "fastgen.checkpoint.load")
    check_state(tensors, model.state_dict(), f"fastgen.checkpoint.load: {directory / WEIGHTS}")
    model.load_state_dict(tensors)
    return model.to(device).eval() if device is not None else model.eval()


def load_resume(directory: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """What `save` was given as `resume`: (tensors, scalars)."""
    tensors, metadata = _unpack(Path(directory) / RESUME)
    if "state" not in metadata:
        raise ValueError(
            f"fastgen.checkpoint.load_resume: {Path(directory) / RESUME} holds no training state; "
            "it was not written by fastgen"
        )
    return tensors, json.loads(metadata["state"])


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as tensors "name/parameter index/slot"; its options stay outside."""
    state = optimizer.state_dict()["state"].items()
    return {f"{name}/{i}/{slot}": value for i, slots in state for slot, value in slots.items()}


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` gave."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, _, rest = key.partition("/")
        if owner == name:
            index, _, slot = rest.partition("/")
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:
                # the parameter's own strides: others may round otherwise
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def read_config(directory: str | os.PathLike) -> dict:
    """config.json of a checkpoint, checked: known schema, known keys, required keys."""
    path = Path(directory) / CONFIG
    if not path.exists():
        raise FileNotFoundError(
            f"fastgen.checkpoint: no checkpoint in {directory} ({CONFIG} is missing); "
            "give a folder that `fastgen train --out` has written"
        )
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(f"fastgen.checkpoint: {path} is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"fastgen.checkpoint: {path} is not JSON ({error}); it is damaged"
        ) from None
    if not isinstance(config, dict):
        raise ValueError(f"fastgen.checkpoint: {path} expected a JSON object, got {config!r:.40}")
    version = config.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ValueError(
            f"fastgen.checkpoint: {path} has schema version {version}, this fastgen reads up to "
            f"{SCHEMA_VERSION}; update fastgen (it was written by "
            f"{config.get('fastgen_version', 'a newer one')})"
        )
    check_names(config, _KEYS, f"fastgen.checkpoint: {path}", "key")
    for key in _REQUIRED:
        if key not in config:
            raise ValueError(f"fastgen.checkpoint: {path} lacks the key {key!r}; it is damaged")
    if version != SCHEMA_VERSION or not isinstance(config["model_config"], dict):
        raise ValueError(f"fastgen.checkpoint: {path} is damaged (schema_version or model_config)")
    return config


def build(config: Mapping, directory: str | os.PathLike = "config") -> nn.Module:
    """A fresh model by a checkpoint's config. Its class comes from a closed list: a config is
    input that may come from anywhere."""
    from fastgen.models import MODELS

    name = config["model"]
    if name not in MODELS:
        raise ValueError(
            f"fastgen.checkpoint: {directory} is a checkpoint of {name!r}, which is not one of "
            f"fastgen's models{nearest(name, MODELS)}; give load() a model to put the weights in"
        )
    known = inspect.signature(MODELS[name]).parameters
    check_names(
        config["model_config"], known, f"fastgen.checkpoint: {directory} ({name})", "option"
    )
    return MODELS[name](**config["model_config"])


def model_name(model: nn.Module) -> str:
    """The name under which `model` stands in fastgen.models.MODELS, else its class's name."""
    from fastgen.models import MODELS

    for name, kind in MODELS.items():
        if type(model) is kind:
            return name
    return type(model).__qualname__


def check_same_model(directory: str | os.PathLike, model: nn.Module, where: str) -> None:
    """ValueError unless the checkpoint in `directory` is of `model`'s class and configuration."""
    saved, name = read_config(directory), model_name(model)
    if saved["model"] != name:
        raise ValueError(
            f"{where}: {directory} holds a checkpoint of {saved['model']!r}, got a {name!r}; "
            "choose another folder"
        )
    there = saved["model_config"]
    here = json.loads(json.dumps(model.config))  # tuples become lists, as they are read
    different = [k for k in {**there, **here} if there.get(k) != here.get(k)]
    if different:
        pairs = ", ".join(f"{k} {there.get(k)!r} there, {here.get(k)!r} here" for k in different)
        raise ValueError(
            f"{where}: {directory} holds a {name!r} of another configuration ({pairs}); "
            "choose another folder or the same configuration"
        )


def check_state(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """ValueError unless the names and shapes agree."""
    check_names(got, expected, where, "tensor")
    for name, tensor in expected.items():
        if name not in got:
            raise ValueError(f"{where}: the tensor {name!r} is missing{nearest(name, got)}")
        if got[name].shape != tensor.shape:
            raise ValueError(
                f"{where}: {name} has shape {tuple(got[name].shape)}, "
                f"the model expects {tuple(tensor.shape)}; it is a checkpoint of another model"
            )


def check_names(got: Iterable[str], known: Iterable[str], where: str, what: str) -> None:
    """ValueError naming the first of `got` that is not among `known`, and the nearest one."""
    for name in got:
        if name not in known:
            raise ValueError(f"{where}: unknown {what} {name!r}{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'channels'?", or nothing where nothing is near."""
    match = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`: either wholly, also after a power cut, or not at all."""
    temporary = path.with_name(f".{path.name}.part")  # a fixed name: a killed write leaves one file
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself lives in the folder
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _pack(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    # a copy each: safetensors refuses tensors that share memory or are not contiguous
    own = {
        name: t.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, t in tensors.items()
    }
    return safetensors_bytes(own, {"format": "pt", **metadata})


def _unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.exists():
        raise FileNotFoundError(
            f"fastgen.checkpoint: {path} is missing; the checkpoint is not whole"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"fastgen.checkpoint: {path} cannot be read ({error}); it is damaged or no safetensors "
            "file, restore it from a copy"
        ) from None
