"""Checkpoints: safetensors for the tensors, JSON for the rest, in two generations.

A folder holds `last.json` (to resume from) and `best.json`, each naming its tensor files by
content; while a training goes on, also `previous.json`, the state that was saved before the last.
Tensors are written first and the JSON that names them last, so that a kill at any moment leaves
both states whole; files that no JSON names any longer are then removed. The two states share no
file: whichever file is damaged, `load` has a whole one, and `recovered` says so. A finished
training keeps one state. A JSON holds the SHA-256 of all that it names and of itself, so that any
changed byte is seen.

>>> import pathlib, tempfile, torch
>>> checkpoints = Checkpoints(pathlib.Path(tempfile.mkdtemp()), {"seed": 0})
>>> weights = {"w": torch.ones(2)}
>>> checkpoints.save(Snapshot(1, 10, weights, {}, weights, 1, (0.5, 0.9), []))
>>> checkpoints.load().weights["w"].tolist()
[1.0, 1.0]
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from robust_nc.exceptions import CheckpointError, StorageError
from robust_nc.io import files
from robust_nc.io.files import remove_file, remove_unfinished

SCHEMAS = (1, 2)
"""1: a state between epochs; 2: one within an epoch, which an older version must not read as 1."""

_KINDS = ("best", "last", "momentum", "raw", "within")
_MANIFESTS = ("best", "last", "previous")

Tensors = dict[str, Tensor]
Manifest = dict[str, Any]


class TensorFile(NamedTuple):
    """A file of tensors, as a JSON beside it names it."""

    name: str
    sha256: str


class DamagedError(CheckpointError):
    """A file of a checkpoint that is not what was written."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"checkpoint {path} is damaged: {why}; delete {path.parent} to train anew, "
            "or put back a whole copy"
        )
        self.path = path
        self.why = why


def write_manifest(path: Path, about: Manifest) -> None:
    """Write a checkpoint's JSON with its own SHA-256."""
    sealed = about | {"sha256": _seal(about)}
    text = json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False)
    files.write_text(path, text + "\n")


def read_manifest(path: Path) -> Manifest:
    """Read a checkpoint's JSON, or raise `CheckpointError`."""
    return _unsealed(path, _parse_manifest(path))


def _parse_manifest(path: Path) -> Manifest:
    """Read a checkpoint's JSON, whose SHA-256 is yet to be looked at (`_unsealed`)."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DamagedError(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise DamagedError(path, f"not JSON ({error})") from error
    if not isinstance(about, dict) or about.get("schema") not in SCHEMAS:
        found = about.get("schema") if isinstance(about, dict) else None
        readable = " and ".join(map(str, SCHEMAS))
        wrong = DamagedError(path, f"its schema is {found!r}, this version reads {readable}")
        if found is not None and about.get("sha256") == _seal(about):
            raise CheckpointError(str(wrong))  # whole, but of a version to come
        raise wrong
    return about


def _unsealed(path: Path, about: Manifest) -> Manifest:
    """Return a checkpoint's JSON without its SHA-256, or raise `CheckpointError` if that is wrong.

    Checkpoints of older versions have none.
    """
    if "sha256" in about and about["sha256"] != _seal(about):
        raise DamagedError(path, "its content is not that of its SHA-256")
    return {key: value for key, value in about.items() if key != "sha256"}


def write_tensors(
    folder: Path, kind: str, tensors: Tensors, *, taken: Collection[str] = ()
) -> TensorFile:
    """Write tensors to a file that is named by its content, `<kind>-<digest>.safetensors`.

    Where that name is `taken`, the file is a copy of its own under `<kind>-<digest>-b.safetensors`.
    """
    packed = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = safetensors.torch.save(packed)
    file = _name_tensors(kind, hashlib.sha256(content).hexdigest(), taken)
    files.write_bytes(folder / file.name, content)
    return file


def _name_tensors(kind: str, sha256: str, taken: Collection[str] = ()) -> TensorFile:
    """Return where tensors of a SHA-256 lie.

    >>> _name_tensors("best", "0123456789abcdef01", {"best-0123456789abcdef.safetensors"}).name
    'best-0123456789abcdef-b.safetensors'
    """
    name = f"{kind}-{sha256[:16]}.safetensors"
    if name in taken:
        name = f"{kind}-{sha256[:16]}-b.safetensors"
    return TensorFile(name, sha256)


def read_tensors(folder: Path, file: TensorFile) -> Tensors:
    """Read tensors, or raise `CheckpointError` where they are not those that were written."""
    path = folder / file.name
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise DamagedError(path, "its SHA-256 is not the one that its JSON names")
        return safetensors.torch.load(content)
    except OSError as error:
        raise DamagedError(path, error.strerror or str(error)) from error
    except SafetensorError as error:
        raise DamagedError(path, str(error)) from error


def find_epoch(folder: Path, epoch: int) -> TensorFile:
    """Return the file of an epoch's weights, or raise `CheckpointError` where there is none."""
    for path in folder.glob(f"epoch{epoch}-*.safetensors"):
        sha256 = files.sha256_of(path)
        if path.name == _name_tensors(f"epoch{epoch}", sha256).name:
            return TensorFile(path.name, sha256)
    raise CheckpointError(
        f"{folder} has no whole weights of epoch {epoch}; delete it to train anew"
    )


def _named_in(about: Manifest) -> list[TensorFile]:
    """Return the files that a checkpoint's JSON names."""
    return [
        TensorFile(**value)
        for value in (*about.values(), (about.get("within") or {}).get("tensors"))
        if isinstance(value, dict) and value.keys() == set(TensorFile._fields)
    ]


def _check_same_config(found: object, wanted: dict[str, Any], path: Path) -> None:
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


def _remove_unnamed(folder: Path) -> None:
    """Remove the tensors that no JSON names; none of them where a JSON cannot be read."""
    try:
        manifests = [
            read_manifest(path)
            for which in _MANIFESTS
            if (path := folder / f"{which}.json").exists()
        ]
    except CheckpointError:
        return
    keep = {file.name for about in manifests for file in _named_in(about)}
    for kind in _KINDS:
        for path in folder.glob(f"{kind}-*.safetensors"):
            if path.name not in keep:
                remove_file(path)


def _seal(about: Manifest) -> str:
    return files.digest({key: value for key, value in about.items() if key != "sha256"})


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """Leaves of nested tables by dotted path."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    leaves: dict[str, object] = {}
    for key, part in value.items():
        leaves |= _flat(part, f"{prefix}{key}.")
    return leaves


class Within(NamedTuple):
    """Where a training stands within an epoch.

    `batches` of it are done, in `seconds`; `tensors` are what its meter has gathered and the states
    of torch's generators. Once all batches are done, `row` is the row of the log so far, with the
    first `parts` of the epoch's end in it.
    """

    batches: int
    seconds: float
    tensors: Tensors
    parts: int = 0
    row: dict[str, Any] | None = None


class Snapshot(NamedTuple):
    """All that a resumed training needs: tensors on the CPU, and where it stands.

    `epoch` epochs are done, and `step` steps of the whole training. `best_score` is the validation
    accuracy under attack, then clean, of `best_epoch`. With an average of weights, `weights` are
    that average, `averaged` says how many are in it, and `raw` are those that the training goes on
    with. `within` is None between epochs.
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
    within: Within | None = None


class EpochStep(NamedTuple):
    """A moment of a training: the epoch it is in, or has just ended, and steps done; from 1.

    >>> str(EpochStep(2, 15))
    'epoch 2, step 15'
    """

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.step}"


class Checkpoints:
    """The checkpoints of one training in one folder.

    `config` is what the training depends on, as plain values; a folder of another one is refused.
    Its `kept`, if it is there, are epochs whose weights stay, as `epoch<N>-<digest>.safetensors`.
    `facts` are stored beside it, for who reads the weights. `saved` is the state on disk, if there
    is one; `recovered` says that `load` found the last state damaged, and what it took instead. The
    JSON keeps such sentences as `recovered`, also when the training has finished.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], *, facts: dict[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.config = config
        self.facts = facts or {}
        self.saved: EpochStep | None = None
        self.recovered: str | None = None
        self._told: list[str] = []
        self._whole: Manifest | None = None  # the state that is known to be whole on disk
        self._good: set[TensorFile] = set()  # files written or verified by this object
        self._best: tuple[int, str] | None = None

    def save(self, snapshot: Snapshot, *, going_on: bool = False) -> None:
        """Write `last` and `best`, and if the training is `going_on` keep the state before.

        Else the new state is read back, and then is the only one. Raises `StorageError` where the
        place cannot be written; what was saved before is then as it was.
        """
        try:
            about = self._written(snapshot, going_on=going_on)
            if going_on and self._whole is not None:
                write_manifest(self.folder / "previous.json", self._whole)
            else:
                if not going_on:
                    self._verify()
                remove_file(self.folder / "previous.json")
            self._whole, self.saved = about, _place(snapshot)
            _remove_unnamed(self.folder)
        except StorageError:
            with contextlib.suppress(StorageError):
                _remove_unnamed(self.folder)
            raise

    def keep(self, epoch: int, weights: Callable[[], Tensors]) -> None:
        """Write the weights of an epoch if they are to stay; they replace those that are there."""
        if epoch not in self.config.get("kept", ()):
            return
        file = write_tensors(self.folder, f"epoch{epoch}", weights())
        for path in self.folder.glob(f"epoch{epoch}-*.safetensors"):
            if path.name != file.name:
                remove_file(path)

    def load(self) -> Snapshot | None:
        """Return the last snapshot that is whole, or None where there is none.

        Raises `CheckpointError` where all are damaged, or of another configuration.
        """
        last, previous = self.folder / "last.json", self.folder / "previous.json"
        if not last.exists() and not previous.exists():
            return None
        try:
            return self._read(last)
        except DamagedError as error:
            if not previous.exists():
                raise
            with contextlib.suppress(DamagedError):
                snapshot = self._read(previous)
                self.recovered = (
                    f"{error.path.name} was damaged ({error.why}): went on from the state before, "
                    f"of {_place(snapshot)}"
                )
                self._told.append(self.recovered)
                return snapshot
            raise

    def tidy(self, *, finished: bool) -> None:
        """Remove what a kill left behind, and write again what else would be missed.

        A `finished` training, which saves no more, gets its `best.json` back from `last.json`, and
        loses a `previous.json`. What cannot be written is left as it is.
        """
        with contextlib.suppress(StorageError):
            remove_unfinished(self.folder)
            if finished and self._whole is not None:
                self._restore_best(self._whole)
                remove_file(self.folder / "previous.json")
            _remove_unnamed(self.folder)

    def _written(self, snapshot: Snapshot, *, going_on: bool) -> Manifest:
        """Write a new state beside the last one, then put it in its place; return its JSON."""
        taken = {f.name for f in _named_in(self._whole)} if going_on and self._whole else set()

        def write(kind: str, tensors: Tensors) -> dict[str, str]:
            file = write_tensors(self.folder, kind, tensors, taken=taken)
            self._good.add(file)
            return file._asdict()

        about = {
            "best_epoch": snapshot.best_epoch,
            "best_score": list(snapshot.best_score),
            "config": self.config,
            "config_digest": files.digest(self.config),
            "facts": self.facts,
            "schema": 1,
        }
        resume = {
            "best": self._write_best(snapshot, taken)._asdict(),
            "epoch": snapshot.epoch,
            "history": snapshot.history,
            "momentum": write("momentum", snapshot.momentum),
            "step": snapshot.step,
            "tensors": write("last", snapshot.weights),
        }
        if snapshot.raw is not None:
            resume |= {"averaged": snapshot.averaged, "raw": write("raw", snapshot.raw)}
        if snapshot.within is not None:
            within = snapshot.within._asdict()
            within["tensors"] = write("within", snapshot.within.tensors)
            resume |= {"schema": 2, "within": within}
        if self._told:
            resume["recovered"] = self._told
        # `best` first: `last` says that all is there.
        write_manifest(self.folder / "best.json", _of_best(about | resume))
        write_manifest(self.folder / "last.json", about | resume)
        return about | resume

    def _write_best(self, snapshot: Snapshot, taken: set[str]) -> TensorFile:
        if self._best is not None and self._best[0] == snapshot.best_epoch:
            file = _name_tensors("best", self._best[1], taken)
            if file in self._good and (self.folder / file.name).exists():
                return file
        file = write_tensors(self.folder, "best", snapshot.best_weights, taken=taken)
        self._best = (snapshot.best_epoch, file.sha256)
        self._good.add(file)
        return file

    def _verify(self) -> None:
        """Read the last state back, before the one before it is given up."""
        try:
            for file in _named_in(read_manifest(self.folder / "last.json")):
                read_tensors(self.folder, file)
        except CheckpointError as error:
            raise StorageError(
                f"{self.folder} does not give back what was written to it ({error}); try the same "
                "command again, or choose another place with --out"
            ) from error

    def _read(self, path: Path) -> Snapshot:
        """Read one state, or raise `DamagedError`, or `CheckpointError` for another config."""
        about = _parse_manifest(path)
        try:
            snapshot = _snapshot_of(about, self.folder)
            told = [str(sentence) for sentence in about.get("recovered", [])]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(path, f"it lacks or garbles {error}") from error
        about = _unsealed(path, about)
        _check_same_config(about.get("config"), self.config, path)
        self._whole, self._told, self.saved = about, told, _place(snapshot)
        self._good = set(_named_in(about))
        self._best = (snapshot.best_epoch, TensorFile(**about["best"]).sha256)
        return snapshot

    def _restore_best(self, last: Manifest) -> None:
        path, wanted = self.folder / "best.json", _of_best(last)
        with contextlib.suppress(CheckpointError):
            if read_manifest(path) == wanted:
                return
        write_manifest(path, wanted)


def _of_best(last: Manifest) -> Manifest:
    """Return what `best.json` says beside a `last.json`."""
    shared = ("best_epoch", "best_score", "config", "config_digest", "facts")
    return {key: last[key] for key in shared} | {
        "epoch": last["best_epoch"],
        "schema": 1,
        "tensors": last["best"],
    }


def _snapshot_of(about: Manifest, folder: Path) -> Snapshot:
    """Read what a JSON names. Raises KeyError, TypeError or ValueError where it is garbled."""

    def read(value: dict[str, str]) -> Tensors:
        return read_tensors(folder, TensorFile(**value))

    robust, clean = about["best_score"]
    within = about.get("within")
    return Snapshot(
        epoch=int(about["epoch"]),
        step=int(about["step"]),
        weights=read(about["tensors"]),
        momentum=read(about["momentum"]),
        best_weights=read(about["best"]),
        best_epoch=int(about["best_epoch"]),
        best_score=(float(robust), float(clean)),
        history=list(about["history"]),
        raw=read(about["raw"]) if "raw" in about else None,
        averaged=int(about["averaged"]) if "raw" in about else 0,
        within=Within(**within | {"tensors": read(within["tensors"])}) if within else None,
    )


def _place(snapshot: Snapshot) -> EpochStep:
    return EpochStep(snapshot.epoch + (snapshot.within is not None), snapshot.step)
