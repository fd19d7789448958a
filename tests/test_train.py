import math
import os
import signal
import threading

import pytest
import torch
from tiny import CLASSES, tiny_data, tiny_model

from fastgen import checkpoint
from fastgen.log import Log, read_log
from fastgen.progress import Progress, clock
from fastgen.train import LOG, Order, train

SETTINGS = {"batch_size": 4, "grids": 0, "progress": False}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # the models are too small for more
    yield
    torch.set_num_threads(2)


def interrupt_after(step):
    """Sends a real SIGINT, as Ctrl-C does."""

    def after_step(done):
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return after_step


def state_of(folder):
    tensors, scalars = checkpoint.load_resume(folder)
    times = ("seconds", "train_seconds")
    for mark in (scalars, scalars["row"], scalars["grid"]):
        for name in times:
            del mark[name]
    return tensors, scalars


def assert_equal_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(
            a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8)
        ), name


@pytest.mark.parametrize("stop", [1, 5, 6])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, stop, schedule):
    settings = SETTINGS | {"steps": 12, "evaluations": 4, "schedule": schedule}
    train(tiny_model(dropout=0.5), tiny_data(), out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt, match=f"after step {stop}; a checkpoint is kept"):
        train(
            tiny_model(dropout=0.5),
            tiny_data(),
            out=tmp_path / "parts",
            after_step=interrupt_after(stop),
            **settings,
        )
    model = tiny_model(seed=3, dropout=0.5)  # other weights: all must come from the folder
    train(model, tiny_data(), out=tmp_path / "parts", resume=True, **settings)

    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert_equal_bits(whole[0], parts[0])
    assert whole[1] == parts[1]
    loaded = [checkpoint.load(tmp_path / name).state_dict() for name in ("whole", "parts")]
    assert_equal_bits(*loaded)
    rows = [read_log(tmp_path / name / LOG) for name in ("whole", "parts")]
    for row in rows[0] + rows[1]:
        for name in ("seconds", "train_seconds", "images_per_s"):
            del row[name]
    assert [row["step"] for row in rows[0]] == [3, 6, 9, 12]
    assert rows[0] == rows[1]


def test_a_constant_schedule_may_be_prolonged(tmp_path):
    settings = SETTINGS | {"schedule": "constant"}
    train(tiny_model(), tiny_data(), out=tmp_path / "whole", steps=8, **settings)
    train(tiny_model(), tiny_data(), out=tmp_path / "parts", steps=4, **settings)
    train(tiny_model(), tiny_data(), out=tmp_path / "parts", steps=8, resume=True, **settings)
    assert_equal_bits(state_of(tmp_path / "whole")[0], state_of(tmp_path / "parts")[0])


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = train(tiny_model(), tiny_data(), out=tmp_path, steps=3, **SETTINGS)
    model = tiny_model(seed=5)
    again = train(model, tiny_data(), out=tmp_path, steps=3, resume=True, **SETTINGS)
    assert again.test == first.test and again.steps == 3
    assert_equal_bits(model.state_dict(), checkpoint.load(tmp_path).state_dict())
    assert len(read_log(tmp_path / LOG)) == 3


def test_training_lowers_the_loss_and_leaves_the_global_random_state_alone(tmp_path):
    data = tiny_data()
    data.train.images.zero_()  # the test images are a view of them
    before = torch.get_rng_state()
    result = train(tiny_model(), data, out=tmp_path, steps=40, lr=0.02, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.test["bits_per_dim"] < 1.0
    rows = read_log(tmp_path / LOG)
    assert rows[-1]["test_bits_per_dim"] == pytest.approx(result.test["bits_per_dim"])
    assert rows[0]["train_bits_per_dim"] > rows[-1]["train_bits_per_dim"]


def test_a_budget_of_minutes_ends_in_time_with_a_decayed_rate(tmp_path):
    result = train(tiny_model(), tiny_data(), out=tmp_path, minutes=0.02, **SETTINGS)
    rows = read_log(tmp_path / LOG)
    assert result.steps > 0 and 1.2 <= result.seconds < 6
    assert rows[-1]["lr"] < 1e-3


def test_sample_grids_have_fixed_noise(tmp_path):
    settings = SETTINGS | {"grids": 2, "steps": 4, "lr": 0.0}
    train(tiny_model(), tiny_data(), out=tmp_path, **settings)
    grids = sorted((tmp_path / "samples").iterdir())
    assert [g.name for g in grids] == ["step-0000002.png", "step-0000004.png"]
    assert grids[0].read_bytes() == grids[1].read_bytes()


def test_another_thread_trains_without_touching_signals(tmp_path):
    # signals belong to the main thread: elsewhere training must run without touching them
    results, before = [], signal.getsignal(signal.SIGINT)
    thread = threading.Thread(
        target=lambda: results.append(
            train(tiny_model(), tiny_data(), out=tmp_path, steps=2, **SETTINGS)
        )
    )
    thread.start()
    thread.join()
    assert results[0].steps == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_unlabelled_data_trains_an_unconditional_model(tmp_path):
    model, data = tiny_model(classes=None), tiny_data(labelled=False)
    assert train(model, data, out=tmp_path, steps=2, **SETTINGS).steps == 2


class Adversaries(torch.nn.Module):
    """A model with an objective of its own: two players, two optimisers, one-shot samples."""

    sample_forwards = 1

    class objective:
        figures = ("generator", "critic")

        def __init__(self, model, *, lr, weight_decay, clip_grad):
            self.model = model
            self.optimizers = {
                "generator": torch.optim.RMSprop([model.mean], lr=lr),
                "critic": torch.optim.SGD([model.slope], lr=lr, momentum=0.5),
            }

        def step(self, codes, condition):
            figures = self.evaluate(codes, condition)
            for name, optimizer in self.optimizers.items():
                optimizer.zero_grad()
                figures[name].backward(retain_graph=True)
            for optimizer in self.optimizers.values():
                optimizer.step()
            return {name: value.detach() for name, value in figures.items()}

        def evaluate(self, codes, condition):
            fake = self.model.mean + torch.randn(len(codes))
            gap = self.model.slope * (codes.float().mean() - fake.mean())
            return {"generator": gap, "critic": self.model.slope.square() - gap}

    def __init__(self):
        super().__init__()
        self.mean, self.slope = (torch.nn.Parameter(torch.tensor(v)) for v in (0.1, 0.5))
        self.config = {}

    def sample(self, n, condition=None, *, seed):
        return torch.ones(n, 1, 4, 4, dtype=torch.int64)


def test_a_model_may_bring_its_own_objective(tmp_path):
    settings = SETTINGS | {"steps": 6, "evaluations": 2, "lr": 0.05, "grids": None}
    train(Adversaries(), tiny_data(), out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        stop = interrupt_after(3)
        train(Adversaries(), tiny_data(), out=tmp_path / "parts", after_step=stop, **settings)
    train(Adversaries(), tiny_data(), out=tmp_path / "parts", resume=True, **settings)
    assert_equal_bits(state_of(tmp_path / "whole")[0], state_of(tmp_path / "parts")[0])
    assert {"train_generator", "test_critic"} <= read_log(tmp_path / "whole" / LOG)[0].keys()


class Told(Adversaries):
    """A model that draws nothing and whose reconstructions want the labels; an objective that wants
    to know how far the training is, and measures more of the test split."""

    classes = CLASSES
    sample = property()  # without a getter there is none

    class objective(Adversaries.objective):
        figures = ("generator", "critic", "untold")
        test_figures = ("kl_0", "kl_1")

        def step(self, codes, condition):
            self.model.told.append(self.done)
            figures = super().step(codes, condition)
            return {name: figures[name] for name in ("generator", "critic")}

        def evaluate(self, codes, condition):
            more = {"kl_0": torch.tensor(2.0), "kl_1": torch.tensor(3.0)}
            return super().evaluate(codes, condition) | more

    def __init__(self):
        super().__init__()
        self.told = []

    def reconstruct(self, codes, condition):
        assert condition.shape == codes.shape[:1]
        return codes


def test_an_objective_is_told_how_far_and_may_measure_the_test_split_alone(tmp_path):
    model = Told()
    settings = SETTINGS | {"steps": 4, "evaluations": 2, "grids": 1}
    result = train(model, tiny_data(), out=tmp_path, **settings)
    assert model.told == [0.0, 0.25, 0.5, 0.75]
    row = read_log(tmp_path / LOG)[-1]
    assert (row["test_kl_0"], row["test_kl_1"]) == (2.0, 3.0) and "train_kl_0" not in row
    assert math.isnan(row["test_untold"]) and set(result.test) == {"generator", "critic"}
    assert not (tmp_path / "samples").exists()
    assert (tmp_path / "reconstructions" / "step-0000004.png").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": None}, "exactly one of minutes and steps"),
        ({"minutes": 1}, "exactly one of minutes and steps"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"lr": float("nan")}, "lr must be a number >= 0, got nan"),
        ({"batch_size": -1}, "batch_size must be positive, got -1"),
        ({"schedule": "step"}, "schedule must be 'cosine' or 'constant', got 'step'"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_model(), tiny_data(), out=tmp_path, **SETTINGS | {"steps": 1} | changes)
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_fit_the_data_is_refused(tmp_path):
    data = tiny_data()
    data.levels = 4
    with pytest.raises(ValueError, match="levels is 3, the data's 4"):
        train(tiny_model(), data, out=tmp_path, steps=1, **SETTINGS)
    with pytest.raises(ValueError, match="takes 2 classes, the data has None"):
        train(tiny_model(), tiny_data(labelled=False), out=tmp_path, steps=1, **SETTINGS)
    data = tiny_data()
    data.test.images = data.test.images[:0]
    with pytest.raises(ValueError, match="data.test has no images"):
        train(tiny_model(), data, out=tmp_path, steps=1, **SETTINGS)


def test_a_folder_in_use_is_refused_unless_resumed(tmp_path):
    train(tiny_model(), tiny_data(), out=tmp_path, steps=1, **SETTINGS)
    with pytest.raises(FileExistsError, match="holds a checkpoint already.*--resume"):
        train(tiny_model(), tiny_data(), out=tmp_path, steps=2, **SETTINGS)
    with pytest.raises(ValueError, match="batch_size=4, but .* was trained with|lr=0.5, but"):
        train(tiny_model(), tiny_data(), out=tmp_path, steps=2, lr=0.5, resume=True, **SETTINGS)
    with pytest.raises(ValueError, match="channels 4 there, 8 here"):
        train(tiny_model(channels=8), tiny_data(), out=tmp_path, steps=2, resume=True, **SETTINGS)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        train(tiny_model(), tiny_data(), out=tmp_path / "x", steps=2, resume=True, **SETTINGS)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    model = tiny_model()

    def poison(step):
        if step == 2:
            next(model.parameters()).data.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="not finite at step 3.*lower lr"):
        train(model, tiny_data(), out=tmp_path, steps=3, after_step=poison, **SETTINGS)
    assert all(p.isfinite().all() for p in checkpoint.load(tmp_path).parameters())


def test_every_image_comes_once_an_epoch():
    order = Order(count=10, batch_size=4, seed=0)
    seen = torch.cat([order(step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(Order(10, 4, 0)(3), order(3))
    assert len(Order(count=3, batch_size=8, seed=0)(1)) == 8


def test_a_log_keeps_the_rows_up_to_the_resumed_step(tmp_path):
    log = Log(tmp_path / LOG, ["step", "loss"], keep=0)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": step / 3})
    Log(tmp_path / LOG, ["step", "loss"], keep=2).append({"step": 3, "loss": 7.0})
    assert [row["loss"] for row in read_log(tmp_path / LOG)] == [1 / 3, 2 / 3, 7.0]


class Terminal:
    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    with Progress("train", stream=terminal) as bar:
        bar.update(0.0)
        bar.update(0.5, images=100, loss=1.25, test_bits_per_dim=0.5)
        bar.note("a line")
    lines = terminal.text.replace("\r\033[K", "\n").split("\n")
    assert "a line" in lines
    last = [line for line in lines if line][-1]
    assert "50 %" in last and "loss 1.250" in last and "test bits/dim 0.5" in last
    assert "images/s" in last and "ETA" in last and "|██" in last and len(last) < 100


def test_progress_is_plain_lines_elsewhere_and_nothing_when_disabled(capsys):
    with Progress("sample") as bar:
        bar.update(0.0)
        bar.update(1.0, images=3)
    assert capsys.readouterr().err.count("\n") == 1
    with Progress("sample", enabled=False) as bar:
        bar.update(1.0)
        bar.note("unseen")
    assert capsys.readouterr().err == ""


def test_clock_reads_like_a_clock():
    assert [clock(s) for s in (0, 75, 3700)] == ["0:00", "1:15", "1:01:40"]
