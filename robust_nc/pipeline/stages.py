"""The stages of a cell: train, judge (in parts, where that is worth it), measure, record.

Each works on the folder `out` alone, with paths below it that are the same everywhere, and leaves
all that later stages need as files there: an engine may do it elsewhere, in a folder that holds
what `needs` names, and bring home what is new or changed. What is there already is not done again.

| stage | leaves |
|---|---|
| `train_stage` | the folder of checkpoints, and a note of the seconds |
| `judge_stage`, for each of `verdict_parts` | the log of a part, closed |
| `measure_stage` | the geometry |
| `cell.run_cell` | the record; it makes up what is missing of the others |

>>> from robust_nc.pipeline.suite import read_suite
>>> needs(read_suite("quickstart").cells[0], "train", Path("nowhere"))
()
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from robust_nc.config import RunConfig, allow_code, identifying, measured_epochs, training_id
from robust_nc.data.base import Split
from robust_nc.data.hierarchy.tree import Hierarchy, tree_of
from robust_nc.data.load import dataset_info, read_split
from robust_nc.evaluation.log import close_log, end_of_log
from robust_nc.exceptions import CheckpointError, ConfigError, RecordError, StoppedError
from robust_nc.io.files import atomic, write_text
from robust_nc.models.build import build_model
from robust_nc.models.classifier import Classifier
from robust_nc.pipeline.suite import Cell
from robust_nc.pipeline.verdict_parts import VerdictPart, evaluate_part, parts_of, without_overlap
from robust_nc.profiling.conditions import BY_TREE, SEVEREST
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.profiling.measurement import Attacking
from robust_nc.profiling.optional_rows import prefixed
from robust_nc.profiling.profile_model import measured_at_epochs, profile_cell
from robust_nc.profiling.sweeps import CorruptionSource, check_corrupted, corruption_source
from robust_nc.record import folder as store
from robust_nc.record.schema import COLUMNS, read_record
from robust_nc.runtime.executor import IN_PROCESS, Executor
from robust_nc.runtime.progress import Clock, Report, no_report, progress_report
from robust_nc.runtime.torch_state import default_device, device_of
from robust_nc.training.callbacks import EpochCallback, make_logs
from robust_nc.training.checkpoint import find_epoch, read_manifest, read_tensors
from robust_nc.training.run import Trained, check_training, train_cell
from robust_nc.training.state import load_weights

Stage = Literal["train", "judge", "measure", "record"]
_OURS = b"robust_nc"  # key of what a kept geometry says of itself


class CellResult(NamedTuple):
    """What the driver shows of a finished cell; accuracies in [0, 1]."""

    cell: str
    model: str
    seed: int
    clean: float
    robust: float
    seconds: float


class CellInputs(NamedTuple):
    """The test split, distances between its classes `(K, K)` or None, corrupted images or None."""

    test: Split
    distances: Tensor | None
    corrupted: CorruptionSource | None


class Geometry(NamedTuple):
    """The rows of a geometry, and how many seconds they took."""

    rows: pd.DataFrame
    seconds: float


def train_stage(
    cell: Cell, out: Path, root: Path | None, *, report: Report, logs: Sequence[str] = ()
) -> None:
    """Train a cell, or go on from its checkpoints; `logs` are names of callbacks that hear it."""
    allow_code(cell.config)
    if not is_trained(cell, out):
        train_or_read(cell, out, root, report, logs)


def verdict_parts(cell: Cell, out: Path, root: Path | None, *, width: int = 1) -> list[VerdictPart]:
    """List what is still to be judged of a trained cell, in parts that can be done anywhere.

    Parts are blocks of `evaluation.block` images, else about `width` for each verdict, around those
    that were begun. A verdict is not listed where one part would be the whole of it, nor where it
    would depend on the cut (`evaluation.divisible`) and no block says how to cut: `run_cell` makes
    those. Raises `CheckpointError` where the training is not finished.
    """
    allow_code(cell.config)
    _check_trained(cell, out)
    config = cell.config
    count = judged_count(config, dataset_info(config.data, root).sizes["test"])
    parts = []
    for which in verdicts_of(cell, out):
        found = [VerdictPart(which, *place) for place in store.part_logs(out, cell.id, which)]
        # Those that are finished come before others that overlap with them.
        found.sort(key=lambda part: not is_judged(cell, part, out))
        begun = without_overlap([part[1:] for part in found], count)
        cuts = parts_of(config, which, begun, count=count, width=width)
        parts += [part for part in cuts if not is_judged(cell, part, out)]
    return parts


def judge_stage(
    cell: Cell, part: VerdictPart, out: Path, root: Path | None, *, report: Report
) -> None:
    """Judge a part of a trained cell, or go on from its log, which is left also by a stop.

    Raises `CheckpointError` where the training is not finished.
    """
    allow_code(cell.config)
    _check_trained(cell, out)
    if not is_judged(cell, part, out):
        trained = train_or_read(cell, out, root, no_report)
        judge_part(cell, part, out, trained, read_test(cell.config, root), report)


def measure_stage(
    cell: Cell, out: Path, root: Path | None, *, executor: Executor = IN_PROCESS, report: Report
) -> None:
    """Measure the geometry of a trained cell, in parts over an executor.

    Raises `CheckpointError` where the training is not finished.
    """
    allow_code(cell.config)
    _check_trained(cell, out)
    if geometry_of(cell, out) is None:
        trained, given = train_or_read(cell, out, root, no_report), gather_inputs(cell.config, root)
        measure_cell(cell, out, trained, given, executor, report)


def needs(
    cell: Cell, stage: Stage, out: Path, *, part: VerdictPart | None = None
) -> tuple[Path, ...]:
    """Return what a stage reads of `out`, as far as it is there: checkpoints (a folder), and files.

    An engine carries these, and brings home what the stage left; of the folder it also removes
    what the stage removed. `part` is for "judge"; "record" is `run_cell`.
    """
    found = [checkpoints_of(cell, out)]
    if stage == "train":
        found.append(store.seconds_path(out, cell.id))
    elif stage == "judge":
        assert part is not None, "what is judged is a part"
        found.append(store.part_log(out, cell.id, *part))
    elif stage == "measure":
        epochs = measured_epochs(cell.config)
        found += [store.geometry_path(out, cell.id, epoch) for epoch in (None, *epochs)]
    else:
        found.extend(store.caches(out, cell.id))
    return tuple(path for path in found if path.exists())


def is_trained(cell: Cell, out: Path) -> bool:
    """Whether the training of a cell is finished, as its checkpoints say: both that are read on."""
    try:
        read_manifest(checkpoints_of(cell, out) / "best.json")
    except CheckpointError:  # the training puts it back from the last one
        return False
    return _is_finished(cell, out)


def is_recorded(cell: Cell, out: Path) -> bool:
    """Whether a cell has a record that can be read, with its rows."""
    try:
        read_record(store.record_path(out, cell.model, cell.id)).rows()
    except RecordError:
        return False
    return True


def is_judged(cell: Cell, part: VerdictPart, out: Path) -> bool:
    """Whether a part of a trained cell is judged to its end, on the weights that are there now."""
    end = end_of_log(store.part_log(out, cell.id, *part))
    return end is not None and end.get("weights") == _weights(cell, part.which, out)


def geometry_of(cell: Cell, out: Path) -> Geometry | None:
    """Return the geometry that `measure_stage` left, if it is of the weights that are there now.

    Rows of `measure.every` have an epoch.
    """
    found = [_read_geometry(cell, out, epoch) for epoch in (None, *measured_epochs(cell.config))]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found):
        return None
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    return Geometry(rows, sum(part.seconds for part in parts))


def _read_geometry(cell: Cell, out: Path, epoch: int | None) -> Geometry | None:
    weights = _weights_at(cell, epoch, out)
    try:
        table = pq.read_table(store.geometry_path(out, cell.id, epoch))
        about = json.loads(table.schema.metadata[_OURS])
        rows = table.to_pandas().astype(COLUMNS)
        if about["weights"] != weights or about["digest"] != _rows_digest(rows):
            return None
        return Geometry(rows, float(about["seconds"]))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):  # missing, or damaged
        return None


def checkpoints_of(cell: Cell, out: Path) -> Path:
    """Return the folder of the checkpoints of a cell."""
    return store.checkpoint_folder(out, training_id(cell.config))


def verdicts_of(cell: Cell, out: Path) -> list[str]:
    """Name the verdicts of a trained cell; where the last epoch was the best, one serves both."""
    names = ["best"]
    if _weights(cell, "best", out) != _weights(cell, "last", out):
        names.append("last")
    return names if cell.config.evaluation.beside is None else [*names, "beside"]


def train_or_read(
    cell: Cell, out: Path, root: Path | None, report: Report, logs: Sequence[str] = ()
) -> Trained:
    """Train a cell and note the seconds of all sessions, or read what its checkpoints hold."""
    folder, ready, clock = checkpoints_of(cell, out), _is_finished(cell, out), Clock()
    watch = progress_report(report)
    noted, device = store.seconds_path(out, cell.id), default_device()

    def note(least: float) -> None:
        clock.stage("train")
        total = (noted_seconds(noted) or 0.0) + clock.seconds["train"]
        seconds = max(total, round(least, 3))
        write_text(noted, json.dumps({"seconds": seconds}) + "\n")

    try:
        found = train_cell(
            cell.config,
            root=root,
            folder=folder,
            device=device,
            report=watch,
            callbacks=() if ready else _callbacks(cell, out, logs),
        )
    except StoppedError:
        note(0.0)
        raise
    if not ready:
        note(found.seconds)  # a session that was killed has noted nothing
    return found


def _callbacks(cell: Cell, out: Path, logs: Sequence[str]) -> list[EpochCallback]:
    config, training = cell.config, training_id(cell.config)
    return make_logs(
        logs,
        folder=store.log_folder(out, cell.model, config.seed, training),
        name=f"{cell.model} seed {config.seed}",
        id=training,
        config=identifying(config),
    )


def judge_part(
    cell: Cell, part: VerdictPart, out: Path, trained: Trained, test: Split, report: Report
) -> None:
    """Judge a part, with training and test images at hand, and close its log."""
    log, clock = store.part_log(out, cell.id, *part), Clock()
    watch = progress_report(report, place=f"images {part.start} to {part.stop - 1}: ")
    evaluate_part(cell.config, part, trained, test, log=log, checks=False, report=watch)
    clock.stage("attack")
    weights, seconds = _weights(cell, part.which, out), clock.seconds["attack"]
    close_log(log, {"weights": weights, "seconds": seconds})


def measure_cell(
    cell: Cell, out: Path, trained: Trained, given: CellInputs, executor: Executor, report: Report
) -> None:
    """Measure the geometry of the last weights and of epochs, with all at hand, and keep it."""
    epochs = measured_epochs(cell.config)
    for epoch in (None, *epochs):
        if _read_geometry(cell, out, epoch) is not None:
            continue
        config, model, clock, told = cell.config, trained.last, Clock(), report
        initial = None
        if epoch is not None:
            config = dataclasses.replace(config, measure=measured_at_epochs(config.measure))
            model = _model_at(cell, epoch, out, trained)
            told = prefixed(report, f"epoch {epoch} of {epochs[-1]}")
        if config.measure.agop_examples:
            initial = build_model(trained.model, seed=config.seed).to(device_of(trained.last))
        rows = profile_cell(
            model,
            trained.train._replace(labels=trained.altered.original),
            given.test,
            config,
            given=None if config.data.noise is None else trained.train.labels,
            distances=given.distances,
            corrupted=given.corrupted,
            initial=initial,
            executor=executor,
            report=told,
        )
        if epoch is not None:
            rows = rows[(rows["i"] == -1) & (rows["j"] == -1)].assign(epoch=epoch)
        clock.stage("measure")
        about = {"weights": _weights_at(cell, epoch, out), "seconds": clock.seconds["measure"]}
        about["digest"] = _rows_digest(rows)
        table = pa.Table.from_pandas(rows, preserve_index=False)
        table = table.replace_schema_metadata({_OURS: json.dumps(about).encode()})
        with atomic(store.geometry_path(out, cell.id, epoch)) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def _model_at(cell: Cell, epoch: int, out: Path, trained: Trained) -> Classifier:
    """Return the model after an epoch, which is `last` or has weights that were kept."""
    if epoch == cell.config.train.epochs:
        return trained.last
    folder, model = checkpoints_of(cell, out), copy.deepcopy(trained.last)
    load_weights(model, read_tensors(folder, find_epoch(folder, epoch)))
    return model


def _is_finished(cell: Cell, out: Path) -> bool:
    try:
        about = read_manifest(checkpoints_of(cell, out) / "last.json")
        return int(about["epoch"]) >= cell.config.train.epochs
    except (CheckpointError, KeyError, TypeError, ValueError):
        return False


def _check_trained(cell: Cell, out: Path) -> None:
    if not is_trained(cell, out):
        raise CheckpointError(
            f"the training in {checkpoints_of(cell, out)} is missing, damaged or not finished; "
            f"train cell {cell.id} first"
        )


def _weights(cell: Cell, which: str, out: Path) -> str:
    """Digest of the tensors that a verdict is about."""
    name = "last" if which == "last" else "best"
    about = read_manifest(checkpoints_of(cell, out) / f"{name}.json")
    return str(about["tensors"]["sha256"])


def _weights_at(cell: Cell, epoch: int | None, out: Path) -> str:
    """Digest of the tensors after an epoch, or of the last ones."""
    if epoch is None or epoch == cell.config.train.epochs:
        return _weights(cell, "last", out)
    return find_epoch(checkpoints_of(cell, out), epoch).sha256


def _rows_digest(rows: pd.DataFrame) -> str:
    """Digest of the names and values of all columns, in order."""
    total = hashlib.sha256("\n".join(rows.columns).encode())
    total.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    return total.hexdigest()


def noted_seconds(path: Path) -> float | None:
    """Return how long a training took, as `train_or_read` noted it, or None.

    >>> noted_seconds(Path("nowhere"))
    """
    try:
        return float(json.loads(path.read_text())["seconds"])
    except (OSError, KeyError, TypeError, ValueError):
        return None


def check_cell(config: RunConfig, root: Path | None) -> Hierarchy | None:
    """Refuse a configuration that could not be trained or measured; return the classes' tree.

    Builds all parts and reads no images. Raises `ConfigError`, `InputError` or `DataError`.
    """
    info = dataset_info(config.data, root)
    measured_epochs(config)
    chosen_taps(check_training(config, info), config.measure.taps)
    tree = tree_of(config.data.hierarchy, info.name, config.data.classes)
    if tree is not None:
        tree.check_classes(info.class_names)
    elif set(config.measure.targets) & set(BY_TREE):
        raise ConfigError(
            f"measure.targets: {' and '.join(BY_TREE)} need a tree of the classes, and {info.name} "
            "has none of its own; set data.hierarchy to a TOML or JSON file"
        )
    measure = config.measure
    climbs = tree is not None and SEVEREST in measure.targets
    attacking = Attacking(measure.steps, measure.restarts, 1.0, measure.attack)
    attacking.build(tree.distances() if tree is not None and climbs else None)
    return tree


def gather_inputs(config: RunConfig, root: Path | None) -> CellInputs:
    """Gather what the cell needs, and refuse now what would else end it after its training."""
    tree = check_cell(config, root)
    test = read_test(config, root)
    corrupted = None
    if config.measure.corruptions:
        corrupted = corruption_source(config.data, root)
        check_corrupted(corrupted, config.measure, test)
    return CellInputs(test, None if tree is None else tree.distances(), corrupted)


def read_test(config: RunConfig, root: Path | None) -> Split:
    """Read the test images of a configuration."""
    return read_split(config.data, "test", root=root, limit=config.data.test_limit)


def judged_count(config: RunConfig, size: int) -> int:
    """Return how many of the `size` images of the whole test split are judged.

    >>> judged_count(RunConfig(), 360)
    360
    """
    limits = (config.data.test_limit, config.evaluation.examples)
    return min([size, *(limit for limit in limits if limit is not None)])
