"""`measure.attack`: the attack under which geometry is measured."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers_models import digits, small_model
from helpers_runner import records, write_suite

from robust_nc import Ball, Component, MeasureConfig, RunConfig, profile
from robust_nc.config import cell_id, identifying, read
from robust_nc.exceptions import ConfigError, UnknownNameError
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.finished_model import (
    AppraisalConfig,
    ModelReference,
    identifying_appraisal,
)
from robust_nc.pipeline.stages import check_cell
from robust_nc.pipeline.suite import read_suite
from robust_nc.runtime.progress import no_report

BALL = Ball("Linf", 0.1)
SIZES = {"steps": 2, "radii": (1.0,), "targets": ("cyclic", "severest"), "trajectories": 0}
TREE = torch.ones(10, 10).fill_diagonal_(0).double()


def measured(attack: Any = None) -> pd.DataFrame:
    train, test = digits("train", 30), digits("test", 20)
    found = profile(
        small_model().eval(),
        {"train": [(train.images, train.labels)], "test": [(test.images, test.labels)]},
        BALL,
        measure=MeasureConfig(attack=attack, **SIZES),
        distances=TREE,
    )
    return found.frame


def attacks(frame: pd.DataFrame) -> set[str]:
    return set(frame[frame["condition"].isin(["attacked", "sweep"])]["attack"]) - {""}


def test_the_default_named_gives_the_default_to_the_bit() -> None:
    plain = measured()
    scale = float(next(iter(attacks(plain))).split("ce/")[1].split()[0])
    assert scale > 0
    exact = profile(
        small_model().eval(),
        [(digits("train", 30).images, digits("train", 30).labels)],
        BALL,
        measure=MeasureConfig(steps=2, radii=(), targets=()),
    ).logit_scale
    named = measured(Component(name="geometry", options={"steps": 2, "scale": exact}))
    columns = [name for name in plain if name != "attack"]
    pd.testing.assert_frame_equal(plain[columns], named[columns], check_exact=True)
    assert attacks(named) == {f"geometry (steps=2, scale={exact})"}


def test_another_attack_makes_all_conditions_and_is_named() -> None:
    plain = measured()
    found = measured({"name": "gaussian"})
    assert attacks(found) == {"gaussian"}
    assert "severest targets, gaussian" in set(found["attack"])
    for condition in ("attacked", "cyclic", "severest", "sweep"):
        rows = [
            frame[(frame["condition"] == condition) & (frame["measure"] == "nc1_trace")]["value"]
            for frame in (plain, found)
        ]
        assert len(rows[0]) == len(rows[1]) > 0
        assert not rows[0].reset_index(drop=True).equals(rows[1].reset_index(drop=True)), condition
    clean = [
        frame[frame["condition"] == "clean"].reset_index(drop=True) for frame in (plain, found)
    ]
    pd.testing.assert_frame_equal(*clean, check_exact=True)


def test_names_of_cells_are_what_they_were() -> None:
    assert "attack" not in identifying(RunConfig())["measure"]
    chosen = RunConfig(measure={"attack": {"name": "apgd", "steps": 5}})
    assert identifying(chosen)["measure"]["attack"]["options"] == {"steps": 5}
    assert cell_id(chosen) != cell_id(RunConfig())
    reference = ModelReference(reference="mine.py:net", state="00")
    settings = AppraisalConfig(model=reference, measure=MeasureConfig())
    assert "attack" not in identifying_appraisal(settings)["measure"]


OWN = """
from robust_nc.attacks.pgd import PGD

def factory(*, steps: int = 1):
    return PGD(steps=steps, loss="margin")

def plain():
    attack = PGD(steps=1)
    return lambda *given, **options: attack(*given, **options)
"""


def test_an_attack_of_ones_own_is_measured_under_in_a_suite(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    table = f"attack = {{ name = '{own}:factory', steps = 2 }}"
    path = write_suite(tmp_path, "")
    path.write_text(path.read_text().replace("[base.measure]", f"[base.measure]\n{table}"))
    (cell,) = read_suite(str(path)).cells
    run_cell(cell, "tiny", tmp_path / "out", None, report=no_report)
    (record,) = records(tmp_path / "out").values()
    assert record.config["measure"]["attack"] == {"name": f"{own}:factory", "options": {"steps": 2}}


def test_what_cannot_be_measured_under_is_refused_before_anything_runs(tmp_path: Path) -> None:
    own, path = tmp_path / "own.py", write_suite(tmp_path, "")
    own.write_text(OWN)
    text = path.read_text()

    def refused(measure: str) -> str:
        path.write_text(text.replace("[base.measure]\n", f"[base.measure]\n{measure}\n"))
        with pytest.raises(ConfigError) as error:
            check_cell(read_suite(str(path)).cells[0].config, None)
        return str(error.value)

    assert "unknown attack 'pdg'; did you mean 'pgd' or 'apgd'?" in refused("attack = 'pdg'")
    assert "has no option 'stepz' (did you mean 'steps'" in refused(
        "attack = {name='pgd', stepz=3}"
    )
    lacking = f"attack = '{own}:plain'"
    path.write_text(text.replace("targets = []", "targets = ['severest']"))
    text = path.read_text()
    assert "'severest' needs an attack that counts its passes" in refused(lacking)


def test_code_that_a_strangers_record_names_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nattack = print")
    settings = read(MeasureConfig, {"attack": f"{tmp_path}/evil.py:attack", "steps": 1})
    train = digits("train", 30)
    with pytest.raises(UnknownNameError, match="code is run where you name it"):
        profile(small_model().eval(), [(train.images, train.labels)], BALL, measure=settings)
    assert not (tmp_path / "ran").exists()
