"""Several processes train one model: the same loss curve, weights and statistics as one.

In float64, where the only difference is the order of sums. What the first cannot write ends all.
"""

import datetime
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import digits, small_config, without_times
from torch import distributed as dist
from torch import multiprocessing, nn

from robust_nc.config import read
from robust_nc.data.batches import Batches
from robust_nc.data.load import dataset_info
from robust_nc.exceptions import ConfigError, StorageError
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.training import state as saving
from robust_nc.training.checkpoint import Checkpoints
from robust_nc.training.data_parallel import (
    Group,
    Several,
    check_alone,
    check_objective,
    together,
)
from robust_nc.training.loop import Trainer
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Standard
from robust_nc.training.run import build_objective, resolve_model
from robust_nc.training.sync_batchnorm import synced
from robust_nc.training.validation import CollapseProbe, Validator

EXAMPLES, BATCH = 62, 20  # three batches of 20, and one of 2
SEED = 3

Case = dict[str, Any]


def cases() -> dict[str, Case]:
    """Trainings by name: `train` options of a suite, its head, and how many images."""
    two = {"steps": 2}
    return {
        "standard": {"objective": "standard"},
        "pgd in train mode": {"objective": {"name": "pgd", "bn_mode": "train", **two}},
        "trades": {"objective": {"name": "trades", **two}},
        "mart": {"objective": {"name": "mart", **two}},
        "awp": {"objective": {"name": "awp", **two}},
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


def spawn(call: Any, world: int, folder: Path) -> None:
    """Run `call(rank, world, folder)` in processes of their own."""
    multiprocessing.spawn(call, args=(world, str(folder)), nprocs=world)


cluster = pytest.mark.cluster

_ACCURACIES = ("train_clean", "train_attacked")

WORLDS = (2, 3)  # with 3 the last batch, of two, leaves one of them without rows
CASES = [(world, name) for world in WORLDS for name in names(world)]


@pytest.fixture(scope="module")
def apart() -> dict[str, Any]:
    """What one process makes of every case."""
    return {name: left(trainer(case)) for name, case in cases().items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What the processes of groups of some sizes make of the cases, rank by rank."""
    found = {}
    for world in WORLDS:
        folder: Path = tmp_path_factory.mktemp("ranks")
        spawn(train_all, world, folder)
        found[world] = [torch.load(folder / f"rank-{rank}.pt") for rank in range(world)]
    return found


@cluster
@pytest.mark.parametrize(("world", "name"), CASES)
def test_several_processes_train_as_one(
    world: int, name: str, apart: dict[str, Any], ranks: dict[int, Any]
) -> None:
    wanted, found = apart[name], ranks[world][0][name]
    # mart scores in float32, whose last bits it multiplies
    rtol = 1e-6 if name == "mart" else 1e-9
    for part in ("weights", "best_weights"):
        torch.testing.assert_close(found[part], wanted[part], rtol=rtol, atol=rtol)
    assert found["best_epoch"] == wanted["best_epoch"]
    assert len(found["history"]) == len(wanted["history"]) == 2
    for here, there in zip(found["history"], wanted["history"], strict=True):
        assert here.keys() == there.keys()
        for measure, value in there.items():
            # accuracies of one process are float32
            near = 1e-6 if measure in _ACCURACIES else rtol
            wanted_value = value if value is None else pytest.approx(value, rel=near)
            assert here[measure] == wanted_value, measure
    for other in ranks[world][1:]:  # all processes end with the same model
        assert other[name]["history"] == found["history"]
        for part, value in found["weights"].items():
            assert torch.equal(other[name]["weights"][part], value), part


def train(rank: int, world: int, folder: str) -> None:
    """One process: train with writers that fail, and leave what came of it."""
    join(rank, world, folder)

    def full(path: Path, rows: object) -> None:
        raise StorageError(f"cannot write {path}: no space is left")

    told = []
    for name in ("append_log", "start_log"):
        setattr(saving, name, full)
        try:
            with together():
                home = None if rank else Path(folder, name)
                trainer({"objective": "standard"}, folder=home).fit()
            told.append("nothing")
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")
    torch.save(told, Path(folder, f"rank-{rank}.pt"))
    dist.barrier()  # who leaves first would take the connections of the other
    dist.destroy_process_group()


@cluster
def test_a_log_that_cannot_be_written_is_everybodys_error(tmp_path: Path) -> None:
    spawn(train, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    assert first == second
    assert len(first) == 2
    assert all(each.startswith("StorageError: cannot write") for each in first)


class Two(Several):
    """The first of two processes, without the other."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 2
        self._rows, self._count = [slice(0, 1)] * 2, 2


def test_an_objective_that_says_nothing_of_its_rows_is_refused_by_several() -> None:
    class Coupled:
        pass

    check_objective(Coupled(), Group())
    check_objective(Standard(cross_entropy), Two())
    with pytest.raises(ConfigError, match="Coupled does not say `in_parts = True`"):
        check_objective(Coupled(), Two())


def test_what_sees_the_rows_of_one_process_is_refused_by_several() -> None:
    used = {"train.stream": False, "model.head.gradient": True}
    check_alone(used, Group())
    check_alone(dict.fromkeys(used, False), Two())
    with pytest.raises(ConfigError, match=r"^model\.head\.gradient sees the rows of one process"):
        check_alone(used, Two())


class Own(nn.BatchNorm2d):
    """Batch norm of somebody else."""


@pytest.mark.parametrize(
    ("norm", "told"),
    [
        (Own(2), "'0' is a Own that is not torch's own"),
        (nn.SyncBatchNorm(2), "'0' is a SyncBatchNorm"),
        (nn.BatchNorm2d(2, track_running_stats=False), "keeps no running statistics"),
    ],
)
def test_batch_norm_that_cannot_be_shared_is_refused_by_name(norm: nn.Module, told: str) -> None:
    model = nn.Sequential(norm)
    with synced(Group(), model):
        pass
    with pytest.raises(ConfigError, match=told), synced(Two(), model):
        pass
