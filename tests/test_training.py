"""The training loop: resume to the bit, choice of `best`, errors, options, progress."""

import json
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
from torch import nn

import robust_nc
from robust_nc.config import TrainConfig, plain, read
from robust_nc.data.base import Split
from robust_nc.data.batches import Batches
from robust_nc.exceptions import CheckpointError, ConfigError, InputError, TrainingError
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.moments import Moments
from robust_nc.threat import Ball
from robust_nc.training import validation as watch
from robust_nc.training.checkpoint import Checkpoints
from robust_nc.training.epoch_meter import Meter
from robust_nc.training.loop import Trainer
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Pgd, Standard
from robust_nc.training.progress import TrainEvent, read_log
from robust_nc.training.run import load_classifier, train
from robust_nc.training.validation import CollapseProbe, Validator, evenly_chosen
from robust_nc.types import Loss

PGD = {"name": "pgd", "steps": 2}


def trainer_of(model: nn.Module, split: Split, *, epochs: int = 2, **options) -> Trainer:
    config = TrainConfig(epochs=epochs, batch_size=20, **options.pop("train", {}))
    batches = Batches(split, batch_size=20, device="cpu")
    return Trainer(model, Standard(cross_entropy), batches, config, seed=0, **options)


class TestResume:
    @pytest.mark.parametrize("objective", ["standard", PGD, {"name": "trades", "steps": 2}])
    def test_a_resumed_training_equals_one_that_never_stopped(self, tmp_path, objective):
        config = small_config(
            objective=objective, epochs=4, train={"nesterov": True, "channels_last": True}
        )
        resumed = resumed_to_the_bit(config, tmp_path, epochs=(1, 3))
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

    def test_a_finished_training_is_not_repeated(self, tmp_path):
        config = small_config(epochs=2)
        first = small_run(config, tmp_path)
        events: list[TrainEvent] = []
        again = small_run(config, tmp_path, report=events.append)
        assert events == []
        assert again.history == first.history
        assert same_weights(again.best, first.best)

    def test_dropout_resumes_to_the_bit_and_leaves_the_global_generator(self, tmp_path):
        def model() -> nn.Module:
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

        whole = model()
        torch.manual_seed(7)
        before = torch.random.get_rng_state()
        trainer_of(whole, digits(), epochs=3).fit()
        assert torch.equal(torch.random.get_rng_state(), before)
        with pytest.raises(StoppedError):
            trainer_of(
                model(),
                digits(),
                epochs=3,
                checkpoints=Checkpoints(tmp_path, {}),
                save_seconds=0.0,
                report=stop_after(1),
            ).fit()
        resumed = model()
        trainer_of(resumed, digits(), epochs=3, checkpoints=Checkpoints(tmp_path, {})).fit()
        assert same_weights(resumed, whole)

    def test_another_configuration_is_refused(self, tmp_path):
        small_run(small_config(epochs=1), tmp_path)
        with pytest.raises(CheckpointError, match=r"train.epochs \(1 there, 2 here\)"):
            small_run(small_config(epochs=2), tmp_path)

    def test_how_a_model_is_judged_is_no_other_configuration(self, tmp_path):
        config = small_config(epochs=1)
        small_run(config, tmp_path)
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

    def test_highest_attacked_accuracy_wins(self):
        assert self.run_with([(0.1, 0.9), (0.3, 0.5), (0.2, 0.9)]) == 2

    def test_clean_accuracy_then_the_later_epoch_decide_between_equals(self):
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

    def test_best_comes_from_held_out_train_images(self, monkeypatch):
        seen: list[Split] = []
        made = watch.Validator.__init__

        def spy(self, held_out, ball, **options):
            seen.append(held_out)
            made(self, held_out, ball, **options)

        monkeypatch.setattr(watch.Validator, "__init__", spy)
        trained = small_run(small_config(epochs=3))
        (held_out,) = seen
        everything = digits("train", 200)
        assert torch.equal(held_out.ids, trained.validation.ids)
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
    @pytest.mark.parametrize("objective", ["standard", PGD, {"name": "trades", "steps": 2}])
    def test_a_loss_that_is_not_finite_names_epoch_and_step(self, tmp_path, objective):
        config = small_config(
            objective=objective, epochs=3, train={"lr": 1e30, "schedule": "constant"}
        )
        with pytest.raises(TrainingError, match=r"not finite at epoch 1, step [234]; lower"):
            small_run(config, tmp_path, save_seconds=0.0)
        assert not (tmp_path / "last.json").exists()

    def test_the_last_good_checkpoint_is_kept(self, tmp_path):
        schedule = {"name": "piecewise", "milestones": [2], "factor": 1e30}
        config = small_config(epochs=4, train={"lr": 0.05, "schedule": schedule})
        with pytest.raises(TrainingError, match="epoch 3"):
            small_run(config, tmp_path, save_seconds=0.0)
        assert json.loads((tmp_path / "last.json").read_text())["epoch"] == 2
        weights = load_classifier(tmp_path, which="last").state_dict().values()
        assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in weights)

    def test_the_meter_names_the_first_bad_step(self):
        def run(losses: list[float]) -> None:
            meter = Meter(epoch=2, first_step=100)
            for loss in losses:
                meter.add({"loss": torch.tensor(loss)}, 1)

        run([1.0] * 120)
        with pytest.raises(TrainingError, match="epoch 2, step 161;"):
            run([1.0] * 60 + [math.nan] + [1.0] * 53)

    def test_weights_that_are_not_finite_are_never_saved(self, tmp_path):
        def steep(model, images, labels, *, seed, ids) -> Loss:
            value = 1e35 * model(images).mean()
            return Loss(value, {"loss": value.detach()})

        trainer = trainer_of(
            small_model(), digits("train", 20), checkpoints=Checkpoints(tmp_path, {})
        )
        trainer.objective = steep
        trainer.config = TrainConfig(lr=1e10, epochs=2)
        with pytest.raises(TrainingError, match="a weight is not finite at epoch 1, step 1;"):
            trainer.fit()
        assert not (tmp_path / "last.json").exists()

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

    def test_the_schedule_is_followed(self):
        schedule = {"name": "piecewise", "milestones": [1, 2]}
        trained = small_run(small_config(epochs=3, train={"lr": 0.1, "schedule": schedule}))
        rates = [row["lr"] for row in trained.history]
        assert rates == pytest.approx([0.1, 0.01, 0.001])

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

    @pytest.mark.parametrize("objective", ["standard", PGD, {"name": "trades", "steps": 2}])
    @pytest.mark.parametrize("bn_mode", ["eval", "train", "frozen"])
    def test_half_precision_learns_as_well(self, objective, bn_mode):
        if isinstance(objective, dict):
            objective = objective | {"bn_mode": bn_mode}
        config = small_config(objective=objective, epochs=2, train={"precision": "bf16"})
        trained = small_run(config)
        start = small_model().state_dict()
        for name, parameter in trained.last.named_parameters():
            assert parameter.dtype == torch.float32
            assert not torch.equal(parameter, start[name]), name

    def test_two_heads_of_one_seed_see_the_same_batches(self):
        orders = []
        for head in ("linear", "etf"):
            values = plain(small_config(epochs=1))
            values["model"]["head"] = {"name": head, "options": {}}
            trained = small_run(read(robust_nc.RunConfig, values))
            orders.append(trained.train.ids)
        assert torch.equal(*orders)


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
    def test_train_returns_the_best_model_in_eval_mode(self):
        config = small_config(epochs=2)
        model = robust_nc.train(config)
        assert not any(module.training for module in model.modules())
        assert same_weights(model, small_run(config).best)

    def test_a_stored_model_is_the_one_that_was_trained(self, tmp_path):
        trained = small_run(small_config(epochs=3), tmp_path)
        assert same_weights(load_classifier(tmp_path), trained.best)
        assert same_weights(load_classifier(tmp_path, which="last"), trained.last)
        with pytest.raises(CheckpointError, match="no checkpoint"):
            load_classifier(tmp_path / "elsewhere")

    def test_the_log_has_a_row_per_epoch(self, tmp_path):
        trained = small_run(small_config(objective=PGD, epochs=2), tmp_path)
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

    def test_events_end_at_the_last_step(self):
        events: list[TrainEvent] = []
        small_run(small_config(objective=PGD, epochs=2), report=events.append)
        assert [event.epoch for event in events][-1] == 2
        assert events[-1].step == events[-1].steps == 8
        assert events[-1].share == 1
        assert events[-1].attacked is not None
        assert events[-1].clean is None


def test_an_event_is_a_line_without_what_is_unknown():
    event = TrainEvent(1, 2, 5, 10, 0.5, 0.75, None, 900.0, 61.0)
    assert str(event) == "epoch 1/2  loss 0.500  clean 75.0 %  900 img/s  1:01 left"
    assert str(TrainEvent(1, 2, 5, 10)) == "epoch 1/2"
