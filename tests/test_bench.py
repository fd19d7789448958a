"""The benchmarks' harness: turns, limits, checks, tables, and what the command writes. Never how
fast anything is."""

import json
import time

import pytest
import torch

from fastgen import bench
from fastgen.benchmarks import bench_gated_masked_conv2d, bench_masked_conv2d, bench_train, measure
from fastgen.benchmarks.bench_masked_conv2d import Case
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.table import Row, Table

QUICK = Effort(quick=True)
TINY = Case(2, 3, 6, (5, 4), (3, 5), "B", colors=3)


def table_of(cases):
    columns = {"ratio": ("over eager", "{:.2f}x"), "ms": ("ms", "{:.3f}")}
    return Table("title", columns, cases, "note")


def test_a_race_takes_turns():
    order = []
    contestants = {
        "quick": lambda: order.append("quick"),
        "slow": lambda: (order.append("slow"), time.sleep(0.01)),
    }
    timings = measure.race(contestants, Effort(), clock=time.perf_counter)
    turns = [a for a, b in zip(order, [*order[1:], None], strict=True) if a != b]
    assert turns == ["quick", "slow"] * (len(turns) // 2) and len(turns) >= 10
    assert timings["slow"].best >= 0.01 > timings["quick"].best > 0
    assert all(timing.spread >= 0 for timing in timings.values())


def test_the_peak_is_measured_in_the_same_race():
    timings, peak = measure.race_with_peak({"nothing": lambda: None}, QUICK)
    assert list(timings) == ["nothing"]
    assert peak is None if measure.isa() is None else 1e8 < peak < 1e12


def test_a_wrong_result_has_no_speed():
    exact = torch.ones(3, dtype=torch.float64)
    good, bad = exact.float(), exact.float() + 1e-3
    errors = measure.checked_errors([[good]], [[good]], [exact], ["y"])
    assert errors == {"error": 0, "eager error": 0}
    with pytest.raises(AssertionError, match="gradient of x is 0.001 off"):
        measure.checked_errors([[good], [bad]], [[good]], [exact], ["gradient of x"])


def test_a_goal_is_reached_only_by_the_unrounded_figure():
    rows = {"a": Row({"ratio": 0.8799, "ms": 1.5}, {"ratio": 0.88}), "b": Row({"ratio": 0.88}, {})}
    text = "\n".join(table_of(dict.fromkeys(rows)).report(rows)["markdown"])
    assert "0.87x (0.88) ✗" in text and "1.500" in text
    assert rows["a"].missed == ["ratio"]


def test_a_goal_beyond_the_limit_says_so():
    row = Row({"ratio": 1.5}, {"ratio": 12}, bounds={"ratio": 2.25})
    assert "1.50x (12, limit 2.2) ✗" in table_of({"a": None}).line("a", row)


@pytest.mark.parametrize("case", [TINY, Case(1, 1, 2, (3, 3), (3, 3), "A")])
def test_a_row_of_the_masked_convolution_has_every_figure(case):
    row = bench_masked_conv2d.row(case, QUICK, {"over best": 0.0})
    assert row.missed == []
    named = {"share", "limit"} if measure.isa() else set()
    named |= {"over eager channels-last", "over eager NCHW", "over best NCHW", "over best"}
    assert all(row.values[key] > 0 for key in named)
    assert row.values["backend"] in ("cpu", "reference")
    row.step()


def test_flops_count_unmasked_weights_alone():
    assert Case(2, 1, 1, (5, 4), (3, 3), "A").flops() == 2 * 2 * (2 * 20) * 4
    assert Case(2, 1, 1, (5, 4), (3, 3), "B").flops() == 2 * 3 * (2 * 20) * 5


def test_rows_of_the_other_benchmarks():
    gated = bench_gated_masked_conv2d.row(TINY, QUICK)
    assert gated.values["over two ops channels-last"] > 0
    network = {"shape": (1, 4, 4), "levels": 3, "channels": 4, "layers": 1, "classes": 2}
    assert bench_train.row(network, 2, QUICK).values["over best"] > 0


def test_threads_are_measured_on_an_idle_machine_only(monkeypatch):
    step = torch.nn.Identity().forward
    steps = {"fastgen": lambda: step(0), "eager": lambda: step(0)}
    monkeypatch.setattr(measure, "_busy_seconds", lambda: 2 * time.perf_counter())
    assert measure.threads_row(steps, QUICK).values == {"gain": "not measured: machine busy"}
    monkeypatch.setattr(measure, "_busy_seconds", lambda: 0.0)
    row = measure.threads_row(steps, QUICK, goal=1.8)
    assert {"one", "many", "gain", "over eager"} <= set(row.values)


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    measured = lambda: Row({"ratio": 2.0, "ms": 1.0}, {"ratio": 1.5})  # noqa: E731
    monkeypatch.setattr(
        bench_masked_conv2d, "tables", lambda effort: iter([table_of({"a case": measured})])
    )
    monkeypatch.setattr(bench_masked_conv2d, "ALSO_AT", ())
    path = tmp_path / "figures.json"
    assert bench.main(["masked_conv2d"], json=str(path), out=str(tmp_path)) == 0
    line = next(li for li in capsys.readouterr().out.splitlines() if "a case" in li)
    assert "2.00x (1.5) ✓" in line
    (report,) = json.loads(path.read_text())
    assert report["command"] == "fastgen bench masked_conv2d"
    assert report["parts"][0]["tables"][0]["rows"][0]["values"]["ratio"] == 2.0
    (markdown,) = tmp_path.glob("masked_conv2d-*.md")
    assert line in markdown.read_text()


def test_a_wrong_row_is_told_and_fails_the_command(monkeypatch, capsys):
    def measured():
        raise AssertionError("y is 0.1 off float64")

    cases = {"bad": measured, "good": lambda: Row({"ratio": 2.0})}
    monkeypatch.setattr(bench_masked_conv2d, "tables", lambda effort: iter([table_of(cases)]))
    monkeypatch.setattr(bench_masked_conv2d, "ALSO_AT", ())
    assert bench.main(["masked_conv2d"]) == 1
    out = capsys.readouterr().out
    assert "WRONG: y is 0.1 off float64" in out and "2.00x" in out


def test_no_name_lists_the_benchmarks(capsys):
    assert bench.main() == 0
    assert "masked_conv2d, forward and backward" in capsys.readouterr().out


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(ValueError, match="bench: names must be of .*masked_conv2d.*got 'conv'"):
        bench.main(["conv"])
