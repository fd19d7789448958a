import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_data, tiny_model

from fastgen import checkpoint
from fastgen.models import PixelCNN

ROOT = Path(__file__).parent.parent


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_loads_as_the_same_model_in_eval_mode(tmp_path):
    model = tiny_model()
    checkpoint.save(model, tmp_path / "a" / "b")
    loaded = checkpoint.load(tmp_path / "a" / "b")
    assert type(loaded) is type(model) and loaded.config == model.config and not loaded.training
    assert_same_weights(loaded, model)
    into = tiny_model(seed=1)
    assert checkpoint.load(tmp_path / "a" / "b", into) is into
    assert_same_weights(into, model)
    data = tiny_data()
    codes, labels = data.test.images.long(), data.test.labels
    assert torch.equal(loaded.log_prob(codes, labels), model.eval().log_prob(codes, labels))


def test_the_config_is_readable_and_nothing_is_pickled(tmp_path):
    checkpoint.save(tiny_model(), tmp_path, data={"name": "tiny"}, resume=({}, {"step": 3}))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["schema_version"] == 1 and config["model"] == "gated-pixelcnn"
    assert config["model_config"]["channels"] == 4 and config["data"] == {"name": "tiny"}
    names = {"config.json", "model.safetensors", "resume.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert checkpoint.load_resume(tmp_path) == ({}, {"step": 3})


def test_channels_last_weights_and_shared_tensors_are_saved(tmp_path):
    model = tiny_model()
    model.to(memory_format=torch.channels_last)
    model.blocks[0].out.bias = model.first.out.bias
    checkpoint.save(model, tmp_path)
    assert_same_weights(checkpoint.load(tmp_path), model)


def test_a_checkpoint_of_another_model_names_both(tmp_path):
    checkpoint.save(tiny_model(), tmp_path)
    other = PixelCNN((1, 4, 4), 3, channels=4, layers=1)
    for refused in (checkpoint.load, lambda folder, model: checkpoint.save(model, folder)):
        with pytest.raises(ValueError, match="checkpoint of 'gated-pixelcnn', got a 'pixelcnn'"):
            refused(tmp_path, other)
    with pytest.raises(ValueError, match="channels 4 there, 8 here"):
        checkpoint.load(tmp_path, tiny_model(channels=8))
    edit_config(tmp_path, model="gated-pixelcn")
    with pytest.raises(ValueError, match="does not belong to|did you mean 'gated-pixelcnn'"):
        checkpoint.load(tmp_path)


def test_a_model_of_an_unknown_class_is_loaded_into_a_given_one_only(tmp_path):
    class Mine(torch.nn.Linear):
        config = {"in_features": 2, "out_features": 1}

    model = Mine(**Mine.config)
    checkpoint.save(model, tmp_path)
    with pytest.raises(ValueError, match="Mine', which is not one of fastgen's models"):
        checkpoint.load(tmp_path)
    into = Mine(**Mine.config)
    checkpoint.load(tmp_path, into)
    assert_same_weights(into, model)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schema_version": 2}, "schema version 2, this fastgen reads up to 1; update fastgen"),
        ({"modle": 1}, "unknown key 'modle'; did you mean 'model'"),
        ({"schema_version": "one"}, "is damaged"),
        ({"model_config": []}, "is damaged"),
    ],
)
def test_a_strange_config_is_told(tmp_path, changes, message):
    checkpoint.save(tiny_model(), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


def test_an_unknown_model_option_is_told_with_the_nearest_one(tmp_path):
    checkpoint.save(tiny_model(), tmp_path)
    config = checkpoint.read_config(tmp_path)
    config["model_config"]["chanels"] = config["model_config"].pop("channels")
    with pytest.raises(ValueError, match="unknown option 'chanels'; did you mean 'channels'"):
        checkpoint.build(config, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_are_named(tmp_path, name):
    checkpoint.save(tiny_model(), tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        checkpoint.load(tmp_path)
    for damaged in (b"", b"\xff" * 100, content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{re.escape(name)}.*(damaged|JSON)"):
            checkpoint.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="resume.safetensors is missing"):
        checkpoint.load_resume(tmp_path)


def test_weights_of_another_shape_or_name_are_told(tmp_path):
    model = tiny_model()
    checkpoint.save(model, tmp_path)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    path = tmp_path / "model.safetensors"

    def refused(tensors, message):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message):
            checkpoint.load(tmp_path)

    refused(weights | {"head.bias": torch.zeros(3)}, r"head.bias has shape \(3,\), .* \(8,\)")
    refused(weights | {"head.bais": torch.zeros(8)}, "unknown tensor 'head.bais'.*'head.bias'")
    refused({k: v for k, v in weights.items() if k != "head.bias"}, "'head.bias' is missing")


def test_weights_and_config_of_two_checkpoints_are_told_apart(tmp_path):
    checkpoint.save(tiny_model(dropout=0.0), tmp_path / "a")
    checkpoint.save(tiny_model(dropout=0.5), tmp_path / "b")
    (tmp_path / "b" / "config.json").rename(tmp_path / "a" / "config.json")
    with pytest.raises(ValueError, match="does not belong to the model.safetensors"):
        checkpoint.load(tmp_path / "a")


@pytest.mark.parametrize("failing", ["model.safetensors", "resume.safetensors", "config.json"])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, failing):
    old, new = tiny_model(seed=1), tiny_model(seed=2)
    state = {"x": torch.arange(3)}
    checkpoint.save(old, tmp_path, resume=(state, {"step": 1}))
    fsync = os.fsync

    def full(handle):
        if failing in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*checkpoint that was there is intact"):
        checkpoint.save(new, tmp_path, resume=({"x": state["x"] + 1}, {"step": 2}))
    assert_same_weights(checkpoint.load(tmp_path), old)
    tensors, scalars = checkpoint.load_resume(tmp_path)
    assert tensors["x"][0] + 1 == scalars["step"]  # both of one step
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the folder"):
        checkpoint.save(tiny_model(), tmp_path / "file" / "x")


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path):
    # saves in a loop, every tensor of a save filled with its number; killed at a random moment
    script = """
        import sys, torch
        sys.path[:0] = [{root!r}, {tests!r}]
        from tiny import tiny_model
        from fastgen import checkpoint
        model = tiny_model()
        for step in range(100000):
            for p in model.parameters():
                p.data.fill_(step)
            tensors = {{f"t{{i}}": torch.full((500,), step) for i in range(20)}}
            checkpoint.save(model, {folder!r}, resume=(tensors, {{"step": step}}))
            print(step, flush=True)
    """
    script = textwrap.dedent(script).format(
        root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path)
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for _ in range(20):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    values = {p.unique().item() for p in checkpoint.load(tmp_path).parameters()}
    assert len(values) == 1
    tensors, scalars = checkpoint.load_resume(tmp_path)
    assert all((t == scalars["step"]).all() for t in tensors.values())
    assert 0 <= scalars["step"] - values.pop() <= 1
    checkpoint.save(tiny_model(), tmp_path)  # what the killed writer left does not stand in the way
    assert not list(tmp_path.glob(".model*"))
