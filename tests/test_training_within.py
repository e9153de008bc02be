"""State within an epoch: a training that is stopped or broken anywhere goes on from there."""

import itertools
import json
import math
import os
from collections.abc import Iterator

import pytest
import torch
from helpers_faults import full_at, told
from helpers_models import digits, same_weights, without_times
from torch import nn

from robust_nc.config import TrainConfig, read
from robust_nc.data.batches import Batches
from robust_nc.exceptions import StoppedError, StorageError, TrainingError
from robust_nc.runtime import stopping
from robust_nc.threat import Ball
from robust_nc.training.checkpoint import Checkpoints
from robust_nc.training.loop import Fitted, Trainer
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Awp, Pgd, Standard, Trades
from robust_nc.training.progress import TrainEvent, append_log, read_log
from robust_nc.types import Loss

IMAGES = digits(limit=30)
BALL = Ball("Linf", 0.1)
OBJECTIVES = {
    "standard": Standard(cross_entropy),
    "pgd": Pgd(BALL, cross_entropy, steps=1),
    "trades": Trades(BALL, cross_entropy, steps=1),
    "awp": Awp(BALL, cross_entropy, steps=1),
    "pgd-train": Pgd(BALL, cross_entropy, steps=1, bn_mode="train"),
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch) -> None:
    """Leave out what only a loss of power would show; it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True)
def no_wish() -> Iterator[None]:
    yield
    stopping.clear()


def model() -> nn.Module:
    """A small network with batch norm and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 10),
    )


def accuracy(shown: nn.Module) -> dict[str, float | None]:
    """Stand for the validation; in train mode, so that it would show what dropout draws."""
    with torch.no_grad():
        value = float(shown[1].weight.abs().mean() + torch.rand(()))
    return {"validation_clean": value % 0.5, "validation_attacked": value % 0.25}


def length(shown: nn.Module) -> dict[str, float | None]:
    return {"nc1_trace": float(shown[5].weight.detach().norm())}


def trainer(
    folder=None, *, objective="pgd", averaging=None, epochs=2, batch_size=10, **options
) -> Trainer:
    config = read(
        TrainConfig,
        {"epochs": epochs, "batch_size": batch_size, "lr": 0.05}
        | ({"averaging": averaging} if averaging else {}),
    )
    return Trainer(
        model(),
        OBJECTIVES[objective],
        Batches(IMAGES, batch_size=batch_size, device="cpu", augment=("crop",)),
        config,
        seed=0,
        checkpoints=Checkpoints(folder, {"config": 0}) if folder else None,
        **{"validate": accuracy, "probe": length, **options},
    )


class StoppedAt:
    """Stands for `stopping.wished`: false a number of times, then true."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def stopped(made: Trainer) -> bool:
    """Train, and say whether it was stopped."""
    try:
        made.fit()
    except StoppedError:
        return True
    return False


def same(one: Fitted, other: Fitted) -> bool:
    return (
        without_times(one.history) == without_times(other.history)
        and one.best_epoch == other.best_epoch
        and all(torch.equal(one.best_weights[k], other.best_weights[k]) for k in one.best_weights)
    )


def momentum(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("momentum-*"))


@pytest.mark.parametrize(
    ("objective", "averaging"),
    [
        ("pgd", None),
        ("awp", None),
        ("pgd-train", None),
        ("trades", "ema"),
        ("standard", {"name": "swa", "start": 0.5}),
    ],
)
def test_one_step_per_session_is_the_same_training(tmp_path, monkeypatch, objective, averaging):
    """So that each moment at which it can stop is one, and each state comes from another."""
    wanted = trainer(tmp_path / "whole", objective=objective, averaging=averaging)
    before = torch.random.get_rng_state()
    whole = wanted.fit()
    assert torch.equal(torch.random.get_rng_state(), before)
    sessions = 0
    while True:
        monkeypatch.setattr(stopping, "wished", StoppedAt(1))
        resumed = trainer(tmp_path / "cut", objective=objective, averaging=averaging)
        if not stopped(resumed):
            break
        sessions += 1
    assert sessions >= 6
    assert without_times(read_log(tmp_path / "cut" / "log.jsonl")) == without_times(whole.history)
    assert same(Fitted(resumed.best_weights, resumed.best_epoch, resumed.history), whole)
    assert same_weights(resumed.model, wanted.model)
    assert momentum(tmp_path / "cut") == momentum(tmp_path / "whole")


class Counting:
    """An objective that counts its steps, and does something at one of them."""

    best_by = "validation_attacked"

    def __init__(self, at: int = -1, then=lambda: None) -> None:
        self.steps = 0
        self.at, self.then = at, then

    def __call__(self, model, images, labels, *, seed, ids) -> Loss:
        self.steps += 1
        if self.steps == self.at:
            self.then()
        return OBJECTIVES["pgd"](model, images, labels, seed=seed, ids=ids)


class TestSaves:
    def test_steps_that_are_saved_are_not_computed_again(self, tmp_path):
        def fault() -> None:
            raise RuntimeError("a fault")

        broken = trainer(tmp_path, save_seconds_within=0.0)
        broken.objective = Counting(6, fault)
        with pytest.raises(RuntimeError, match="a fault"):
            broken.fit()
        about = json.loads((tmp_path / "last.json").read_text())
        assert (about["epoch"], about["step"], about["within"]["batches"]) == (1, 5, 2)
        resumed, whole = trainer(tmp_path), trainer()
        resumed.objective = Counting()
        assert same(resumed.fit(), whole.fit())
        assert resumed.objective.steps == 1
        assert same_weights(resumed.model, whole.model)

    def test_a_wish_is_heeded_after_the_step(self, tmp_path):
        asked = trainer(tmp_path, save_seconds=math.inf)
        asked.objective = Counting(2, stopping.wish)
        with pytest.raises(StoppedError, match="the same command goes on from there"):
            asked.fit()
        assert json.loads((tmp_path / "last.json").read_text())["step"] == 2
        with pytest.raises(StoppedError):  # the wish still stands: nothing is begun
            trainer(tmp_path).fit()
        assert json.loads((tmp_path / "last.json").read_text())["step"] == 2

    def test_a_part_of_the_end_that_heeds_the_wish_is_done_again(self, tmp_path):
        def long_validation(shown: nn.Module) -> dict[str, float | None]:
            stopping.wish()
            stopping.heed()
            raise AssertionError

        with pytest.raises(StoppedError):
            trainer(tmp_path, validate=long_validation).fit()
        stopping.clear()
        resumed = trainer(tmp_path)
        resumed.objective = Counting()
        assert same(resumed.fit(), trainer().fit())
        assert resumed.objective.steps == 3

    def test_without_checkpoints_it_says_that_nothing_is_kept(self):
        asked = trainer()
        asked.objective = Counting(2, stopping.wish)
        with pytest.raises(StoppedError, match="keeps no checkpoints, so it begins anew"):
            asked.fit()

    def test_a_finished_training_writes_no_more(self, tmp_path, monkeypatch):
        wanted = trainer(tmp_path).fit()
        names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
        assert names == ["best", "best.json", "last", "last.json", "log.jsonl", "momentum"]
        with full_at(0) as operations:
            assert trainer(tmp_path).fit().history == wanted.history
        assert not operations.failed

    def test_damage_costs_the_steps_since_the_state_before(self, tmp_path):
        broken = trainer(tmp_path, save_seconds_within=0.0)
        broken.objective = Counting(6, stopping.wish)
        with pytest.raises(StoppedError):
            broken.fit()
        stopping.clear()
        last = tmp_path / json.loads((tmp_path / "last.json").read_text())["tensors"]["name"]
        last.write_bytes(last.read_bytes()[:100])
        events: list[TrainEvent] = []
        resumed = trainer(tmp_path, report=events.append)
        resumed.objective = Counting()
        assert same(resumed.fit(), trainer().fit())
        assert resumed.objective.steps == 1
        assert "(the last checkpoint was damaged; went on from the one before)" in {
            event.note for event in events
        }
        (told,) = json.loads((tmp_path / "last.json").read_text())["recovered"]
        assert f"{last.name} was damaged" in told
        assert "epoch 2, step 5" in told


class TestNotFinite:
    def broken(self, folder, at: int, **options) -> Trainer:
        """Plant a NaN into the weights, which the next loss shows."""
        made = trainer(folder, **options)

        def plant() -> None:
            with torch.no_grad():
                made.model[1].weight[0, 0] = math.nan

        made.objective = Counting(at, plant)
        return made

    def test_the_step_and_the_state_that_is_kept_are_named(self, tmp_path):
        with pytest.raises(TrainingError) as caught:
            self.broken(tmp_path, 5, save_seconds_within=0.0).fit()
        message = str(caught.value)
        assert "is not finite at epoch 2, step 5; lower train.lr" in message
        assert f"the last good state, of epoch 2, step 4, is kept in {tmp_path}: " in message
        snapshot = Checkpoints(tmp_path, {"config": 0}).load()
        assert snapshot.step == 4
        assert all(bool(tensor.isfinite().all()) for tensor in snapshot.weights.values())
        assert same(trainer(tmp_path).fit(), trainer().fit())

    def test_without_a_state_it_says_so(self, tmp_path):
        for folder in (None, tmp_path):
            with pytest.raises(TrainingError, match="; no state was saved before"):
                self.broken(folder, 2).fit()

    def test_a_wish_saves_nothing_that_is_not_finite(self, tmp_path):
        made = trainer(tmp_path)

        def plant() -> None:
            stopping.wish()
            made.optimizer.param_groups[0]["params"][0].data[0, 0] = math.inf

        made.objective = Counting(2, plant)
        with pytest.raises(TrainingError, match="not finite at epoch 1, step 2"):
            made.fit()
        assert not list(tmp_path.glob("*.json"))


def test_a_full_disk_at_a_write_of_a_training_is_told_and_made_good(tmp_path):
    """At every fifth write; those of checkpoints alone are tried one by one elsewhere."""
    short = {"epochs": 1, "save_seconds_within": 0.0, "batch_size": 15}
    wanted = trainer(**short).fit()
    for until in itertools.count(0, 5):
        folder = tmp_path / str(until)
        with full_at(until) as operations, told():
            trainer(folder, **short).fit()
        assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
        assert same(trainer(folder, **short).fit(), wanted)
        if not operations.failed:
            break
    assert until > 60


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    append_log(path, {"epoch": 1})
    opened = type(path).open

    def half(place, *args, **options):
        file = opened(place, *args, **options)

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, text: str) -> None:
                file.write(text[: len(text) // 2])
                file.flush()
                raise OSError(28, "No space left on device")

        return Full()

    monkeypatch.setattr(type(path), "open", half)
    with pytest.raises(StorageError, match="No space left"):
        append_log(path, {"epoch": 2})
    monkeypatch.undo()
    append_log(path, {"epoch": 2})
    assert read_log(path) == [{"epoch": 1}, {"epoch": 2}]
