"""What is called between epochs: logs for other tools, or code of the user's own.

A callback is anything with `on_epoch(model, epoch, log)`. It gets a copy of the model in eval mode
and of the row of the training log, so it can change neither weights nor verdicts:

>>> import tempfile
>>> class Sizes(Callback):
...     def on_epoch(self, model, epoch, log):
...         print(epoch, sorted(log))
>>> Callbacks([Sizes()]).end_epoch(nn.Linear(1, 1), {"epoch": 1, "train_loss": 0.5})
1 ['epoch', 'train_loss']
>>> folder = Path(tempfile.mkdtemp())
>>> Callbacks([CsvLog(folder)]).end_epoch(nn.Linear(1, 1), {"epoch": 1, "train_loss": 0.5})
>>> print((folder / "log.csv").read_text(), end="")
epoch,train_loss
1,0.5
"""

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from robust_nc.config import Component, build
from robust_nc.exceptions import ConfigError, InputError, TrainingError
from robust_nc.io.files import write_text
from robust_nc.io.user_code import allow, split_code, told
from robust_nc.registry import CALLBACKS
from robust_nc.runtime.torch_state import device_of, kept_draws
from robust_nc.training.progress import EpochRow
from robust_nc.training.sync_batchnorm import lone_copy, unshared

_PROJECT = "robust_nc"


@runtime_checkable
class EpochCallback(Protocol):
    """What `train(callbacks=...)` takes; it may have the other methods of `Callback` too."""

    def on_epoch(self, model: nn.Module, epoch: int, log: dict[str, Any]) -> object:
        """Hear of an epoch that has ended."""
        ...


class Callback:
    """A callback to derive from; override what is needed."""

    def on_start(self, history: list[EpochRow]) -> None:
        """Hear that training begins, after the epochs of `history`, where it goes on."""

    def on_epoch(self, model: nn.Module, epoch: int, log: dict[str, Any]) -> None:
        """Hear of an epoch, from 1: a copy of the model in eval mode, and the row of the log.

        What was not saved before a kill is trained again, and told again.
        """

    def close(self) -> None:
        """Hear that training has ended: finished, stopped or failed."""


class Callbacks:
    """The callbacks of a training. What one raises is a `TrainingError` with its name."""

    def __init__(self, callbacks: object = ()) -> None:
        given = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        for one in given:
            if isinstance(one, type) or not callable(getattr(one, "on_epoch", None)):
                what = f"the class {one.__name__}" if isinstance(one, type) else type(one).__name__
                raise InputError(
                    "callbacks are a list of objects with on_epoch(model, epoch, log), found "
                    f"{what}"
                )
        self._all: list[Any] = given

    def start(self, history: list[EpochRow]) -> None:
        """Tell all that training begins."""
        for one in self._all:
            begin = getattr(one, "on_start", None)
            if begin is not None:
                self._call(one, "as training began", begin, [dict(row) for row in history])

    def end_epoch(self, model: nn.Module, row: EpochRow) -> None:
        """Tell all of an epoch."""
        epoch = int(row["epoch"])
        for one in self._all:
            # What one does with its model is nobody else's, and no process waits for it.
            with torch.enable_grad(), kept_draws(device_of(model)), unshared():
                copied = lone_copy(model).eval()
                self._call(one, f"after epoch {epoch}", one.on_epoch, copied, epoch, dict(row))

    def close(self, *, failed: bool) -> None:
        """Tell all that training has ended; where it `failed`, nothing is raised any more."""
        errors = []
        for one in self._all:
            try:
                end = getattr(one, "close", None)
                if end is not None:
                    self._call(one, "as training ended", end)
            except TrainingError as error:
                errors.append(error)
        if errors and not failed:
            raise errors[0]

    def _call(self, one: object, when: str, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # the user's own may raise anything
            name = type(one).__name__
            raise TrainingError(f"the callback {name} failed {when}: {told(error)}") from error


class CsvLog(Callback):
    """The log as `log.csv` in a folder, one row per epoch, written anew after each."""

    def __init__(self, folder: Path | str) -> None:
        self._path = Path(folder) / "log.csv"
        self._rows: list[EpochRow] = []

    def on_start(self, history: list[EpochRow]) -> None:
        """Take over the epochs that are done."""
        self._rows = history

    def on_epoch(self, model: nn.Module, epoch: int, log: dict[str, Any]) -> None:
        """Write all epochs so far."""
        self._rows = [*self._rows, log]
        names = dict.fromkeys(name for row in self._rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())


class TensorBoardLog(Callback):
    """Scalars for `tensorboard --logdir`; the configuration as text."""

    needs: ClassVar[tuple[str, str]] = ("tensorboard", "tensorboard")

    def __init__(self, folder: Path | str, *, config: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self._config = config
        self._writer: Any = None

    def on_start(self, history: list[EpochRow]) -> None:
        """Open a file of events; those of epochs that are trained again do not count."""
        check_library(self.needs)
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=len(history) + 1)
        if self._config is not None:
            text = json.dumps(self._config, indent=2)
            self._writer.add_text("config", f"```json\n{text}\n```", len(history) + 1)

    def on_epoch(self, model: nn.Module, epoch: int, log: dict[str, Any]) -> None:
        """Add the numbers of an epoch."""
        for name, value in numbers(log).items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class WandbLog(Callback):
    """A run of Weights & Biases; its environment (WANDB_MODE, WANDB_PROJECT, ...) holds.

    With an `id` a training that goes on is the same run.
    """

    needs: ClassVar[tuple[str, str]] = ("wandb", "wandb")

    def __init__(
        self,
        *,
        name: str | None = None,
        project: str | None = None,
        id: str | None = None,
        folder: Path | str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._asked = {
            "name": name,
            "project": project or os.environ.get("WANDB_PROJECT") or _PROJECT,
            "id": id,
            "dir": None if folder is None else str(folder),
            "config": None if config is None else dict(config),
        }
        self._run: Any = None

    def on_start(self, history: list[EpochRow]) -> None:
        """Begin the run, or go on with it."""
        check_library(self.needs)
        import wandb

        if self._asked["dir"] is not None:
            Path(str(self._asked["dir"])).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(**self._asked, resume="allow", reinit="create_new")

    def on_epoch(self, model: nn.Module, epoch: int, log: dict[str, Any]) -> None:
        """Log the numbers of an epoch."""
        self._run.log(numbers(log), step=epoch)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()


class MlflowLog(Callback):
    """A run of MLflow; its environment (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME) holds.

    With an `id` a training that goes on is the same run.
    """

    needs: ClassVar[tuple[str, str]] = ("mlflow", "mlflow")

    def __init__(
        self,
        *,
        name: str | None = None,
        experiment: str | None = None,
        id: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = name
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        self._id = id
        self._config = config or {}
        self._client: Any = None
        self._run = ""

    @classmethod
    def prepare(cls) -> None:
        """Make the tables of a data base once, before several processes would."""
        from mlflow import MlflowClient

        MlflowClient().search_experiments(max_results=1)

    def on_start(self, history: list[EpochRow]) -> None:
        """Begin the run, or go on with it."""
        check_library(self.needs)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._client = client = MlflowClient()
        with contextlib.suppress(MlflowException):  # it is there
            client.create_experiment(self._experiment)
        experiment = client.get_experiment_by_name(self._experiment).experiment_id
        tag = f"{_PROJECT}.id"
        found = []
        if self._id is not None:
            found = client.search_runs([experiment], filter_string=f"tags.`{tag}` = '{self._id}'")
        if found:
            self._run = found[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            return
        tags = {} if self._id is None else {tag: self._id}
        self._run = client.create_run(experiment, tags=tags, run_name=self._name).info.run_id
        for key, value in flat(self._config).items():
            client.log_param(self._run, key, str(value)[:500])

    def on_epoch(self, model: nn.Module, epoch: int, log: dict[str, Any]) -> None:
        """Log the numbers of an epoch."""
        for name, value in numbers(log).items():
            self._client.log_metric(self._run, name, value, step=epoch)

    def close(self) -> None:
        """End the run."""
        if self._run:
            self._client.set_terminated(self._run)


def numbers(log: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row, without the epoch itself.

    >>> numbers({"epoch": 1, "train_loss": 0.5, "train_attacked": None})
    {'train_loss': 0.5}
    """
    return {
        name: float(value)
        for name, value in log.items()
        if name != "epoch" and isinstance(value, int | float) and math.isfinite(value)
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables by dotted key.

    >>> flat({"train": {"epochs": 3}, "seed": 0})
    {'train.epochs': 3, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        inside = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return found


def check_library(needs: tuple[str, str]) -> None:
    """Raise `ConfigError` where a library is missing: the module, and the extra that brings it."""
    module, extra = needs
    try:
        __import__(module)
    except ImportError as error:
        raise ConfigError(
            f"{module} is not installed ({error}): pip install 'robust_nc[{extra}]'"
        ) from None


def check_logs(names: Sequence[str]) -> None:
    """Refuse logs that cannot be kept, before anything is trained.

    `names` are registered, or code of the user's own, who named it. Raises `ConfigError`.
    """
    for name in names:
        if split_code(name) is not None:
            allow(name)
        kind = CALLBACKS.load(name)
        needs = getattr(kind, "needs", None)
        if needs is not None:
            check_library(needs)
        prepare = getattr(kind, "prepare", None)
        if prepare is not None:
            try:
                prepare()
            except Exception as error:  # of a library
                raise ConfigError(f"--log {name} cannot be used: {told(error)}") from error


def make_logs(names: Sequence[str], **given: Any) -> list[EpochCallback]:
    """Make the callbacks that `names` stand for; each takes what it needs of `given`.

    That is `folder`, `name`, `id` and `config`.
    """
    for name in names:
        if split_code(name) is not None:
            allow(name)
    return [build(CALLBACKS, Component(name=name), **given) for name in names]
