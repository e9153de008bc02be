"""The script that measures throughput, on the CPU at tiny sizes: it resumes, and adds up."""

import json
import math
import sys
import time
from typing import get_args

import pytest
import torch
from torch import nn

from robust_nc.benchmarks.gpu import throughput
from robust_nc.benchmarks.gpu.throughput import Entry, Way, count_work, page
from robust_nc.exceptions import RecordError

CPU = torch.device("cpu")
TINY = Way("small_cnn", 4, image_shape=(1, 8, 8))


def entry(name: str, call=list) -> Entry:
    return Entry("passes", name, call)


def timed(seconds: float, what: str, **more: object) -> throughput.Row:
    return throughput._row(what, [seconds], **more)


def test_a_quick_call_measures_everything_once_and_writes_a_page(tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.json"
    options = ["--quick", "--out", str(out), "--precisions", "bf16", "float32", "--minutes", "9"]
    monkeypatch.setattr(sys, "argv", ["throughput", *options])
    assert throughput.main() == throughput.DONE
    shown = capsys.readouterr().out
    entries = json.loads(out.read_text())["entries"]
    assert {name.partition(":")[0] for name in entries} == set(get_args(throughput.Section))
    assert not [found for found in entries.values() if "error" in found]
    for what in ("product 64", "convolution", "copy 1 MiB", "forward", "gradient", "step"):
        assert f"| {what} " in shown
    floors = [line.split("|")[-2] for line in shown.splitlines() if "-2 " in line]
    assert len(floors) == 6, "two attacks and a training, in two precisions"
    assert all(share.strip().endswith("%") for share in floors)
    assert out.with_suffix(".md").read_text() in shown
    before = out.read_text()
    assert throughput.main() == throughput.DONE
    assert "1 of" not in capsys.readouterr().err, "nothing is measured twice"
    assert out.read_text() == before


def test_what_would_not_end_in_time_is_left_to_the_next_call(tmp_path):
    out, made = tmp_path / "speed.json", []
    record = throughput.opened(out, CPU)
    record["entries"]["one"] = {"kind": "training", "took": 1e6}
    jobs = [
        Entry(section, name, lambda name=name: made.append(name) or [])
        for section, name in (("passes", "short"), ("training", "long"), ("passes", "after"))
    ]
    assert not throughput.measure(jobs, record, out, end=time.monotonic() + 60, again=False)
    assert made == ["short"], "the longest of its kind says what an entry needs"
    again = throughput.opened(out, CPU)
    assert throughput.measure(jobs, again, out, end=math.inf, again=False)
    assert made == ["short", "long", "after"]


def test_a_failure_is_told_and_made_again_only_if_asked(tmp_path):
    def fails() -> list:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    out = tmp_path / "speed.json"
    record = throughput.opened(out, CPU)
    assert throughput.measure([entry("a", fails)], record, out, end=math.inf, again=False)
    assert record["entries"]["a"]["error"] == "CUDA out of memory."
    assert "- a: CUDA out of memory." in page(record)
    assert throughput.measure([entry("a")], record, out, end=math.inf, again=False)
    assert "error" in record["entries"]["a"]
    assert throughput.measure([entry("a")], record, out, end=math.inf, again=True)
    assert "error" not in record["entries"]["a"]


@pytest.mark.parametrize("content", ["{", "[]", '{"place": {"device": "another"}, "entries": {}}'])
def test_a_file_of_something_else_or_of_another_torch_is_refused_and_kept(
    tmp_path, monkeypatch, content
):
    out = tmp_path / "speed.json"
    out.write_text(content)
    with pytest.raises(RecordError, match=str(out)):
        throughput.opened(out, CPU)
    assert out.read_text() == content
    out.write_text(json.dumps(throughput.opened(tmp_path / "none.json", CPU)))
    assert throughput.opened(out, CPU)["entries"] == {}
    monkeypatch.setattr(torch, "__version__", "0.1")
    with pytest.raises(RecordError, match="give another --out"):
        throughput.opened(out, CPU)


def test_flops_and_bytes_of_a_product_are_those_of_the_formula():
    layer, images = nn.Linear(8, 4, bias=False), torch.rand(16, 8)
    with torch.no_grad():
        work = count_work(lambda: layer(images))
    assert work == (2 * 16 * 8 * 4, 4 * (16 * 8 + 8 * 4 + 16 * 4), 1)


def test_peak_roof_and_floor_are_those_of_the_other_rows():
    way = TINY._asdict()
    work = {"flops": 100.0, "bytes": 10.0, "operators": 1}
    rows = [
        timed(0.1, "product", work=work, peak="float32"),
        timed(0.1, "copy", work=work | {"flops": 0.0, "bytes": 1.0}, bandwidth=True),
        timed(1.0, "gradient", way=way, work=work),
        timed(2.0, "step", way=way, work=work | {"flops": 200.0}),
        timed(5.0, "training", way=way, floor={"gradient": 2, "step": 1}),
        timed(5.0, "alone", way=TINY._replace(batch_size=8)._asdict(), floor={"step": 1}),
    ]
    lines = page({"conditions": "here", "entries": {"a": {"rows": rows}}}).splitlines()
    shares = [
        [cell.strip() for cell in line.split("|")[-4:-1]] for line in lines if "batch" in line
    ]
    # 1,000 FLOP/s at most, 10 bytes a second of 10 FLOP each; 400 FLOP in 5 s; 4 s of passes in 5
    assert shares == [
        ["10 %", "10 %", ""],
        ["10 %", "20 %", ""],
        ["8 %", "13 %", "80 %"],
        ["", "", ""],
    ]
