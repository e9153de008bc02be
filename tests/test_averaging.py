"""Averages of weights and the backbone's own rate: formulas, resume to the bit, what is kept."""

import json

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
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import update_bn

from robust_nc.config import TrainConfig, read
from robust_nc.data.batches import Batches
from robust_nc.exceptions import ConfigError
from robust_nc.models.classifier import Classifier
from robust_nc.models.heads import EtfHead, Head, NearestEtfHead
from robust_nc.training.loop import Trainer
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Standard
from robust_nc.training.run import load_classifier

EMA = {"name": "ema", "decay": 0.8}
SWA = {"name": "swa", "start": 0.5}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trainer_of(model: nn.Module, *, epochs: int = 4, train=None, **options) -> Trainer:
    values = {"epochs": epochs, "batch_size": 20, "lr": 0.05, **(train or {})}
    config = read(TrainConfig, values)
    batches = Batches(digits("train", 60), batch_size=config.batch_size, device="cpu")
    return Trainer(model, Standard(cross_entropy), batches, config, seed=0, **options)


def watched(model: nn.Module, train) -> tuple[Trainer, list, list]:
    """A trainer, the raw weights after each step, and what is validated after each epoch."""
    steps: list[dict[str, torch.Tensor]] = []
    shown: list[dict[str, torch.Tensor]] = []

    def validate(found: nn.Module) -> dict[str, float | None]:
        shown.append(state(found))
        return {"validation_clean": 0.5, "validation_attacked": 0.5}

    def probe(found: nn.Module) -> dict[str, float | None]:
        assert all(torch.equal(tensor, shown[-1][n]) for n, tensor in found.state_dict().items())
        return {}

    trainer = trainer_of(model, train=train, validate=validate, probe=probe)
    step = trainer.optimizer.step

    def stepped() -> None:
        step()
        steps.append(state(model))

    trainer.optimizer.step = stepped
    return trainer, steps, shown


class TestEma:
    def test_it_is_the_moving_average_with_its_warm_up(self):
        model = small_model()
        mean = state(model)
        trainer, steps, shown = watched(model, {"averaging": EMA})
        fitted = trainer.fit()
        assert len(steps) == 12
        best = shown[fitted.best_epoch - 1]
        assert all(torch.equal(tensor, best[n]) for n, tensor in fitted.best_weights.items())
        for count, weights in enumerate(steps):
            decay = min(0.8, (1 + count) / (10 + count))
            for name, tensor in weights.items():
                mean[name] = (
                    decay * mean[name].double() + (1 - decay) * tensor.double()
                    if tensor.is_floating_point()
                    else tensor
                )
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor.double(), mean[name].double(), atol=1e-6), name
            assert torch.equal(tensor, shown[-1][name]), name
        assert not torch.equal(steps[-1]["head.weight"], model.head.weight)
        assert int(next(t for n, t in mean.items() if "tracked" in n)) == 12


class TestSwa:
    def test_it_is_the_mean_of_the_ends_of_epochs(self):
        model = small_model()
        trainer, steps, shown = watched(model, {"averaging": SWA})
        trainer.fit()
        ends = steps[2::3]
        for epoch, weights in enumerate(shown):  # epoch 1 is before the start
            taken = ends[1 : epoch + 1] or ends[:1]
            for name in dict(model.named_parameters()):
                mean = torch.stack([end[name].double() for end in taken]).mean(0)
                assert torch.allclose(weights[name].double(), mean, atol=1e-6), (epoch, name)
        assert torch.equal(model.head.weight, shown[-1]["head.weight"])

    def test_batch_norm_takes_its_statistics_anew(self):
        model = small_model()
        trainer, steps, _ = watched(model, {"averaging": SWA})
        trainer.fit()
        wanted = small_model()
        wanted.load_state_dict(model.state_dict())
        update_bn((batch.images for batch in trainer.batches.epoch(4)), wanted)
        for name, buffer in wanted.named_buffers():
            if "running" in name:
                assert torch.allclose(buffer, model.state_dict()[name], atol=1e-6), name
                assert not torch.allclose(buffer, steps[-1][name], atol=1e-4), name
            elif "tracked" in name:
                assert int(model.state_dict()[name]) == 12  # those of the training
        norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        assert all(norm.momentum == 0.1 for norm in norms)

    def test_statistics_are_those_of_attacked_images_where_training_attacks(self):
        runs = [
            small_run(small_config(objective=objective, train={"averaging": SWA, "lr": 1e-9}))
            for objective in ("standard", {"name": "pgd", "steps": 2, "bn_mode": "eval"})
        ]
        first, second = (run.last.state_dict() for run in runs)
        name = next(name for name in first if "running_var" in name)
        assert not torch.allclose(first[name], second[name], rtol=1e-3)

    def test_frozen_batch_norm_stays_frozen(self):
        objective = {"name": "pgd", "steps": 2, "bn_mode": "frozen"}
        last = small_run(small_config(objective=objective, train={"averaging": SWA})).last
        start = small_model().state_dict()
        for name, buffer in last.named_buffers():
            assert torch.equal(buffer, start[name]), name


def with_head(head: type[Head]) -> Classifier:
    plain = small_model()
    return Classifier(plain.normalise, plain.backbone, head(10, plain.backbone.dim, seed=0))


class TestHeads:
    @pytest.mark.parametrize("averaging", [EMA, SWA])
    def test_what_a_head_observes_is_copied(self, averaging):
        model = with_head(NearestEtfHead)
        trainer, steps, shown = watched(model, {"averaging": averaging})
        trainer.fit()
        for name in ("head.class_means", "head.etf"):
            assert torch.equal(shown[-1][name], steps[-1][name])
            assert not torch.equal(steps[-1][name], steps[0][name])
        weights = "backbone.block1.0.weight"
        assert not torch.equal(shown[-1][weights], steps[-1][weights])


@pytest.mark.parametrize("averaging", [EMA, SWA], ids=["ema", "swa"])
def test_a_finished_training_is_the_average_and_the_raw_one_is_as_without(tmp_path, averaging):
    config = small_config(epochs=3, train={"averaging": averaging})
    averaged = small_run(config, tmp_path)
    plain = small_run(small_config(epochs=3), tmp_path / "plain")
    (file,) = tmp_path.glob("raw-*.safetensors")
    raw, wanted = load_file(file), plain.last.state_dict()
    assert raw.keys() == wanted.keys()
    assert all(torch.equal(raw[name], wanted[name]) for name in raw)
    assert not same_weights(averaged.last, plain.last)
    losses = [[row["train_loss"] for row in run.history] for run in (plain, averaged)]
    assert losses[0] == losses[1]
    assert same_weights(small_run(config, tmp_path).last, averaged.last)
    assert same_weights(load_classifier(tmp_path, which="last"), averaged.last)
    assert same_weights(load_classifier(tmp_path), averaged.best)
    about = json.loads((tmp_path / "plain" / "last.json").read_text())
    assert not {"raw", "averaged"} & about.keys(), "the format that it had before averages"
    assert not list(tmp_path.glob("plain/raw-*"))


def test_swa_that_has_not_begun_saves_the_model_itself(tmp_path):
    config = small_config(epochs=4, train={"averaging": {"name": "swa", "start": 0.75}})
    with pytest.raises(StoppedError):
        small_run(config, tmp_path, save_seconds=0.0, report=stop_after(2))
    assert not list(tmp_path.glob("raw-*"))


def test_training_goes_on_from_the_same_random_draws():
    """Batch-norm statistics are taken in train mode, where dropout draws."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 8), nn.BatchNorm1d(8)]
        return nn.Sequential(*layers, nn.Linear(8, 10))

    trainers = [trainer_of(model(), train=train) for train in ({}, {"averaging": SWA})]
    losses = [[row["train_loss"] for row in t.fit().history] for t in trainers]
    assert losses[0] == losses[1]


class TestBackboneRate:
    def after_a_step(self, factor: float) -> tuple[dict, dict, Trainer]:
        model = small_model()
        train = {
            "backbone_lr": factor,
            "batch_size": 60,
            "schedule": "constant",
            "weight_decay": 0.1,
        }
        trainer = trainer_of(model, epochs=1, train=train)
        before = state(model)
        trainer.fit()
        return before, state(model), trainer

    @pytest.mark.parametrize("factor", [0.1, 2.0])
    def test_the_backbone_learns_at_its_own_rate(self, factor):
        before, usual, _ = self.after_a_step(1.0)
        _, other, _ = self.after_a_step(factor)
        for name, _ in small_model().named_parameters():
            wanted = factor if name.startswith("backbone.") else 1.0
            step, found = usual[name] - before[name], other[name] - before[name]
            assert torch.allclose(found, wanted * step, rtol=1e-3, atol=1e-7), name
            assert bool(step.abs().max() > 1e-6)

    def test_at_rate_zero_the_backbone_is_frozen(self):
        before, after, trainer = self.after_a_step(0.0)
        for name, parameter in trainer.model.named_parameters():
            frozen = name.startswith("backbone.")
            assert torch.equal(before[name], after[name]) == frozen, name
            assert (parameter.grad is None) == frozen, name
        assert {name.split(".")[0] for name in trainer._snapshot().momentum} == {"head"}

    def test_a_frozen_backbone_resumes_to_the_bit(self, tmp_path):
        config = small_config(epochs=3, train={"backbone_lr": 0.0, "averaging": EMA})
        resumed_to_the_bit(config, tmp_path, epochs=(2,))


class TestRefused:
    @pytest.mark.parametrize(
        ("averaging", "why"),
        [
            ({"name": "ema", "decay": 1.0}, "decay must be at least 0 and below 1, found 1.0"),
            ({"name": "ema", "decay": -0.1}, "decay must be at least 0 and below 1, found -0.1"),
            ({"name": "swa", "start": 1.5}, "start is a share of the training.*found 1.5"),
            ({"name": "swa", "begin": 0.5}, "no option 'begin'.*valid: start"),
            ("emma", "unknown averaging of weights 'emma'; did you mean 'ema'"),
        ],
    )
    def test_a_bad_option(self, averaging, why):
        with pytest.raises(ConfigError, match=why) as caught:
            small_run(small_config(train={"averaging": averaging}))
        assert "\n" not in str(caught.value)

    def test_a_rate_for_a_backbone_that_is_not_there(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with pytest.raises(ConfigError, match="Sequential has none; leave it out"):
            trainer_of(model, train={"backbone_lr": 0.1})

    def test_nothing_left_to_learn(self):
        model = with_head(EtfHead)
        with pytest.raises(ConfigError, match="no parameter is left"):
            trainer_of(model, train={"backbone_lr": 0})
