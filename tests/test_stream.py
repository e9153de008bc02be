"""`train.stream`: collapse of what the steps of a training saw, against the same by hand."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from helpers_models import digits, small_config, small_model, small_run, without_times

from robust_nc.config import TrainConfig, read
from robust_nc.data.batches import Batches
from robust_nc.data.load import dataset_info
from robust_nc.exceptions import ConfigError, StoppedError
from robust_nc.geometry.collapse import measure_collapse
from robust_nc.pipeline.cell import curve_rows
from robust_nc.record.schema import tidy
from robust_nc.report.figures.curves import measure_over_epochs
from robust_nc.runtime import stopping
from robust_nc.runtime.torch_state import stream_key
from robust_nc.threat import Ball
from robust_nc.training.checkpoint import Checkpoints
from robust_nc.training.loop import Trainer
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Objective, Pgd, Standard, Trades, logged
from robust_nc.training.run import check_training
from robust_nc.training.stream import STREAMED
from robust_nc.types import Loss

BALL, IMAGES = Ball("Linf", 0.1), digits(limit=60)
OBJECTIVES: dict[str, Objective] = {
    "standard": Standard(cross_entropy),
    "pgd": Pgd(BALL, cross_entropy, steps=2, bn_mode="frozen"),
    "trades": Trades(BALL, cross_entropy, steps=2, bn_mode="frozen"),
}


@pytest.fixture(autouse=True)
def no_wish() -> Iterator[None]:
    yield
    stopping.clear()


def trainer(objective: str, folder: Path | None = None, **train: Any) -> Trainer:
    values = {"epochs": 1, "batch_size": 60, "lr": 1e-12, "stream": True} | train
    config = read(TrainConfig, values)
    return Trainer(
        small_model(),
        OBJECTIVES[objective],
        Batches(IMAGES, batch_size=config.batch_size, device="cpu"),
        config,
        seed=0,
        checkpoints=Checkpoints(folder, {"config": 0}) if folder else None,
    )


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_it_is_the_collapse_of_the_features_of_the_step(objective: str) -> None:
    """One step of next to no length, so that the features are those of the initial weights."""
    (row,) = trainer(objective).fit().history
    model, images, labels = small_model(), IMAGES.images, IMAGES.labels
    if objective == "standard":
        model.train()
    else:
        model.eval()
        images = OBJECTIVES[objective].inner(  # type: ignore[attr-defined]
            model,
            images,
            labels,
            BALL,
            goal="maximise",
            seed=stream_key(0, "train-attack", 0),
            ids=IMAGES.ids,
        )
        assert not torch.equal(images, IMAGES.images)
    with torch.no_grad():
        features = model.tapped(images, taps=("penultimate",)).features["penultimate"]
    weight = model.head.vertices().detach()
    wanted = measure_collapse(features, labels, num_classes=10, weight=weight).measures()
    for name in STREAMED:
        assert row[f"stream_{name}"] == pytest.approx(wanted[name], rel=1e-4), name


def test_it_changes_no_weight_and_a_training_cut_anywhere_has_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 20, "lr": 0.05}
    whole = trainer("pgd", tmp_path / "whole", **options)
    history = whole.fit().history
    bare = trainer("pgd", **options, stream=False)
    bare.fit()
    assert all(
        torch.equal(value, bare.model.state_dict()[name])
        for name, value in whole.model.state_dict().items()
    )
    sessions = 0
    while True:
        cut = trainer("pgd", tmp_path / "cut", **options)
        cut.objective = Stopping(cut.objective)
        try:
            cut.fit()
        except StoppedError:
            sessions += 1
            stopping.clear()
            continue
        break
    assert sessions >= 4
    assert without_times(cut.history) == without_times(history)


class Stopping:
    """An objective that wishes for a stop at each step."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.best_by = objective, objective.best_by

    def __call__(self, *args: Any, **options: Any) -> Any:
        stopping.wish()
        return self.objective(*args, **options)


def test_rows_and_the_figure_tell_it_from_what_was_measured_anew() -> None:
    trained = small_run(small_config(train={"stream": True}))
    sizes = {"train": 10, "validation": 10, "stream": 160}
    rows = tidy([row for entry in trained.history for row in curve_rows(entry, sizes)])
    found = rows[rows["condition"] == "stream"]
    assert set(found["measure"]) == set(STREAMED)
    assert set(found["epoch"]) == {1, 2}
    assert set(found["n"]) == {160}
    named = found.assign(model="m", objective="standard", head="linear", seed=0, dataset="digits")
    ax = measure_over_epochs(named, measure="nc2_angle_w")
    told = found[found["measure"] == "nc2_angle_w"]["value"].tolist()
    assert any(list(line.get_ydata()) == pytest.approx(told) for line in ax.lines)
    plt.close("all")


class Joined:
    """An objective that passes clean and moved images in one batch, or nothing."""

    best_by = "validation_clean"

    def __init__(self, copies: int) -> None:
        self.copies = copies

    def __call__(self, model: Any, images: Any, labels: Any, *, seed: int, ids: Any) -> Loss:
        weights = sum(weight.square().sum() for weight in model.parameters())
        loss = model(torch.cat([images] * self.copies)).mean() if self.copies else weights
        return logged(loss, {})


@pytest.mark.parametrize(("copies", "told"), [(2, "120 rows"), (0, "nothing")])
def test_an_objective_that_has_no_row_for_each_image_is_told(copies: int, told: str) -> None:
    made = trainer("standard")
    made.objective = Joined(copies)
    with pytest.raises(ConfigError, match=rf"train\.stream reads .*: {told}, for 60 images"):
        made.fit()
    bare = trainer("standard", stream=False)
    bare.objective = Joined(copies)
    bare.fit()


def test_what_hides_the_head_is_refused() -> None:
    config = small_config(train={"stream": True})
    hidden = dataclasses.replace(config.train, compile=True)
    with pytest.raises(ConfigError, match=r"train\.stream reads what the head reads"):
        check_training(dataclasses.replace(config, train=hidden), dataset_info("digits"))
