"""Models that robust_nc trained: from a checkpoint's folder, or from a record and its weights.

>>> from pathlib import Path
>>> from_checkpoint(Path("nowhere/best.json"), which="best")
Traceback (most recent call last):
...
robust_nc.exceptions.CheckpointError: there is no checkpoint nowhere/best.json; name the folder \
that a training wrote
"""

from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from torch import nn

from robust_nc.config import ModelConfig, read
from robust_nc.exceptions import CheckpointError, ConfigError, RecordError
from robust_nc.io.untrusted import file_name, read_json
from robust_nc.record.schema import File, Stored, read_record
from robust_nc.training.run import load_classifier
from robust_nc.zoo.weight_files import check_size

Which = Literal["best", "last"]


class FoundModel(NamedTuple):
    """A model, and what is known of it: its "head", "objective" and "backbone", or nothing."""

    model: nn.Module
    facts: dict[str, str]


def from_checkpoint(path: Path, *, which: Which) -> FoundModel:
    """Read the checkpoint whose JSON is `path` (`best.json`, `last.json`).

    Raises `CheckpointError` where it is missing, damaged, or names a file elsewhere.
    """
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}; name the folder that a training wrote"
        )
    about = _manifest(path)
    try:
        name = file_name(str(about["tensors"]["name"]), what=f"tensors of {path}")
        config = read(ModelConfig, about["facts"]["model"], source=str(path))
        objective = about["config"]["train"]["objective"]["name"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of robust_nc: it lacks or garbles {error}"
        ) from None
    except (ConfigError, RecordError) as error:
        raise CheckpointError(str(error)) from None
    check_size(path.parent / name)
    model = load_classifier(path.parent, which=which)
    return FoundModel(model, facts_of(config, objective))


def from_record(path: Path, *, which: Which = "best") -> FoundModel:
    """Read the weights that a record names, which must lie below the folder of its suite.

    That is the parent of the folder that holds the record. Raises `CheckpointError` where the
    weights are not there or are others, `RecordError` for what is no record.
    """
    stored = read_record(path)
    file = stored.record.weights.best if which == "best" else stored.record.weights.last
    if file is None:
        asked = stored.record.config.get("model")
        itself = asked.get("reference") if isinstance(asked, dict) else None
        raise CheckpointError(
            f"{path} names no {which} weights: it is of a model that came finished; name the model "
            f"itself{f', {str(itself)[:120]!r}' if itself else ''}"
        )
    manifest = _folder(stored, file) / f"{which}.json"
    if not manifest.is_file():
        raise CheckpointError(
            f"the weights {file.path} of {path} are not here: there is no {manifest}; fetch them, "
            "or run the suite again"
        )
    tensors = _manifest(manifest).get("tensors")
    if not isinstance(tensors, dict) or tensors.get("sha256") != file.sha256:
        raise CheckpointError(
            f"{manifest} is not the checkpoint that {path} was written with: its weights have "
            "another SHA-256"
        )
    return from_checkpoint(manifest, which=which)


def facts_of(config: ModelConfig, objective: object) -> dict[str, str]:
    """Return what a model of ours is made of, in the words of a record."""
    named = objective if isinstance(objective, str) else ""
    return {"head": config.head.name, "objective": named, "backbone": config.backbone.name}


def _folder(stored: Stored, file: File) -> Path:
    """Folder of a record's weights, below that of its suite; `CheckpointError` for any other."""
    parts = PurePosixPath(file.path).parts
    out = stored.path.resolve().parent.parent
    try:
        for part in parts:
            file_name(part, what=f"each part of the weights' path in {stored.path}")
    except RecordError as error:
        raise CheckpointError(str(error)) from None
    folder = out.joinpath(*parts).parent
    if not folder.resolve().is_relative_to(out):
        raise CheckpointError(f"the weights {file.path} of {stored.path} lie outside of {out}")
    return folder


def _manifest(path: Path) -> dict[str, Any]:
    try:
        about = read_json(path)
    except RecordError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} is no checkpoint of robust_nc: it holds no table")
    return about
