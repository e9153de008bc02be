"""The files of a checkpoint: JSON that says what there is, and the files of tensors that it names.

Tensors lie under names made of their content, and a JSON holds the SHA-256 of all that it names and
of itself, so that any changed byte is seen.

>>> import pathlib, tempfile, torch
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> file = write_tensors(folder, "last", {"w": torch.ones(2)})
>>> write_manifest(folder / "last.json", {"schema": 1, "tensors": file._asdict()})
>>> about = read_manifest(folder / "last.json")
>>> read_tensors(folder, TensorFile(**about["tensors"]))["w"].tolist()
[1.0, 1.0]
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from robust_nc.exceptions import CheckpointError
from robust_nc.io import files
from robust_nc.io.files import remove_file
from robust_nc.training.state import Tensors

SCHEMAS = (1, 2)
"""1: a state between epochs; 2: one within an epoch, which an older version must not read as 1."""

KINDS = ("best", "last", "momentum", "raw", "within")
MANIFESTS = ("best", "last", "previous")

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


def damaged(path: Path, why: str) -> DamagedError:
    """Name a damaged file, what is wrong with it and the remedy."""
    return DamagedError(path, why)


def write_manifest(path: Path, about: Manifest) -> None:
    """Write a checkpoint's JSON with its own SHA-256."""
    sealed = about | {"sha256": _seal(about)}
    text = json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False)
    files.write_text(path, text + "\n")


def read_manifest(path: Path) -> Manifest:
    """Read a checkpoint's JSON, or raise `CheckpointError`."""
    return unsealed(path, parse_manifest(path))


def parse_manifest(path: Path) -> Manifest:
    """Read a checkpoint's JSON, whose SHA-256 is yet to be looked at (`unsealed`)."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise damaged(path, f"not JSON ({error})") from error
    if not isinstance(about, dict) or about.get("schema") not in SCHEMAS:
        found = about.get("schema") if isinstance(about, dict) else None
        readable = " and ".join(map(str, SCHEMAS))
        wrong = damaged(path, f"its schema is {found!r}, this version reads {readable}")
        if found is not None and about.get("sha256") == _seal(about):
            raise CheckpointError(str(wrong))  # whole, but of a version to come
        raise wrong
    return about


def unsealed(path: Path, about: Manifest) -> Manifest:
    """Return a checkpoint's JSON without its SHA-256, or raise `CheckpointError` if that is wrong.

    Checkpoints of older versions have none.
    """
    if "sha256" in about and about["sha256"] != _seal(about):
        raise damaged(path, "its content is not that of its SHA-256")
    return {key: value for key, value in about.items() if key != "sha256"}


def write_tensors(
    folder: Path, kind: str, tensors: Tensors, *, taken: Collection[str] = ()
) -> TensorFile:
    """Write tensors to a file that is named by its content, `<kind>-<digest>.safetensors`.

    Where that name is `taken`, the file is a copy of its own under `<kind>-<digest>-b.safetensors`.
    """
    content = safetensors.torch.save({name: _packed(tensor) for name, tensor in tensors.items()})
    file = name_tensors(kind, hashlib.sha256(content).hexdigest(), taken)
    files.write_bytes(folder / file.name, content)
    return file


def name_tensors(kind: str, sha256: str, taken: Collection[str] = ()) -> TensorFile:
    """Return where tensors of a SHA-256 lie.

    >>> name_tensors("best", "0123456789abcdef01", {"best-0123456789abcdef.safetensors"}).name
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
            raise damaged(path, "its SHA-256 is not the one that its JSON names")
        return safetensors.torch.load(content)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    except SafetensorError as error:
        raise damaged(path, str(error)) from error


def named_in(about: Manifest) -> list[TensorFile]:
    """Return the files that a checkpoint's JSON names."""
    return [
        TensorFile(**value)
        for value in (*about.values(), (about.get("within") or {}).get("tensors"))
        if isinstance(value, dict) and value.keys() == set(TensorFile._fields)
    ]


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


def remove_unnamed(folder: Path) -> None:
    """Remove the tensors that no JSON names; none of them where a JSON cannot be read."""
    try:
        manifests = [
            read_manifest(path)
            for which in MANIFESTS
            if (path := folder / f"{which}.json").exists()
        ]
    except CheckpointError:
        return
    keep = {file.name for about in manifests for file in named_in(about)}
    for kind in KINDS:
        for path in folder.glob(f"{kind}-*.safetensors"):
            if path.name not in keep:
                remove_file(path)


def _seal(about: Manifest) -> str:
    return files.digest({key: value for key, value in about.items() if key != "sha256"})


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
