"""A cell with wrong labels, a long tail, a tree, corruptions and a weaker protocol beside."""

import math
from pathlib import Path

import pandas as pd
import pytest

from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.suite import read_suite
from robust_nc.record import Record, unpack_flags
from robust_nc.record.folder import read_all
from robust_nc.report.board.table import leaderboard
from robust_nc.runtime.progress import no_report

SUITE = """
name = "parts"
[base.data]
dataset = "digits"
train_limit = 600
validation = 0.2
imbalance = { name = "exponential", factor = 10.0 }
noise = { name = "symmetric", rate = 0.5 }
[base.model]
backbone = { name = "small_cnn", width = 8 }
head = "haframe"
neck = "transform"
[base.train]
epochs = 2
batch_size = 50
loss = "haframe"
averaging = { name = "ema", decay = 0.5 }
[base.threat]
eps = 0.1
[base.evaluation]
protocol = "pgd"
beside = "fgsm"
examples = 60
[base.measure]
train_examples = 150
test_examples = 60
steps = 2
targets = ["severest"]
radii = []
trajectories = 0
corruptions = ["contrast"]
severities = [5]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Record, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "parts.toml").write_text(SUITE)
    (cell,) = read_suite(str(folder / "parts.toml")).cells
    run_cell(cell, "parts", folder / "out", None, report=no_report)
    (stored,) = read_all(folder / "out")
    return folder / "out", stored.record, stored.rows()


def test_the_record_tells_what_training_saw(made) -> None:
    _, record, _ = made
    facts = record.data
    assert facts.noise == pytest.approx(0.45)
    assert facts.train_examples < 300
    share = facts.wrong_labels / facts.train_examples
    assert abs(share - 0.45) < 4 * math.sqrt(0.45 * 0.55 / facts.train_examples)


def test_scores_tell_the_weaker_verdict_and_the_shots(made) -> None:
    out, record, _ = made
    scores = record.scores
    assert scores["robust_beside"].value >= scores["robust"].value
    groups = [name.removeprefix("clean_") for name in scores if name.startswith("clean_")]
    groups = [name for name in groups if name in {"many", "medium", "few"}]
    assert sum(scores[f"clean_{name}"].n for name in groups) == 60
    right = sum(scores[f"clean_{name}"].value * scores[f"clean_{name}"].n for name in groups)
    assert right == pytest.approx(unpack_flags(record.verdict.clean_correct).sum())
    row = leaderboard(out).iloc[0]
    assert row["beside"] == "fgsm"
    assert row["gap"] == pytest.approx(scores["robust_beside"].value - scores["robust"].value)


def test_rows_tell_all_that_was_measured(made) -> None:
    _, record, rows = made
    output = rows[rows["tap"] == "output"]
    verdicts = output[output["measure"] == "verdict"].set_index(["condition", "attack", "note"])
    told = {
        ("clean", "", "best"): "clean",
        ("attacked", "pgd", "last"): "robust_last",
        ("attacked", "fgsm", "best"): "robust_beside",
    }
    for place, score in told.items():
        value = record.scores[score].value
        assert verdicts["value"][place] == pytest.approx(value, rel=1e-6)
    severity = output[output["measure"] == "mistake_severity"]
    assert {"clean", "attacked", "severest"} <= set(severity["condition"])
    assert len(rows[rows["measure"] == "corruption_accuracy"]) == 1
    for name in ("memorised_way", "dilation", "memorised"):
        assert rows[rows["measure"] == name]["epoch"].tolist() == [1, 2]
    assert (rows[rows["measure"] == "memorised"]["n"] == record.data.wrong_labels).all()


def test_training_rows_go_by_the_right_labels_and_know_the_wrong_ones(made) -> None:
    _, _, rows = made
    clean = (rows["condition"] == "clean") & (rows["tap"] == "output") & (rows["epoch"] == -1)
    fitted = rows[clean & (rows["split"] == "train") & (rows["measure"] == "accuracy")]
    assert fitted["n"].tolist() == [150]
    last = (rows["measure"] == "accuracy") & (rows["split"] == "train") & (rows["epoch"] == 2)
    assert abs(fitted["value"].item() - rows[last]["value"].item()) < 0.2  # both by right labels
    leaped = rows[(rows["tap"] == "penultimate") & (rows["condition"] == "attacked")]
    leaped = leaped[leaped["split"] == "train"].set_index("measure")
    wrong, right = (leaped.loc[f"leap_rate_{name}"] for name in ("wrong", "right"))
    assert wrong["n"] + right["n"] == 150
    whole = leaped.loc["leap_rate"]["value"] * 150
    assert wrong["value"] * wrong["n"] + right["value"] * right["n"] == pytest.approx(whole)
    assert leaped.loc["leap_rate_memorised"]["n"] <= wrong["n"]
    test = rows[(rows["split"] == "test") & (rows["measure"] == "leap_rate_wrong")]
    assert test.empty


def test_an_attack_of_ones_own_does_not_join_the_weaker_protocol(tmp_path: Path) -> None:
    """Else the gap would leave out what that attack alone breaks."""
    text = SUITE.replace('protocol = "pgd"', 'protocol = "fgsm"')
    text = text.replace(
        'beside = "fgsm"', 'beside = "clean"\nattack = { name = "pgd", steps = 20 }'
    )
    text = text.replace('corruptions = ["contrast"]', "").replace(
        'targets = ["severest"]', "targets = []"
    )
    (tmp_path / "own.toml").write_text(text)
    (cell,) = read_suite(str(tmp_path / "own.toml")).cells
    run_cell(cell, "own", tmp_path, None, report=no_report)
    scores = read_all(tmp_path)[0].record.scores
    assert scores["robust_beside"].value == scores["clean"].value > scores["robust"].value
