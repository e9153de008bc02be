"""Callbacks of a training: they hear every epoch, change nothing, and lose nothing."""

import csv
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import (
    StoppedError,
    same_weights,
    small_config,
    small_run,
    stop_after,
    without_times,
)
from helpers_runner import cli, records, tiny, write_suite
from test_training_together import cluster, join, spawn, trainer
from torch import distributed as dist
from torch import nn

import robust_nc
from robust_nc.exceptions import ConfigError, InputError, TrainingError
from robust_nc.pipeline.cell import run_cell
from robust_nc.registry import CALLBACKS, HEADS
from robust_nc.runtime.progress import no_report
from robust_nc.training.callbacks import Callback, Callbacks, CsvLog, make_logs
from robust_nc.training.data_parallel import together


class Heard(Callback):
    """Notes all that it hears."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_start(self, history: list[dict[str, Any]]) -> None:
        self.told.append(("start", len(history)))

    def on_epoch(self, model: nn.Module, epoch: int, log: dict[str, Any]) -> None:
        assert not model.training
        assert log["epoch"] == epoch
        self.told.append(epoch)

    def close(self) -> None:
        self.told.append("close")


class Vandal:
    """Spoils all that it gets, and torch's state."""

    def on_epoch(self, model: nn.Module, epoch: int, log: dict[str, Any]) -> None:
        torch.manual_seed(epoch)
        torch.set_grad_enabled(False)
        model.train()
        model(torch.rand(4, 1, 8, 8))
        for parameter in model.parameters():
            parameter.zero_()
            parameter.requires_grad_(False)
        for buffer in model.buffers():
            buffer.zero_()
        log.clear()


class Failing:
    """Fails at an epoch."""

    def __init__(self, epoch: int = 2) -> None:
        self.epoch = epoch

    def on_epoch(self, model: nn.Module, epoch: int, log: dict[str, Any]) -> None:
        if epoch == self.epoch:
            raise ZeroDivisionError("by hand")


@pytest.mark.parametrize("averaging", [None, {"name": "ema", "decay": 0.9}])
def test_a_callback_changes_nothing(averaging: Any) -> None:
    config = small_config(epochs=3, train={"averaging": averaging})
    plain = small_run(config)
    torch.manual_seed(0)
    before = torch.default_generator.get_state()
    heard = small_run(config, callbacks=[Vandal(), Heard()])
    assert torch.equal(torch.default_generator.get_state(), before)
    assert torch.is_grad_enabled()
    assert same_weights(heard.last, plain.last)
    assert same_weights(heard.best, plain.best)
    assert without_times(heard.history) == without_times(plain.history)


@pytest.mark.parametrize("head", HEADS.names())
def test_every_head_can_be_shown(head: str) -> None:
    heard = Heard()
    config = robust_nc.RunConfig(
        data={"train_limit": 60},
        model={"head": head},
        train={"epochs": 1, "batch_size": 30},
    )
    robust_nc.train(config, callbacks=[heard])
    assert heard.told == [("start", 0), 1, "close"]


def test_a_resumed_training_goes_on_at_the_next_epoch(tmp_path: Path) -> None:
    config, first, second = small_config(epochs=4), Heard(), Heard()
    stop = stop_after(2)
    with pytest.raises(StoppedError):
        small_run(config, tmp_path, save_seconds=0.0, report=stop, callbacks=[first])
    small_run(config, tmp_path, callbacks=[second])
    assert first.told == [("start", 0), 1, 2, "close"]
    assert second.told == [("start", 2), 3, 4, "close"]
    third = Heard()
    small_run(config, tmp_path, callbacks=[third])
    assert third.told == [], "there is nothing to hear of a training that is finished"


@pytest.mark.parametrize("epoch", [2, 3])
def test_one_that_fails_is_named_and_costs_no_epoch(tmp_path: Path, epoch: int) -> None:
    config, heard = small_config(epochs=3), Heard()
    with pytest.raises(TrainingError) as error:
        small_run(config, tmp_path, callbacks=[heard, Failing(epoch)])
    assert str(error.value) == (
        f"the callback Failing failed after epoch {epoch}: ZeroDivisionError: by hand "
        f"(test_callbacks.py, line {_line('by hand')}); that epoch is saved, and the same command "
        "goes on behind it"
    )
    assert heard.told == [("start", 0), *range(1, epoch + 1), "close"]
    again = Heard()
    done = small_run(config, tmp_path, callbacks=[again])
    behind = [("start", epoch), *range(epoch + 1, 4), "close"]
    assert again.told == (behind if epoch < 3 else [])
    assert same_weights(done.last, small_run(config).last)


def _line(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_failures_at_the_ends_have_a_sentence_too() -> None:
    class Broken(Callback):
        def on_start(self, history: list[dict[str, Any]]) -> None:
            raise OSError("no network")

    class Unclosed(Callback):
        def close(self) -> None:
            raise OSError("no network")

    config, heard = small_config(epochs=1), Heard()
    with pytest.raises(TrainingError, match="the callback Broken failed as training began: OSErr"):
        small_run(config, callbacks=[heard, Broken()])
    assert heard.told == [("start", 0), "close"]
    with pytest.raises(TrainingError, match="the callback Unclosed failed as training ended: OSE"):
        small_run(config, callbacks=[Unclosed()])
    with pytest.raises(TrainingError, match="by hand"):
        small_run(config, callbacks=[Unclosed(), Failing(1)])


@pytest.mark.parametrize("given", [[print], [Heard], Heard, print, ["csv"], "csv", [None]])
def test_what_is_no_callback_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"objects with on_epoch\(model, epoch, log\), found "):
        Callbacks(given)


def test_csv_has_all_epochs_whichever_were_trained_before(tmp_path: Path) -> None:
    config = small_config(epochs=4, train={"validate_every": 2})
    with pytest.raises(StoppedError):
        small_run(config, tmp_path / "run", save_seconds=0.0, report=stop_after(2))
    done = small_run(config, tmp_path / "run", callbacks=[CsvLog(tmp_path / "csv")])
    with (tmp_path / "csv" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for row, wanted in zip(rows, done.history, strict=True):
        found = {key: None if value == "" else float(value) for key, value in row.items()}
        assert {key: found[key] for key in wanted} == pytest.approx(wanted)


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    config = small_config(epochs=3)

    def log() -> Any:
        (made,) = make_logs(["tensorboard"], folder=tmp_path / "tb", config={"seed": 0}, id="1")
        return made

    stop = stop_after(2)
    with pytest.raises(StoppedError):
        small_run(config, tmp_path / "run", save_seconds=0.0, report=stop, callbacks=[log()])
    done = small_run(config, tmp_path / "run", callbacks=[log()])
    found = events.EventAccumulator(str(tmp_path / "tb"))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train_loss")]
    wanted = [(row["epoch"], row["train_loss"]) for row in done.history]
    assert losses == [(epoch, pytest.approx(loss)) for epoch, loss in wanted]
    assert "validation_attacked" in found.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    given = {"folder": tmp_path / "logs", "name": "net", "id": "00ff", "config": {"seed": 3}}
    done = small_run(small_config(epochs=2), callbacks=make_logs(["wandb"], **given))
    (file,) = (tmp_path / "logs").rglob("run-00ff.wandb")
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found = []
    for data in _leveldb_records(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: item for item in record.history.item}
            found.append(json.loads(items["train_loss"].value_json))
    assert found == pytest.approx([row["train_loss"] for row in done.history])


def _leveldb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format: blocks of 32 KiB, a header of 7 bytes."""
    place, whole = 7, b""
    while place + 7 < len(data):
        if 32_768 - place % 32_768 < 7:
            place += 32_768 - place % 32_768
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    config = small_config(epochs=3)
    given = {"name": "net", "id": "00ff", "config": {"train": {"epochs": 3}}, "folder": tmp_path}
    logs = make_logs(["mlflow"], **given)
    with pytest.raises(StoppedError):
        small_run(config, tmp_path / "run", save_seconds=0.0, report=stop_after(2), callbacks=logs)
    done = small_run(config, tmp_path / "run", callbacks=make_logs(["mlflow"], **given))
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("robust_nc").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "net")
    assert run.data.params == {"train.epochs": "3"}
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    wanted = [(row["epoch"], row["train_loss"]) for row in done.history]
    assert [(each.step, each.value) for each in losses] == wanted


OWN = """
class Mine:
    def __init__(self, folder, name):
        self.folder, self.name = folder, name

    def on_epoch(self, model, epoch, log):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.name}-{epoch}.json").write_text("{}")

    def close(self):
        if self.name.endswith("seed 9"):
            raise OSError("no space")
"""


def test_a_run_logs_without_a_trace_in_the_records(tmp_path: Path) -> None:
    suite, own = write_suite(tmp_path, "[grid]\nseed = [0, 9]"), tmp_path / "own.py"
    own.write_text(OWN)
    (cell, _) = tiny(tmp_path, "[grid]\nseed = [0, 9]").cells
    run_cell(cell, "tiny", tmp_path / "plain", None, report=no_report)
    out = tmp_path / "out"
    logs = ("--log", "csv", "--log", "tensorboard", "--log", f"{own}:Mine")
    ran = cli("run", suite, "--out", out, *logs, "--workers", 1)
    assert ran.code == 1
    assert "the callback Mine failed as training ended: OSError: no space" in ran.err
    one, other = records(tmp_path / "plain")[cell.id], records(out)[cell.id]
    assert one.scores == other.scores
    assert one.verdict == other.verdict
    assert one.weights == other.weights
    assert one.config == other.config
    (folder,) = (out / "logs" / cell.model).glob("seed0-*")
    names = {path.name.split(".")[0] for path in folder.iterdir()}
    assert names == {"log", "events", *(f"{cell.model} seed 0-{epoch}" for epoch in (1, 2))}
    again = cli("run", suite, "--out", out)
    assert again.code == 0, "the training of the other was saved"
    assert cli("board", out).code == 0


def test_a_log_that_cannot_be_kept_is_refused_before_anything_runs(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "")
    for name, sentence in (
        ("tensorbord", "unknown log 'tensorbord'; did you mean 'tensorboard'?"),
        ("none.py:Log", "names the file none.py, which does not exist"),
    ):
        ran = cli("run", suite, "--out", tmp_path / "out", "--log", name)
        assert ran.code == 2
        assert sentence in ran.err
    for name in CALLBACKS.names():
        needs = getattr(CALLBACKS.load(name), "needs", None)
        if needs is not None and importlib.util.find_spec(needs[0]) is None:
            with pytest.raises(ConfigError, match=rf"pip install 'robust_nc\[{needs[1]}\]'"):
                robust_nc.run(str(suite), out=tmp_path / "out", log=[name])
    assert not list((tmp_path / "out").rglob("*.json"))


def _train_two(rank: int, world: int, folder: str) -> None:
    """One of two processes: only the first has a callback, which fails at the second epoch."""
    join(rank, world, folder)
    heard = Heard()
    told = Callbacks([Vandal(), heard, Failing()] if rank == 0 else [])
    case = {"objective": "standard", "head": "nearest_etf", "epochs": 3}
    with together():
        training = trainer(case, callbacks=told)
        with pytest.raises(TrainingError, match="the callback Failing failed after epoch 2"):
            training.fit()
    Path(folder, f"heard-{rank}.json").write_text(json.dumps(heard.told))
    dist.destroy_process_group()


@cluster
def test_of_several_processes_the_first_alone_calls_back(tmp_path: Path) -> None:
    spawn(_train_two, 2, tmp_path)
    told = [json.loads((tmp_path / f"heard-{rank}.json").read_text()) for rank in (0, 1)]
    assert told == [[["start", 0], 1, 2, "close"], []]
