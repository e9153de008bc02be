"""Trainings in double precision, alone or in a process of a group, and what they leave."""

import datetime
import os
from pathlib import Path
from typing import Any

import torch
from helpers_models import digits, small_config, without_times
from torch import distributed as dist
from torch import multiprocessing

from robust_nc.config import read
from robust_nc.data.batches import Batches
from robust_nc.data.load import dataset_info
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.training.checkpoint import Checkpoints
from robust_nc.training.data_parallel import together
from robust_nc.training.loop import Trainer
from robust_nc.training.run import build_objective, resolve_model
from robust_nc.training.validation import CollapseProbe, Validator

EXAMPLES, BATCH = 62, 20  # three batches of 20, and one of 2
SEED = 3

Case = dict[str, Any]


def cases() -> dict[str, Case]:
    """Trainings by name: `train` options of a suite, its head, and how many images."""
    two = {"steps": 2}
    averaged = {"name": "ema", "decay": 0.8}
    return {
        "standard": {"objective": "standard"},
        "pgd": {"objective": {"name": "pgd", **two}},
        "pgd in train mode": {"objective": {"name": "pgd", "bn_mode": "train", **two}},
        "pgd frozen": {"objective": {"name": "pgd", "bn_mode": "frozen", **two}},
        "trades": {"objective": {"name": "trades", **two}},
        "mart": {"objective": {"name": "mart", **two}},
        "fgsm": {"objective": "fgsm"},
        "awp": {"objective": {"name": "awp", **two}},
        "awp of trades": {"objective": {"name": "awp", "base": "trades", **two}},
        "ema": {"objective": "standard", "averaging": averaged},
        "swa": {
            "objective": {"name": "pgd", **two},
            "averaging": {"name": "swa", "start": 0.5},
        },
        "frozen backbone": {"objective": "standard", "backbone_lr": 0},
        "nearest simplex": {"objective": {"name": "pgd", **two}, "head": "nearest_etf"},
        "dot regression": {"objective": "standard", "loss": "dot_regression", "head": "etf"},
    }


def names(world: int) -> list[str]:
    """The cases that a group of so many processes trains: all where each always has rows."""
    with_ghosts = ["standard", "pgd in train mode", "awp", "swa", "nearest simplex"]
    return list(cases()) if world == 2 else with_ghosts


def trainer(case: Case, *, folder: Path | None = None, **options: Any) -> Trainer:
    """A training of a small model with batch norm, in float64."""
    given = {"batch_size": BATCH, "lr": 0.05, **case}
    head = given.pop("head", "linear")
    config = small_config(objective=given.pop("objective"), train=given, seed=SEED)
    model_config = read(
        type(config.model), {"backbone": {"name": "small_cnn", "width": 6}, "head": head}
    )
    shapes = resolve_model(model_config, dataset_info("digits"))
    model = build_model(shapes, seed=SEED).double()
    learnt = digits("train", EXAMPLES)
    return Trainer(
        model,
        build_objective(config),
        Batches(learnt, batch_size=config.train.batch_size, device="cpu", seed=SEED),
        config.train,
        seed=SEED,
        validate=Validator(digits("test", 31), config.threat.ball(), seed=SEED, device="cpu"),
        probe=CollapseProbe(learnt, device="cpu"),
        checkpoints=Checkpoints(folder, {}) if folder else None,
        **options,
    )


def left(training: Trainer) -> dict[str, Any]:
    """What a training leaves: weights and statistics, history, the best epoch."""
    fitted = training.fit()
    assert isinstance(training.model, Classifier)
    assert type(training.model.head).observe is training.model.head.observe.__func__
    kinds = {type(part).__name__ for part in training.model.modules()}
    assert not [name for name in kinds if name.startswith("_")], "nothing is left in its place"
    return {
        "weights": training.model.state_dict(),
        "best_weights": fitted.best_weights,
        "best_epoch": fitted.best_epoch,
        "history": without_times(fitted.history),
    }


def join(rank: int, world: int, folder: str) -> None:
    """Join a group of processes on this machine."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(minutes=5),
    )


def train_all(rank: int, world: int, folder: str) -> None:
    """One process of a group: train every case, and leave what came of it."""
    join(rank, world, folder)
    found = {}
    for name in names(world):
        case = cases()[name]
        with together():
            found[name] = left(trainer(case))
    torch.save(found, Path(folder, f"rank-{rank}.pt"))
    dist.destroy_process_group()


def spawn(call: Any, world: int, folder: Path, *given: Any) -> None:
    """Run `call(rank, world, folder, *given)` in processes of their own."""
    multiprocessing.spawn(call, args=(world, str(folder), *given), nprocs=world)
