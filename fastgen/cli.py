"""The command `fastgen`: train, sample, figures, bench, info, demo.

Flags are made from the signatures of the Python functions behind them and their help from the
docstrings, so every flag is a Python argument of the same name and default.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

# what a user can mend is told in a line; anything else is a bug and shows its traceback
_READABLE = (ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError)
# a model's arguments that the data decide, or (maps) that a folder of images cannot give
_OF_THE_DATA = ("shape", "levels", "classes", "condition_channels")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for an error the user can mend, 130 for
    Ctrl-C. `--debug` anywhere shows the traceback of an error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    if debug:
        argv.remove("--debug")
    summaries = [f"  {name:<8}{command.__doc__}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="fastgen",
        usage="fastgen COMMAND [flags]",
        description="Fast, exact kernels for classic deep generative models in PyTorch.\n\n"
        "commands:\n" + "\n".join(summaries),
        epilog="`fastgen COMMAND --help` explains a command; --debug shows tracebacks of errors.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    if not argv:
        parser.print_help()
        return 2
    command = COMMANDS[parser.parse_args(argv[:1]).command]
    try:
        command(argv[1:])
    except KeyboardInterrupt as error:
        print(f"\n{error}" if error.args else "\nfastgen: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _READABLE as error:
        if debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _train(argv: Sequence[str]) -> None:
    """train a model on digits, photo patches or your own images"""
    import torch

    from fastgen import data as datasets
    from fastgen.checkpoint import nearest, read_config
    from fastgen.models import MODELS
    from fastgen.train import train

    name = argv[0] if argv and not argv[0].startswith("-") else None
    if name is not None and name not in MODELS:
        raise ValueError(
            f"fastgen train: unknown model {name!r}{nearest(name, MODELS)}; "
            f"choose from {', '.join(MODELS)}"
        )
    parser = _parser(
        "train",
        _train,
        usage=f"fastgen train {name or 'MODEL'} --data DATA --out DIR "
        "(--minutes M | --steps N) [flags]",
        epilog="`fastgen train MODEL --help` adds the flags of that model. With --resume, flags "
        "left out are those of the checkpoint.",
    )
    parser.add_argument("model", metavar="MODEL", help=" or ".join(MODELS))
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", metavar="DATA", default=argparse.SUPPRESS, help="digits, patches, rings or a path"
    )
    flags = {"data": add_flags(group, datasets.load, skip=("spec", "seed"))}
    group = parser.add_argument_group("training")
    flags["train"] = add_flags(group, train, skip=("model", "data", "data_arguments"))
    if name is not None:
        group = parser.add_argument_group(name)
        group.add_argument(
            "--conditional",
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help="give the model the labels (default: if the data has labels)",
        )
        flags["model"] = add_flags(group, MODELS[name], skip=_OF_THE_DATA)
    given = vars(parser.parse_args(argv))

    if "out" not in given:
        raise ValueError("fastgen train: --out is missing; name a folder for the checkpoint")
    saved = read_config(given["out"]) if given.get("resume") else {}
    settings = {k: v for k, v in saved.get("training", {}).items() if k in flags["train"]}
    if "minutes" in given or "steps" in given:  # one budget takes the other's place
        settings = {k: v for k, v in settings.items() if k not in ("minutes", "steps")}
    settings |= {k: v for k, v in given.items() if k in flags["train"]}
    load = dict(saved.get("data", {}).get("arguments", {}))
    load |= {k: v for k, v in given.items() if k in flags["data"]}
    load |= {"spec": given["data"]} if "data" in given else {}
    if "spec" not in load:
        raise ValueError(
            "fastgen train: --data is missing; give digits, patches, rings or the path of images"
        )
    data = datasets.load(**load)
    options = dict(saved.get("model_config", {}) if saved.get("model") == name else {})
    options |= {"shape": data.shape, "levels": data.levels}
    if "classes" in inspect.signature(MODELS[name]).parameters:
        if given.get("conditional") and data.classes is None:
            raise ValueError(
                f"fastgen train: --conditional, but {load['spec']} has no labels; leave it out"
            )
        if "conditional" in given or not saved:
            options["classes"] = data.classes if given.get("conditional", True) else None
    elif given.get("conditional"):
        raise ValueError(f"fastgen train: --conditional, but {name} takes no labels; leave it out")
    options |= {k: v for k, v in given.items() if k in flags["model"]}
    with torch.random.fork_rng():
        torch.manual_seed(settings.get("seed", 0))
        model = MODELS[name](**options)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{name}: {count:,} parameters; {load['spec']}: {_describe(data)}")
    result = train(model, data, data_arguments=load, **settings)
    figures = ", ".join(f"{k.replace('_per_', '/')} {v:.4f}" for k, v in result.test.items())
    print(f"step {result.steps}, {result.seconds:.1f} s; test {figures}; kept in {settings['out']}")


def sample(
    directory: str | os.PathLike,
    *,
    n: int = 64,
    label: int | None = None,
    out: str = "samples.png",
    seed: int = 0,
    first_index: int = 0,
    temperature: float = 1.0,
    batch: int | None = None,
    columns: int | None = None,
    scale: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Draws new images from a checkpoint and writes them to a file.

    directory: a folder that `fastgen train --out` has written.
    n: number of images.
    label: class of all images; default goes through the classes in turn.
    out: a .png for a picture of all, .npz for codes and labels, .npy for codes.
    seed: of the draws; image i of a seed is the same whatever n and batch.
    first_index: the number of the first image in the seed's stream.
    temperature: below 1 likelier images, above 1 more varied ones.
    batch: images drawn at a time; default all.
    columns: images in a row of the picture.
    scale: edge of a pixel in the picture.
    device: cpu, cuda, ...; default is the GPU if there is one.
    progress: a bar on the terminal, or lines where there is none.

    Raises ValueError for a label of a model without classes or out of their range, for a model that
    draws no images, and for an unknown kind of file.
    """
    import numpy as np
    import torch

    from fastgen import checkpoint, figures
    from fastgen.device import chosen

    path = Path(out)
    if path.suffix not in (".png", ".npz", ".npy"):
        raise ValueError(f"fastgen.sample: out must end in .png, .npz or .npy, got {out!r}")
    if n < 0:
        raise ValueError(f"fastgen.sample: n must be at least 0, got {n}; say how many images")
    device = chosen(device)
    model = checkpoint.load(directory, device=device)
    if not hasattr(model, "sample"):
        raise ValueError(
            f"fastgen.sample: the model in {directory}, {checkpoint.model_name(model)!r}, draws no "
            "images; see what it does with images by `fastgen figures`"
        )
    classes = getattr(model, "classes", None)
    labels = None
    if classes is not None:
        if label is not None and not 0 <= label < classes:
            raise ValueError(f"fastgen.sample: label must be in 0..{classes - 1}, got {label}")
        # by blocks, so that a picture has one class after the other
        labels = (
            torch.arange(n) * classes // max(n, 1) if label is None else torch.full((n,), label)
        )
    elif label is not None:
        raise ValueError(
            f"fastgen.sample: label is {label}, but the model in {directory} knows no classes; "
            "leave it out"
        )
    codes = model.sample(
        n,
        None if labels is None else labels.to(device),
        seed=seed,
        first_index=first_index,
        temperature=temperature,
        batch=batch,
        progress=progress,
    ).cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        figures.write_samples(path, codes, levels=model.levels, columns=columns, scale=scale)
    elif path.suffix == ".npy":
        np.save(path, codes.numpy())
    else:
        np.savez_compressed(
            path, codes=codes.numpy(), **({"labels": labels.numpy()} if classes else {})
        )


def _sample(argv: Sequence[str]) -> None:
    """draw new images from a checkpoint"""
    parser = _parser("sample", sample)
    parser.add_argument("directory", metavar="DIR", help="a folder written by `fastgen train`")
    add_flags(parser, sample, skip=("directory",))
    given = vars(parser.parse_args(argv))
    sample(**given)
    print(f"wrote {given.get('out', 'samples.png')}")


def _figures(argv: Sequence[str]) -> None:
    """draw the pictures that fit a checkpoint"""
    from fastgen import gallery

    parser = _parser("figures", gallery.main)
    parser.add_argument("directory", metavar="DIR", help="a folder written by `fastgen train`")
    add_flags(parser, gallery.main, skip=("directory",))
    for path in gallery.main(**vars(parser.parse_args(argv))):
        print(f"wrote {path}")


def _bench(argv: Sequence[str]) -> None:
    """measure the kernels against PyTorch"""
    from fastgen import bench

    parser = _parser("bench", bench.main)
    parser.add_argument("names", metavar="OP", nargs="*", help="ops; none lists them")
    add_flags(parser, bench.main, skip=("names",))
    _exit_with(bench.main(**vars(parser.parse_args(argv))))


def _info(argv: Sequence[str]) -> None:
    """versions, build, backends of every op, and a self-test"""
    from fastgen import info

    parser = _parser("info", info.main)
    add_flags(parser, info.main)
    _exit_with(info.main(**vars(parser.parse_args(argv))))


def _demo(argv: Sequence[str]) -> None:
    """train a PixelCNN on handwritten digits for a minute and show its samples"""
    from fastgen import demo

    parser = _parser("demo", demo.main)
    add_flags(parser, demo.main)
    _exit_with(demo.main(**vars(parser.parse_args(argv))))


COMMANDS = {
    "train": _train,
    "sample": _sample,
    "figures": _figures,
    "bench": _bench,
    "info": _info,
    "demo": _demo,
}


def add_flags(
    parser: argparse._ActionsContainer,
    function: Callable,
    *,
    skip: Collection[str] = (),
) -> list[str]:
    """Adds a flag for each argument of `function` (or class) that a word can express, and
    returns their names. Only flags that are given appear in the parsed result."""
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    helps = _argument_docs(function)
    added = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind = _kind(hints.get(name))
        if name in skip or kind is None:
            continue
        words = [f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"]
        default = parameter.default
        text = helps.get(name, "").rstrip(".").replace("%", "%%")
        if default not in (None, False, inspect.Parameter.empty) and "default" not in text:
            text = f"{text} (default {'on' if default is True else default})".strip()
        options: dict = {"default": argparse.SUPPRESS, "dest": name, "help": text}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction if default else "store_true"
        elif isinstance(kind, tuple):
            options["choices"] = kind
        else:
            options |= {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, name.upper())}
        parser.add_argument(*words, **options)
        added.append(name)
    return added


def _kind(hint) -> type | tuple | Callable | None:
    """What parses a word into a value of this type: int, float, str, bool, a tuple of choices, a
    function; None where no word can."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [_kind(h) for h in typing.get_args(hint) if h is not type(None)]
        if _size in kinds:
            return _size
        return next((k for k in (str, float, int, bool, *kinds) if k in kinds and k), None)
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) is tuple and set(typing.get_args(hint)) <= {int, ...}:
        return _size
    if hint in (int, float, str, bool):
        return hint
    return str if hint is os.PathLike or hint is Path else None


def _size(word: str) -> int | tuple[int, ...]:
    """ "28" -> 28, "28x32" -> (28, 32)."""
    try:
        numbers = tuple(int(part) for part in re.split("[x,]", word))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no size; write 28 or 28x32") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _argument_docs(function: Callable) -> dict[str, str]:
    """The lines `name: text` and `a, b: text` of a docstring, continuation lines joined."""
    docs: dict[str, str] = {}
    names: list[str] = []
    indent = 0
    known = inspect.signature(function).parameters
    for line in inspect.getdoc(function).splitlines() if function.__doc__ else ():
        match = re.match(r"( *)(\w+(?:, \w+)*): +(.*)", line)
        if match and all(name in known for name in match[2].split(", ")):
            indent, names = len(match[1]), match[2].split(", ")
            docs |= dict.fromkeys(names, match[3])
        elif names and line.startswith(" " * (indent + 1)):
            docs |= {name: f"{docs[name]} {line.strip()}" for name in names}
        else:
            names = []
    return docs


def _parser(command: str, function: Callable, **options) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"fastgen {command}",
        description=inspect.getdoc(function).splitlines()[0],
        allow_abbrev=False,
        **options,
    )


def _describe(data) -> str:
    channels, height, width = data.shape
    classes = f", {data.classes} classes" if data.classes else ""
    return (
        f"{len(data.train.images):,} training and {len(data.test.images):,} test images, "
        f"{channels}x{height}x{width}, {data.levels} levels{classes}"
    )


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return " ".join(str(error).split()) or type(error).__name__


def _exit_with(code: int | None) -> None:
    if code:
        raise SystemExit(code)
