"""`robust_nc.run`: a suite from Python, as the command runs it."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers_data import write_image
from helpers_runner import cli, record_times, records, tiny, write_suite

import robust_nc
from robust_nc import RunConfig
from robust_nc.exceptions import (
    CellError,
    ConfigError,
    InputError,
    StorageError,
    UnknownNameError,
)
from robust_nc.io.files import alone
from robust_nc.record.schema import read_record
from robust_nc.verification.consistency import inconsistencies

SHORT = {"train.epochs": 1, "evaluation.sweep": [], "evaluation.examples": 20}


def test_a_suite_runs_as_the_command_runs_it_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_suite(tmp_path, ""), tmp_path / "out"
    heads = SHORT | {"model.head": ["linear", "etf"]}
    first = robust_nc.run(path, out=out, changes=heads, cells=[0], workers=1)
    assert first["head"].tolist() == ["linear"]
    told = capsys.readouterr().err
    assert "[1/1] small_cnn-linear-standard seed 0, cell 0: clean " in told
    before = record_times(out)
    both = robust_nc.run(str(path), out=out, changes=heads, workers=1)
    assert set(both["head"]) == {"linear", "etf"}
    assert before.items() < record_times(out).items(), "what was recorded is kept"
    pd.testing.assert_frame_equal(both, robust_nc.leaderboard(out))
    texts = [f"--set={key}={value}".replace("'", '"') for key, value in heads.items()]
    ran = cli("run", path, "--out", out, *texts)
    assert ran.code == 0
    assert "0 cells made, 2 kept" in ran.err
    kept = robust_nc.run(path, out=out, changes=heads, where=["head=etf"], overwrite="only-cache")
    assert kept["head"].tolist() == ["etf"]
    more = heads | {"seed": [0, 5], "model.head": "etf"}
    with pytest.raises(CellError, match=r"^1 of 2 cells .* seed 5, cell 1 is missing$"):
        robust_nc.run(path, out=out, changes=more, overwrite="only-cache")


def test_configurations_are_a_suite_named_as_their_folder(tmp_path: Path) -> None:
    config = tiny(tmp_path, "").cells[0].config
    small = robust_nc.config.plain(config) | {"train": {"epochs": 1, "batch_size": 50}}
    configs = [
        RunConfig(**(small | {"seed": seed, "model": {"head": head}}))
        for head in ("linear", "etf")
        for seed in (0, 1)
    ]
    board = robust_nc.run([*configs, configs[0]], out=tmp_path / "heads", workers=2)
    assert dict(zip(board["head"], board["seeds"], strict=True)) == {"linear": 2, "etf": 2}
    assert set(board["suite"]) == {"heads"}
    found = records(tmp_path / "heads")
    assert {record.model for record in found.values()} == {
        "small_cnn-linear-standard",
        "small_cnn-etf-standard",
    }
    assert len(robust_nc.run(configs[0], out=tmp_path / "heads")) == 1


@pytest.mark.parametrize(
    ("suite", "options", "kind", "sentence"),
    [
        ("quikstart", {}, ConfigError, "did you mean 'quickstart'"),
        ("no.toml", {}, ConfigError, "no.toml cannot be read"),
        (3, {}, InputError, "a list of RunConfig, found int"),
        ([3], {}, InputError, "a list of RunConfig, found list"),
        ([RunConfig()], {}, InputError, "run(configurations) needs out=, the folder"),
        ([RunConfig()], {"changes": {"seed": 1}}, InputError, "needs out="),
        ("quickstart", {"overwrite": "allways"}, UnknownNameError, "did you mean 'always'"),
        ("quickstart", {"workers": 0}, ConfigError, "--workers must be at least 1"),
        ("quickstart", {"cells": [12]}, ConfigError, "cells 0 to 11, found number 12"),
        ("quickstart", {"changes": {"train.epoch": 1}}, ConfigError, "did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_sentence(suite, options, kind, sentence) -> None:
    with pytest.raises(kind) as error:
        robust_nc.run(suite, **options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cell_that_fails_is_told_after_the_others_are_done(tmp_path: Path) -> None:
    configs = [
        RunConfig(
            data={"train_limit": 60, "test_limit": 20},
            train={"epochs": 1, "lr": lr},
            evaluation={"protocol": "clean"},
            measure={"targets": [], "radii": [], "steps": 1, "trajectories": 0},
        )
        for lr in (1e30, 0.1)
    ]
    with pytest.raises(
        CellError, match=r"^1 of 2 cells have no record; .*lr=1e_30 seed 0, cell 0: "
    ):
        robust_nc.run(configs, out=tmp_path / "out", workers=1)
    assert len(robust_nc.leaderboard(tmp_path / "out")) == 1
    with alone(tmp_path / "out"), pytest.raises(StorageError):
        robust_nc.run(configs, out=tmp_path / "out")


def test_a_folder_of_images_tells_what_is_none_and_keeps_its_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for number in range(count):
                path = tmp_path / "seen" / split / name / f"{number}.png"
                write_image(path, size=(8, 8), colour=(80 * label, 20 * number, 9))
    (tmp_path / "seen" / "train" / "notes.txt").write_text("no image")
    config = RunConfig(
        data={"dataset": {"name": "folder", "path": str(tmp_path / "seen"), "size": 8}},
        train={"epochs": 1},
        evaluation={"protocol": "clean"},
        measure={"targets": [], "radii": [], "steps": 1, "trajectories": 0},
    )
    robust_nc.run(config, out=tmp_path / "out", workers=1)
    assert f"{tmp_path / 'seen'}: left out 1 file: notes.txt" in capsys.readouterr().err
    (path,) = (tmp_path / "out").glob("*/*.json")
    record = read_record(path).record
    assert record.data.class_names == ("ant", "bee", "cat")
    assert not inconsistencies(read_record(path))


SCRIPT = """
import robust_nc
from robust_nc.models.heads import LinearHead

class Mine(LinearHead):
    '''A head of this script's own.'''

print("top", __name__, flush=True)
config = robust_nc.RunConfig(
    data={{"train_limit": 60, "test_limit": 20}},
    model={{"head": {head}}},
    train={{"epochs": 1}},
    evaluation={{"protocol": "clean"}},
    measure={{"targets": [], "radii": [], "steps": 1, "trajectories": 0}},
)
{guard}print(len(robust_nc.{call}))
"""


def script(folder: Path, **parts: str) -> "subprocess.CompletedProcess[str]":
    path = folder / "script.py"
    path.write_text(SCRIPT.format(**parts))
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, cwd=folder, timeout=300
    )


RUN = "run([config], out='out', workers=1)"


@pytest.mark.slow
def test_a_script_needs_no_guard_unless_a_worker_needs_its_classes(tmp_path: Path) -> None:
    plain = script(tmp_path, head="'linear'", guard="", call=RUN)
    assert plain.stdout.splitlines() == ["top __main__", "1"], plain.stderr
    own = script(tmp_path, head="Mine", guard="", call=RUN)
    assert own.stdout.splitlines()[0] == "top __main__"
    assert "put the call below `if __name__ == '__main__':`" in own.stderr
    guarded = script(tmp_path, head="Mine", guard="if __name__ == '__main__': ", call=RUN)
    assert guarded.returncode == 0, guarded.stderr
    assert guarded.stdout.splitlines()[-1] == "1"


def test_a_class_of_the_script_that_runs_does_not_run_the_script_again(tmp_path: Path) -> None:
    ran = script(tmp_path, head="Mine", guard="", call="train(config).state_dict()")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == "top __main__"
    assert len(ran.stdout.splitlines()) == 2
