"""The races run, and compare what they say they compare. No test looks at a time.

Beside them, the table that says what the protocol `fast` misses.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robust_nc.benchmarks.races import autoattack as race
from robust_nc.benchmarks.races import calibration, contestants, geometry, timing
from robust_nc.benchmarks.races.autoattack import between, count, pooled
from robust_nc.benchmarks.races.contestants import OURS, PASSES, Job, Setup
from robust_nc.benchmarks.races.timing import Timing, ratio, table
from robust_nc.exceptions import ConfigError, RecordError, UnknownNameError
from robust_nc.runtime.environment import code_digest


def test_a_race_takes_turns():
    seen: list[str] = []
    contestants = {name: lambda name=name: seen.append(name) for name in "abc"}
    timings = timing.race(contestants, repeats=3, warmups=1)
    assert seen == [*"abc", *"abc", *"bca", *"cab"]
    assert [timing.name for timing in timings] == [*"abc"]
    assert all(len(timing.seconds) == 3 and min(timing.seconds) >= 0 for timing in timings)


def test_ratios_are_of_medians_with_quartiles_within_rounds():
    base = Timing("base", (1.0, 2.0, 4.0, 2.0, 2.0))
    slow = Timing("slow", (2.0, 3.0, 4.0, 3.0, 3.0))
    assert base.spread == (2.0, 2.0, 2.0)
    assert ratio(slow, base) == (1.5, 1.5, 1.5)
    assert ratio(Timing("x", (3.0,)), Timing("y", (2.0,))) == (1.5, 1.5, 1.5)
    shown = table([base, slow], base=base, items=10)
    assert "1.500 (1.500 to 1.500)" in shown
    assert shown.splitlines()[-1].endswith("|")
    assert len({len(line) for line in shown.splitlines()}) == 1


def test_the_scripts_print_their_tables(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUST_NC_DATA", str(tmp_path))
    geometry.taps(examples=4, repeats=1, batch_size=2, backbones=("small_cnn",), classes=(10, 3))
    geometry.memory(examples=(4,), processes=1, batch_size=2, backbone="small_cnn")
    shown = capsys.readouterr().out
    for word in ("forward", "measured", "random images", "flatten"):
        assert word in shown
    assert "random images of 3 classes" in shown


THEIRS = "pyautoattack"
SETUP = Setup("digits", 4, threads=1)


def test_jobs_take_turns_and_count_where_nothing_is_timed() -> None:
    jobs = race.plan([OURS, THEIRS], (5, 6), repeats=2)
    timed = [job.contestant for job in jobs if job.repeat is not None]
    assert timed == [PASSES, OURS, THEIRS, OURS, THEIRS, PASSES]
    assert jobs[6:] == [Job(OURS, 6, None), Job(THEIRS, 6, None)]
    assert race.plan([OURS, THEIRS], (5,), repeats=1)[3:] == [Job(THEIRS, 5, None)]


class Stub:
    """Answers jobs at once; `weak` of our seeds find the first example robust."""

    def __init__(self, weak: tuple[int, ...] = ()) -> None:
        self.weak = weak
        self.done: list[Job] = []

    def __call__(self, setup: Setup, job: Job) -> dict[str, Any]:
        self.done.append(job)
        line: dict[str, Any] = job._asdict() | {"code": code_digest()}
        if job.contestant == PASSES:
            return line | {"forward": {"8": 0.1, "16": 0.05}, "gradient": {"8": 0.2, "16": 0.3}}
        known = job.contestant == OURS or job.repeat is None
        first = "1" if job.contestant == OURS and job.seed in self.weak else "0"
        return line | {
            "seconds": None if job.repeat is None else 2.0 if job.contestant == OURS else 5.0,
            "clean": "1101",
            "robust": f"{first}101",
            "forwards": 30 if known else None,
            "backwards": 10 if known else None,
            "outside": 0,
            "about": "folded",
            "mebibytes": 100.0,
        }


def test_a_race_goes_on_where_it_ended(tmp_path: Path) -> None:
    out, jobs = tmp_path / "race.json", race.plan([OURS, THEIRS], (0, 1), repeats=2)
    first, second, third = Stub(), Stub(), Stub()
    race.contest(SETUP, jobs[:4], out, run=first)
    record = race.contest(SETUP, jobs, out, left_out={"torchattacks": "not here"}, run=second)
    assert [*first.done, *second.done] == jobs
    held = json.loads(out.read_text())
    assert len(held["runs"]) == len(record["runs"]) == len(jobs)
    assert held["race"]["examples"] == 4
    assert {"torch", "pyautoattack", "scipy"} <= set(held["versions"])
    for line in held["runs"]:
        line["code"] = "older"  # ours has changed since
    out.write_text(json.dumps(held))
    again = race.contest(SETUP, jobs, out, run=third)
    assert third.done == [job for job in jobs if job.contestant == OURS]
    assert len(again["runs"]) == len(jobs)


def test_the_record_of_another_race_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "race.json"
    race.contest(SETUP, [Job(OURS, 0, 0)], out, run=Stub())
    before = out.read_bytes()
    with pytest.raises(RecordError, match="another race"):
        race.contest(SETUP._replace(examples=5), [Job(OURS, 0, 0)], out, run=Stub())
    assert out.read_bytes() == before
    out.write_text("{}")
    with pytest.raises(RecordError, match="not the record of a race"):
        race.contest(SETUP, [Job(OURS, 0, 0)], out, run=Stub())


def test_the_report_has_every_number() -> None:
    jobs = race.plan([OURS, THEIRS], (0, 1, 2), repeats=2)
    record = race.contest(SETUP, jobs, None, left_out={"torchattacks": "x"}, run=Stub((1, 2)))
    shown = race.report(record, (0, 1, 2))
    assert "2.50 (2.50 to 2.50)" in shown  # their time over ours
    # 20 forwards alone at 0.05 and 10 with gradient at 0.2: 3 seconds; ours took 2
    assert "limit, seconds: 3.000 (3.000 to 3.000); ours over it: 0.667" in shown
    assert "accelerated by: folded" in shown
    assert "3 seeds of 4 examples: ours weaker on 2, theirs on 0" in shown
    assert "two-sided p = 0.5, ours weaker p = 0.25" in shown
    assert "ours: robust 50.00%, 75.00%, 75.00%; disagreements between its seeds: 1, 1, 0" in shown
    assert "pyautoattack: robust 50.00%, 50.00%, 50.00%; disagreements" in shown
    assert "left out: torchattacks: x" in shown
    assert "30 " in shown
    assert "100 " in shown


def test_a_sign_test_is_exact() -> None:
    assert count("1100", "1010") == (1, 1)
    test = pooled([("11110", "00001")])
    assert test[:2] == (4, 1)
    assert test.one_sided == pytest.approx(6 / 32)  # (5 + 1) of 32 ways
    assert test.two_sided == pytest.approx(12 / 32)
    assert pooled([("10", "10")]) == (0, 0, 1.0, 1.0)
    assert between(["11", "10", "00"]) == [1, 2, 1]


def test_models_are_found_by_name(tmp_path: Path) -> None:
    subject = contestants.load("digits", examples=40)
    accuracy = (subject.model(subject.images).argmax(1) == subject.labels).double().mean()
    assert accuracy > 0.8
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        contestants.load("resnet", examples=1)
    for name, word in (("checkpoint", "folder that a training wrote"), ("a-adv", "safetensors")):
        with pytest.raises(ConfigError, match=word):
            contestants.load(name, examples=1)
    with pytest.raises(ConfigError, match="does not exist"):
        contestants.load("checkpoint", examples=1, path=tmp_path / "nothing")


@pytest.mark.slow
def test_the_race_runs_in_processes_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "race.json"
    for _ in range(2):
        race.main(
            model="digits",
            examples=2,
            repeats=1,
            contestants=(OURS, THEIRS, "torchattacks"),
            threads=1,
            out=out,
        )
    shown = capsys.readouterr().out
    assert shown.count("run 2 of") == 1, "the second call had nothing to do"
    assert "exact sign test" in shown
    assert "ours over it" in shown
    runs = json.loads(out.read_text())["runs"]
    ours, theirs = ([r for r in runs if r["contestant"] == name] for name in (OURS, THEIRS))
    assert ours[0]["clean"] == theirs[0]["clean"]
    assert theirs[-1]["forwards"] > theirs[-1]["backwards"] > 0


def test_weights_and_images_of_others_race_too(tmp_path: Path) -> None:
    layers = [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, 10)]
    network, pixels = nn.Sequential(*layers), torch.randint(0, 256, (4, 1, 28, 28))
    save_file(network.state_dict(), tmp_path / "weights")
    np.savez(tmp_path / "images.npz", x_test=pixels.byte().numpy(), y_test=np.arange(4))
    path, data = tmp_path / "weights", tmp_path / "images.npz"
    subject = contestants.load("a-adv", examples=3, path=path, data=data)
    assert str(subject.ball) == "Linf 0.3"
    assert subject.labels.tolist() == [0, 1, 2]
    assert torch.equal(subject.model(subject.images), network(pixels[:3] / 255))


def entry(standard: str, fast: str) -> dict[str, Any]:
    """Verdicts on examples as strings of 1 (robust) and 0."""
    found = zip(calibration.PROTOCOLS, (standard, fast), (100, 8), strict=True)
    verdicts = {
        protocol: {"robust": [flag == "1" for flag in flags], "units": units}
        for protocol, flags, units in found
    }
    return {"model": "m", "seed": 0, "data": "digits", "examples": len(standard), **verdicts}


def test_the_table_counts_both_ways_and_pools() -> None:
    text = calibration.summary(
        [entry("1110010000", "1111000000"), entry("1" * 90 + "0" * 10, "1" * 90 + "0" * 10)]
    )
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    assert rows[2][5:10] == ["40.0%", "40.0%", "1", "1", "0.080"]
    assert rows[3][5:10] == ["90.0%", "90.0%", "0", "0", "0.080"]
    assert "Missed: 1 beside 94 survivors, 1.06%; at most 4.95%" in text
    assert "0.080 of those of `standard`" in text
    text = calibration.summary([entry("1" * 600, "1" * 600)])
    assert "Missed: 0 beside 600 survivors, 0.00%; at most 0.50%" in text
    text = calibration.summary([entry("1110000000", "1111000000")])
    assert text == "no model of which `standard` leaves more than 30 % robust"
