"""The training loop: resume to the bit, choice of `best`, errors, options, schedules, progress."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_models import (
    StoppedError,
    digits,
    resumed_to_the_bit,
    same_weights,
    small_config,
    small_model,
    small_run,
    stop_after,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robust_nc
from robust_nc.config import Component, TrainConfig, build, plain, read
from robust_nc.data.base import Split
from robust_nc.data.batches import Batches
from robust_nc.exceptions import CheckpointError, ConfigError, InputError
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.moments import Moments
from robust_nc.registry import SCHEDULES
from robust_nc.threat import Ball
from robust_nc.training.loop import Trainer
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Pgd, Standard
from robust_nc.training.progress import TrainEvent, read_log
from robust_nc.training.run import load_classifier, train
from robust_nc.training.schedule import Constant, Cosine, OneCycle, Piecewise
from robust_nc.training.validation import CollapseProbe, Validator, evenly_chosen

PGD = {"name": "pgd", "steps": 2}


def trainer_of(model: nn.Module, split: Split, *, epochs: int = 2, **options) -> Trainer:
    config = TrainConfig(epochs=epochs, batch_size=20, **options.pop("train", {}))
    batches = Batches(split, batch_size=20, device="cpu")
    return Trainer(model, Standard(cross_entropy), batches, config, seed=0, **options)


class TestResume:
    def test_a_resumed_training_equals_one_that_never_stopped(self, tmp_path):
        config = small_config(
            objective={"name": "trades", "steps": 1},
            epochs=3,
            train={"nesterov": True, "channels_last": True},
        )
        resumed = resumed_to_the_bit(config, tmp_path, epochs=(1, 2))
        assert read_log(tmp_path / "cut" / "log.jsonl") == resumed.history
        momenta = [next((tmp_path / d).glob("momentum-*")).name for d in ("whole", "cut")]
        assert momenta[0] == momenta[1]

    def test_epochs_after_the_last_save_are_trained_again(self, tmp_path):
        config = small_config(epochs=3)
        with pytest.raises(StoppedError):
            small_run(config, tmp_path, save_seconds=0.0, report=stop_after(1))
        with pytest.raises(StoppedError):
            small_run(config, tmp_path, save_seconds=math.inf, report=stop_after(2))
        assert len(read_log(tmp_path / "log.jsonl")) == 2
        resumed = small_run(config, tmp_path)
        assert [row["epoch"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
        assert same_weights(resumed.last, small_run(config).last)

    def test_another_configuration_is_refused_but_not_how_a_model_is_judged(self, tmp_path):
        config = small_config(epochs=1)
        small_run(config, tmp_path)
        with pytest.raises(CheckpointError, match=r"train.epochs \(1 there, 2 here\)"):
            small_run(small_config(epochs=2), tmp_path)
        judged = plain(config) | {"evaluation": {"protocol": "clean"}}
        assert len(small_run(read(type(config), judged), tmp_path).history) == 1


DEFENSE = Pgd(Ball("Linf", 0.1), cross_entropy, steps=1)


class TestBest:
    def run_with(self, scores, *, objective=DEFENSE, **options):
        """Train with given (attacked, clean) validation accuracies per epoch."""
        told = iter(scores)

        def validate(model: nn.Module) -> dict[str, float | None]:
            attacked, clean = next(told)
            return {"validation_clean": clean, "validation_attacked": attacked}

        model = small_model()
        epochs = options.pop("epochs", len(scores))
        seen: list[dict[str, torch.Tensor]] = []

        def probe(model: nn.Module) -> dict[str, float | None]:
            seen.append({k: v.clone() for k, v in model.state_dict().items()})
            return {}

        trainer = trainer_of(
            model, digits(), epochs=epochs, validate=validate, probe=probe, **options
        )
        trainer.objective = objective
        fitted = trainer.fit()
        chosen = seen[fitted.best_epoch - 1]
        assert all(torch.equal(fitted.best_weights[name], chosen[name]) for name in chosen)
        return fitted.best_epoch

    def test_attacked_then_clean_accuracy_then_the_later_epoch_decide(self):
        assert self.run_with([(0.1, 0.9), (0.3, 0.5), (0.2, 0.9)]) == 2
        assert self.run_with([(0.0, 0.5), (0.0, 0.8), (0.0, 0.7)]) == 2
        assert self.run_with([(0.1, 0.8), (0.1, 0.8), (0.0, 0.9)]) == 2

    def test_standard_training_is_chosen_on_clean_images(self):
        scores = [(0.3, 0.5), (0.1, 0.9), (0.2, 0.9)]
        standard = Standard(cross_entropy)
        assert self.run_with(scores, objective=standard) == 3
        assert self.run_with([(0.3, 0.9), (0.1, 0.9)], objective=standard) == 2
        assert self.run_with(scores) == 1

    def test_only_validated_epochs_can_be_best(self):
        every_two = {"train": {"validate_every": 2}}
        assert self.run_with([(0.5, 0.5), (0.1, 0.5), (0.4, 0.5)], epochs=5, **every_two) == 2

    def test_best_comes_from_held_out_train_images(self):
        trained = small_run(small_config(epochs=3))
        held_out, everything = trained.validation, digits("train", 200)
        right = trained.best(held_out.images).argmax(1) == held_out.labels
        told = trained.history[trained.best_epoch - 1]["validation_clean"]
        assert told == pytest.approx(float(right.float().mean()))
        assert not set(held_out.ids.tolist()) & set(trained.train.ids.tolist())
        assert len(held_out.ids) + len(trained.train.ids) == 200
        assert torch.equal(held_out.labels, everything.labels[held_out.ids])
        scores = [(row["validation_clean"], row["epoch"]) for row in trained.history]
        assert trained.best_epoch == max(scores)[1]

    def test_without_validation_the_last_epoch_is_best(self):
        values = plain(small_config(epochs=2))
        values["data"]["validation"] = 0.0
        trained = small_run(read(robust_nc.RunConfig, values))
        assert trained.best_epoch == 2
        assert same_weights(trained.best, trained.last)
        assert len(trained.train.labels) == 200


class TestWatch:
    def test_validation_counts_what_is_right_clean_and_attacked(self):
        model, split = small_model(), digits("train", 100)
        flags = [module.training for module in model.modules()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found = Validator(split, Ball("Linf", 0.2), seed=0, device="cpu")(model)
        assert [module.training for module in model.modules()] == flags
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
        clean = float((model.eval()(split.images).argmax(1) == split.labels).float().mean())
        assert found["validation_clean"] == pytest.approx(clean)
        assert found["validation_attacked"] <= found["validation_clean"]
        nothing = Validator(split, Ball("Linf", 0.0), seed=0, device="cpu")(model)
        assert nothing["validation_attacked"] == nothing["validation_clean"]

    def test_the_probe_measures_the_penultimate_tap_in_eval_mode(self):
        model, split = small_model(), digits("train", 100)
        found = CollapseProbe(split, device="cpu")(model)
        assert model.training
        features = model.eval().tapped(split.images).features["penultimate"]
        moments = Moments(10, features.shape[1])
        moments.update(features, split.labels)
        wanted = collapse(moments)
        assert found["nc1_trace"] == pytest.approx(wanted.nc1_trace, rel=1e-5)
        assert found["nc2_angle"] == pytest.approx(wanted.nc2_angle, rel=1e-5)

    def test_spread_takes_examples_of_all_classes_where_they_are_sorted(self):
        labels = torch.arange(10).repeat_interleave(20)
        split = Split(torch.zeros(200, 1, 2, 2), labels, torch.arange(200))
        assert evenly_chosen(split, 50).labels.bincount().tolist() == [5] * 10
        assert evenly_chosen(split, 200) is split


class TestErrors:
    def test_sizes_that_contradict_the_data_are_refused(self):
        for name, value in (("num_classes", 7), ("image_shape", [3, 32, 32])):
            values = plain(small_config())
            values["model"][name] = value
            with pytest.raises(ConfigError, match=f"model.{name}"):
                small_run(read(robust_nc.RunConfig, values))

    def test_what_is_no_configuration_is_refused(self):
        with pytest.raises((InputError, TypeError), match="RunConfig"):
            train({"train": {}})

    def test_nesterov_needs_momentum(self):
        with pytest.raises(ConfigError, match="nesterov"):
            small_run(small_config(train={"nesterov": True, "momentum": 0.0}))


class TestOptions:
    def test_the_optimizer_is_sgd_with_weight_decay_on_everything(self):
        split = digits("train", 40)
        model, wanted = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
        wanted.load_state_dict(model.state_dict())
        options = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, "schedule": "constant"}
        config = read(TrainConfig, {"epochs": 3, "batch_size": 20, **options})
        batches = Batches(split, batch_size=20, device="cpu")
        Trainer(model, Standard(cross_entropy), batches, config, seed=0).fit()
        velocity = [torch.zeros_like(parameter) for parameter in wanted.parameters()]
        for epoch in range(3):
            for images, labels, _ in batches.epoch(epoch):
                wanted.zero_grad()
                cross_entropy(wanted(images), labels).mean().backward()
                with torch.no_grad():
                    for parameter, speed in zip(wanted.parameters(), velocity, strict=True):
                        speed.mul_(0.5).add_(parameter.grad + 0.1 * parameter)
                        parameter -= 0.1 * speed
        for found, expected in zip(model.parameters(), wanted.parameters(), strict=True):
            assert torch.allclose(found, expected, atol=1e-6)

    def test_measures_come_when_they_are_due_and_at_the_end(self):
        due = {"validate_every": 2, "collapse_every": 3}
        history = small_run(small_config(epochs=5, train=due)).history
        assert [row["epoch"] for row in history if "validation_clean" in row] == [2, 4, 5]
        assert [row["epoch"] for row in history if "nc1_trace" in row] == [3, 5]

    def test_no_epochs_give_the_initial_model(self, tmp_path):
        trained = small_run(small_config(epochs=0), tmp_path)
        assert trained.history == []
        assert same_weights(trained.best, small_model())
        assert not trained.best.training
        assert same_weights(load_classifier(tmp_path), trained.best)

    @pytest.mark.parametrize(
        "objective",
        ["standard", PGD | {"bn_mode": "train"}, {"name": "trades", "steps": 2}],
        ids=["standard", "pgd", "trades"],
    )
    def test_half_precision_learns_as_well(self, objective):
        config = small_config(objective=objective, epochs=2, train={"precision": "bf16"})
        trained = small_run(config)
        start = small_model().state_dict()
        for name, parameter in trained.last.named_parameters():
            assert parameter.dtype == torch.float32
            assert not torch.equal(parameter, start[name]), name


def in_a_fresh_process(code: str, **environment: str) -> str:
    """Run code without the shape checks of pytest, which torch.compile cannot see through."""
    search = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", search + "from helpers_models import *\n" + code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
class TestCompile:
    CODE = """
pgd = {"name": "pgd", "steps": 2}
for options in ({}, {"compile": True}):
    trained = small_run(small_config(objective=pgd, train=options))
    print("loss", *[row["train_loss"] for row in trained.history])
    print("keys", *trained.last.state_dict())
"""

    def test_a_compiled_training_is_the_same_training(self, tmp_path):
        out = in_a_fresh_process(self.CODE, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
        losses, keys = (
            [line.split()[1:] for line in out.splitlines() if line.startswith(start)]
            for start in ("loss", "keys")
        )
        assert len(losses) == 2, out
        assert [float(x) for x in losses[1]] == pytest.approx([float(x) for x in losses[0]], 1e-3)
        assert keys[0] == keys[1]

    def test_without_a_compiler_the_remedy_is_named(self, tmp_path):
        out = in_a_fresh_process(
            self.CODE, TORCHINDUCTOR_CACHE_DIR=str(tmp_path), CXX=str(tmp_path / "none")
        )
        assert "TrainingError: torch.compile failed" in out
        assert "set train.compile = false" in out


class TestResults:
    def test_a_model_is_the_best_that_was_trained_and_stored(self, tmp_path):
        config = small_config(epochs=3)
        trained, model = small_run(config, tmp_path), robust_nc.train(config)
        assert not any(module.training for module in model.modules())
        assert same_weights(model, trained.best)
        assert same_weights(load_classifier(tmp_path), trained.best)
        assert same_weights(load_classifier(tmp_path, which="last"), trained.last)
        with pytest.raises(CheckpointError, match="no checkpoint"):
            load_classifier(tmp_path / "elsewhere")

    def test_the_log_has_a_row_per_epoch_and_events_end_at_the_last_step(self, tmp_path):
        events: list[TrainEvent] = []
        config = small_config(objective=PGD, epochs=2)
        trained = small_run(config, tmp_path, report=events.append)
        rows = read_log(tmp_path / "log.jsonl")
        assert rows == trained.history
        wanted = {
            "epoch",
            "lr",
            "train_loss",
            "train_clean",
            "train_attacked",
            "validation_clean",
            "validation_attacked",
            "nc1_trace",
            "nc2_angle",
            "train_accuracy",
            "seconds",
            "images_per_second",
        }
        assert all(row.keys() == wanted for row in rows)
        assert all(row["train_clean"] is None for row in rows)
        assert events[-1].epoch == 2
        assert events[-1].step == events[-1].steps == 8
        assert events[-1].share == 1
        assert events[-1].attacked is not None
        assert events[-1].clean is None


# Schedules, against closed forms

PROGRESS = st.floats(0, 1, exclude_max=True)


@settings(deadline=None, max_examples=25)
@given(PROGRESS, st.floats(1e-3, 10))
def test_every_schedule_is_between_nothing_and_the_base_rate(progress, base):
    for name in SCHEDULES.names():
        schedule = build(SCHEDULES, Component(name=name))
        assert 0 <= schedule.lr_at(progress, base, epochs=10) <= base * (1 + 1e-12)


@settings(deadline=None, max_examples=25)
@given(PROGRESS)
def test_cosine_is_half_a_cosine(progress):
    wanted = 0.1 * (1 + math.cos(math.pi * progress)) / 2
    assert Cosine().lr_at(progress, 0.1, epochs=1) == pytest.approx(wanted)
    assert Constant().lr_at(progress, 0.1, epochs=1) == 0.1


def test_cosine_warms_up_linearly_and_ends_at_its_final_share():
    schedule = Cosine(warmup=0.2, final=0.1)
    found = [schedule.lr_at(p, 1.0, epochs=1) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert found == pytest.approx([0, 0.5, 1, 0.55, 0.1])


def test_one_cycle_is_that_of_torch():
    steps = 4001
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=steps, pct_start=0.3, div_factor=25
    )
    optimizer.step()
    schedule = OneCycle(peak=0.3, start=1 / 25, final=1 / 25 / 1e4)
    for step in range(steps - 1):
        # torch counts to the last step, this schedule to the end of it.
        found = schedule.lr_at(step / (steps - 1), 0.1, epochs=1)
        assert found == pytest.approx(oracle.get_last_lr()[0], abs=1e-4)
        oracle.step()


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 7, 391])
def test_piecewise_drops_on_the_first_step_of_its_epochs(steps_per_epoch):
    epochs = 400
    total = epochs * steps_per_epoch
    schedule = Piecewise(milestones=(100.0, 150.0))
    for epoch, wanted in [(100, 0.1), (150, 0.01)]:
        first = epoch * steps_per_epoch
        at = [schedule.lr_at(step / total, 1.0, epochs=epochs) for step in (first - 1, first)]
        assert at == pytest.approx([wanted * 10, wanted])


def test_piecewise_takes_shares_and_epochs():
    shares, in_epochs = Piecewise(milestones=(0.25, 0.5)), Piecewise(milestones=(5.0, 10.0))
    for step in range(100):
        progress = step / 100
        found = shares.lr_at(progress, 1.0, epochs=20)
        assert found == in_epochs.lr_at(progress, 1.0, epochs=20)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("piecewise", {"milestones": [0.0]}),
        ("piecewise", {"factor": 0.0}),
        ("cosine", {"warmup": 1.0}),
        ("one_cycle", {"peak": -0.1}),
        ("one_cycle", {"top": 0.1}),
    ],
)
def test_wrong_options_are_refused(name, options):
    with pytest.raises(ConfigError):
        build(SCHEDULES, Component(name=name, options=options))


def test_milestones_come_from_a_table():
    part = Component(name="piecewise", options={"milestones": [100, 0.5]})
    assert build(SCHEDULES, part) == Piecewise(milestones=(100.0, 0.5))
