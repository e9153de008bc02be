"""The script that measures throughput, on the CPU at tiny sizes: it resumes, and adds up."""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from robust_nc.benchmarks.gpu import entries, throughput
from robust_nc.benchmarks.gpu.counting import SHEETS, Traffic, Work, count_work, roof, sheet_of
from robust_nc.benchmarks.gpu.entries import Entry, Options, plan, quick
from robust_nc.benchmarks.gpu.measuring import attacking, training
from robust_nc.benchmarks.gpu.passes import Passes, Way, paces
from robust_nc.benchmarks.gpu.summary import page
from robust_nc.exceptions import ConfigError

CPU = torch.device("cpu")
TINY = Way("small_cnn", 4, image_shape=(1, 8, 8))


def entry(name: str, call=lambda: {"seconds": {}}, **changed) -> Entry:
    return Entry(**{"section": "ceiling", "name": name, "call": call, "kind": "tiny"} | changed)


def asked(*arguments: object) -> list[str]:
    return ["throughput", *map(str, arguments)]


def test_a_quick_call_measures_everything_once_and_writes_a_page(tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.json"
    options = ("--quick", "--out", out, "--precisions", "bf16", "float32", "--minutes", 9)
    monkeypatch.setattr(sys, "argv", asked(*options))
    assert throughput.main() == throughput.DONE
    shown = capsys.readouterr()
    rows = json.loads(out.read_text())["rows"]
    assert {key.partition(":")[0] for key in rows} == set(entries.get_args(entries.Section)) - {
        "race"
    }
    assert not [row for row in rows.values() if "error" in row]
    assert all(row["share"] > 0 for key, row in rows.items() if "PGD-2" in key)
    for title in ("Device", "Passes", "Training", "Batches", "Attacks", "Ceiling", "Measures"):
        assert f"## {title}" in shown.out
    assert out.with_suffix(".md").read_text() in shown.out
    before = out.read_text()
    assert throughput.main() == throughput.DONE
    assert "1 of" not in capsys.readouterr().err, "nothing is measured twice"
    assert out.read_text() == before


def test_what_would_not_end_in_time_is_left_to_the_next_call(tmp_path):
    out, made = tmp_path / "speed.json", []
    record = throughput.opened(out, CPU)
    jobs = [
        entry(name, lambda name=name: made.append(name) or {"seconds": {}}, guess=guess, kind=name)
        for name, guess in (("short", 0.0), ("long", 1e6), ("after", 0.0))
    ]
    assert not throughput.measure(jobs, record, out, end=time.monotonic() + 60, again=False)
    assert made == ["short"]
    again = throughput.opened(out, CPU)
    assert throughput.measure(jobs, again, out, end=math.inf, again=False)
    assert made == ["short", "long", "after"]


def test_the_longest_of_its_kind_says_what_an_entry_needs(tmp_path):
    out = tmp_path / "speed.json"
    record = throughput.opened(out, CPU)
    record["rows"]["ceiling: one"] = {"kind": "tiny", "took": 1e6}
    job = entry("two", guess=0.0)
    assert not throughput.measure([job], record, out, end=time.monotonic() + 60, again=False)


def test_a_failure_is_told_and_made_again_only_if_asked(tmp_path):
    def fails() -> dict:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    out = tmp_path / "speed.json"
    record = throughput.opened(out, CPU)
    assert throughput.measure([entry("a", fails)], record, out, end=math.inf, again=False)
    assert record["rows"]["ceiling: a"]["error"] == "CUDA out of memory."
    assert "- ceiling: a: CUDA out of memory." in page(record)
    assert throughput.measure([entry("a")], record, out, end=math.inf, again=False)
    assert "error" in record["rows"]["ceiling: a"]
    assert throughput.measure([entry("a")], record, out, end=math.inf, again=True)
    assert "error" not in record["rows"]["ceiling: a"]


@pytest.mark.parametrize("content", ["{", "[]", '{"place": {"device": "another"}, "rows": {}}'])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, monkeypatch, capsys, content):
    out = tmp_path / "speed.json"
    out.write_text(content)
    monkeypatch.setattr(sys, "argv", asked("--quick", "--out", out))
    assert throughput.main() == throughput.BAD_INPUT
    assert str(out) in capsys.readouterr().err
    assert out.read_text() == content


def test_the_plan_ends_with_what_must_be_compiled_and_has_no_name_twice():
    found = [job.kind for job in plan(Options(), CPU)]
    late = ["compiled" in kind for kind in found]
    assert late == sorted(late)
    assert any(late)
    names = [job.key for job in plan(Options(), CPU)]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith("race")]


def test_the_race_needs_a_checkpoint_and_takes_ours_alone_without_the_other(tmp_path, monkeypatch):
    left_out = {"pyautoattack": "it is not installed"}
    monkeypatch.setattr(entries.autoattack, "able", lambda names: (["ours"], left_out))
    monkeypatch.setattr(entries, "in_a_child", lambda setup, job: {"contestant": job.contestant})
    options = Options(sections=("race",), checkpoint=tmp_path, race_rounds=1)
    found = [job.call() for job in plan(options, CPU)]
    assert {row["run"]["contestant"] for row in found} == {"passes", "ours"}
    assert all(row["left_out"] == left_out for row in found)


def test_flops_and_bytes_of_a_product_are_those_of_the_formula():
    layer = nn.Linear(8, 4, bias=False)
    images = torch.rand(16, 8)
    with torch.no_grad(), Traffic() as traffic:
        layer(images)
    assert traffic.flops == 2 * 16 * 8 * 4
    assert traffic.bytes == 4 * (16 * 8 + 8 * 4 + 16 * 4)
    assert traffic.operators == 1


def test_a_gradient_by_the_images_computes_about_as_much_again():
    work = count_work(TINY, CPU)
    assert work["gradient"].flops == pytest.approx(2 * work["forward"].flops, rel=0.1)
    assert work["step"].flops > work["gradient"].flops
    assert work["step"].operators > work["gradient"].operators > work["forward"].operators


def test_the_roof_is_the_lower_of_peak_and_bandwidth():
    work = Work(flops=100.0, bytes=10.0, operators=1)
    assert roof(work, flops=1e3, bandwidth=1e9) == 1e3
    assert roof(work, flops=1e9, bandwidth=1e3) == 1e4


def test_a_board_is_known_by_its_name():
    assert sheet_of("NVIDIA H100 80GB HBM3") is SHEETS["H100 80GB HBM3"]
    assert sheet_of("NVIDIA H100 PCIe") is SHEETS["H100 PCIe"]
    assert sheet_of("some CPU") is None
    for sheet in SHEETS.values():
        assert sheet.tflops["float32"] <= sheet.tflops["tf32"] <= sheet.tflops["bf16"]


def test_short_calls_are_repeated_within_a_round():
    calls = []
    (timing,) = paces({"one": lambda: calls.append(1)}, seconds=0.05)
    assert 3 <= len(timing.seconds) <= 30
    assert len(calls) > 100


def test_the_floor_is_its_gradients_and_one_step():
    passes, done = Passes(TINY, CPU), []
    passes.gradient = lambda: done.append("gradient")
    passes.step = lambda: done.append("step")
    passes.floor(3)
    assert done == ["gradient"] * 3 + ["step"]


def test_a_frozen_copy_is_passed_and_the_model_learns():
    passes = Passes(TINY, CPU)
    before = [part.clone() for part in passes.bare.parameters()]
    passes.gradient()
    assert all(map(torch.equal, before, passes.bare.parameters()))
    passes.step()
    assert not all(map(torch.equal, before, passes.bare.parameters()))
    assert all(part.grad is None for part in passes.frozen.parameters())


def test_each_timed_epoch_of_a_training_has_its_floor():
    found = training(TINY, CPU, inner=2, steps=2, epochs=3)
    assert found["seconds"]["floor"]["n"] == found["seconds"]["loop"]["n"] == 3
    ends = [found["seconds"][name]["median"] for name in ("floor", "loop")]
    assert found["share"] == pytest.approx(ends[0] / ends[1])


def test_an_attack_is_charged_all_its_passes():
    found = attacking(TINY, CPU, steps=3, seconds=0.0)
    assert found["passes"] == {"pgd": [3.0, 3.0], "apgd": [4.0, 3.0]}


def test_quick_sizes_leave_what_was_asked_for():
    options = Options(out=Path("here.json"), precisions=("tf32",), sections=("device",))
    tiny = quick(options)
    kept = ("out", "precisions", "sections", "minutes", "again", "checkpoint")
    assert all(getattr(tiny, name) == getattr(options, name) for name in kept)
    assert dataclasses.asdict(tiny) != dataclasses.asdict(options)


def test_a_record_of_another_torch_is_another_record(tmp_path, monkeypatch):
    out = tmp_path / "speed.json"
    record = throughput.opened(out, CPU)
    out.write_text(json.dumps(record))
    assert throughput.opened(out, CPU)["rows"] == {}
    monkeypatch.setattr(torch, "__version__", "0.1")
    with pytest.raises(ConfigError, match="give another --out"):
        throughput.opened(out, CPU)
