"""Checkpoints: safetensors for the tensors, JSON for the rest, switched in one step.

A folder holds `last.json` (to resume from) and `best.json`, each naming its tensor files by
content. Tensors are written first and the JSON that names them last, so that a kill at any moment
leaves the previous pair whole; files that no JSON names any longer are then removed.

>>> import pathlib, tempfile, torch
>>> checkpoints = Checkpoints(pathlib.Path(tempfile.mkdtemp()), {"seed": 0})
>>> weights = {"w": torch.ones(2)}
>>> checkpoints.save(Snapshot(1, 10, weights, {}, weights, 1, (0.5, 0.9), []))
>>> checkpoints.load().weights["w"].tolist()
[1.0, 1.0]
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from robust_nc import files
from robust_nc.exceptions import CheckpointError, StorageError
from robust_nc.training.state import Tensors

SCHEMA = 1


class Snapshot(NamedTuple):
    """All that a resumed training needs: tensors on the CPU, and where it stands.

    `best_score` is the validation accuracy under attack, then clean, of `best_epoch`. With an
    average of weights, `weights` are that average, `averaged` says how many are in it, and `raw`
    are those that the training goes on with.
    """

    epoch: int
    step: int
    weights: Tensors
    momentum: Tensors
    best_weights: Tensors
    best_epoch: int
    best_score: tuple[float, float]
    history: list[dict[str, Any]]
    raw: Tensors | None = None
    averaged: int = 0


class TensorFile(NamedTuple):
    """A file of tensors, as a JSON beside it names it."""

    name: str
    sha256: str


class Checkpoints:
    """The checkpoints of one training in one folder.

    `config` is what the training depends on, as plain values; a folder of another one is refused.
    `facts` are stored beside it, for who reads the weights.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], *, facts: dict[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.config = config
        self.facts = facts or {}
        self._best: tuple[int, TensorFile] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Write `last` and `best`. Raises `StorageError` where the place cannot be written."""
        if self._best is None or self._best[0] != snapshot.best_epoch:
            file = write_tensors(self.folder, "best", snapshot.best_weights)
            self._best = (snapshot.best_epoch, file)
        best = self._best[1]
        last = write_tensors(self.folder, "last", snapshot.weights)
        momentum = write_tensors(self.folder, "momentum", snapshot.momentum)
        about = {
            "best_epoch": snapshot.best_epoch,
            "best_score": list(snapshot.best_score),
            "config": self.config,
            "config_digest": files.digest(self.config),
            "facts": self.facts,
            "schema": SCHEMA,
        }
        resume = {
            "best": best._asdict(),
            "epoch": snapshot.epoch,
            "history": snapshot.history,
            "momentum": momentum._asdict(),
            "step": snapshot.step,
            "tensors": last._asdict(),
        }
        keep = {best.name, last.name, momentum.name}
        if snapshot.raw is not None:
            raw = write_tensors(self.folder, "raw", snapshot.raw)
            resume |= {"averaged": snapshot.averaged, "raw": raw._asdict()}
            keep.add(raw.name)
        # `best` first: `last` says that all is there.
        self._write("best", about | {"epoch": snapshot.best_epoch, "tensors": best._asdict()})
        self._write("last", about | resume)
        _remove_unnamed(self.folder, keep)

    def load(self) -> Snapshot | None:
        """Return the last snapshot, or None where there is none.

        Raises `CheckpointError` where it is damaged, or of another configuration.
        """
        path = self.folder / "last.json"
        if not path.exists():
            return None
        about = read_manifest(path)
        check_same_config(about.get("config"), self.config, path)
        try:
            best = TensorFile(**about["best"])
            raw = TensorFile(**about["raw"]) if "raw" in about else None
            self._best = (int(about["best_epoch"]), best)
            robust, clean = about["best_score"]
            return Snapshot(
                epoch=int(about["epoch"]),
                step=int(about["step"]),
                weights=read_tensors(self.folder, TensorFile(**about["tensors"])),
                momentum=read_tensors(self.folder, TensorFile(**about["momentum"])),
                best_weights=read_tensors(self.folder, best),
                best_epoch=int(about["best_epoch"]),
                best_score=(float(robust), float(clean)),
                history=list(about["history"]),
                raw=read_tensors(self.folder, raw) if raw else None,
                averaged=int(about["averaged"]) if raw else 0,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"it lacks or garbles {error}") from error

    def _write(self, which: str, about: dict[str, Any]) -> None:
        text = json.dumps(about, indent=1, sort_keys=True, allow_nan=False)
        files.write_text(self.folder / f"{which}.json", text + "\n")


def write_tensors(folder: Path, kind: str, tensors: Tensors) -> TensorFile:
    """Write tensors to a file that is named by its content, `<kind>-<digest>.safetensors`."""
    content = safetensors.torch.save({name: _packed(tensor) for name, tensor in tensors.items()})
    sha256 = hashlib.sha256(content).hexdigest()
    file = TensorFile(f"{kind}-{sha256[:16]}.safetensors", sha256)
    files.write_bytes(folder / file.name, content)
    return file


def read_tensors(folder: Path, file: TensorFile) -> Tensors:
    """Read tensors, or raise `CheckpointError` where they are not those that were written."""
    path = folder / file.name
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise damaged(path, "its SHA-256 is not the one that its JSON names")
        return safetensors.torch.load(content)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    except SafetensorError as error:
        raise damaged(path, str(error)) from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a checkpoint's JSON, or raise `CheckpointError`."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise damaged(path, f"not JSON ({error})") from error
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        found = about.get("schema") if isinstance(about, dict) else None
        raise damaged(path, f"its schema is {found!r}, this version reads {SCHEMA}")
    return about


def check_same_config(found: object, wanted: dict[str, Any], path: Path) -> None:
    """Raise `CheckpointError` that says which keys differ, if any do."""
    there, here = _flat(found), _flat(wanted)
    absent = "nothing"
    differing = [
        f"{key} ({there.get(key, absent)!r} there, {here.get(key, absent)!r} here)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, absent) != here.get(key, absent)
    ]
    if differing:
        raise CheckpointError(
            f"{path} is of another configuration; it differs in {', '.join(differing[:8])}; "
            "choose another folder, or delete this one to train anew"
        )


def damaged(path: Path, why: str) -> CheckpointError:
    """Name a damaged file, what is wrong with it and the remedy."""
    return CheckpointError(
        f"checkpoint {path} is damaged: {why}; delete {path.parent} to train anew, "
        "or put back a whole copy"
    )


def _packed(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """Leaves of nested tables by dotted path."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    leaves: dict[str, object] = {}
    for key, part in value.items():
        leaves |= _flat(part, f"{prefix}{key}.")
    return leaves


def _remove_unnamed(folder: Path, keep: set[str]) -> None:
    for kind in ("best", "last", "momentum", "raw"):
        for path in folder.glob(f"{kind}-*.safetensors"):
            if path.name not in keep:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise StorageError(f"cannot remove {path}: {error.strerror}") from error
