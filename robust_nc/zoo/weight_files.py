"""Weight files of others, read without trust, and models that are filled from them.

Safetensors, or what `torch.save` wrote, read with `weights_only=True`: no pickle is ever run.

>>> import pathlib, tempfile, safetensors.torch, torch
>>> path = pathlib.Path(tempfile.mkdtemp()) / "w.safetensors"
>>> safetensors.torch.save_file({"module.weight": torch.ones(1, 2), "bias": torch.ones(3)}, path)
>>> fill(torch.nn.Linear(2, 1), read_weights(path))
'other shapes in bias: (3,) instead of (1,)'
"""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from robust_nc.exceptions import CheckpointError

MAX_BYTES = 20 * 10**9  # of one file

_PREFIXES = ("module.", "model.", "_orig_mod.")  # left by wrappers that the models lack
_WRAPPED = ("state_dict", "model_state_dict", "last", "model", "net")  # where files keep weights
# What the zoo's constructors set themselves, and older files lack.
_CONSTANTS = {"mu", "sigma", "mean", "std"}
# What files of the zoo hold beside the weights: heads and masks of training.
_BESIDE = ("model_preact_hl1.", ".scores")
_SHOWN = 3  # names in a message


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a weight file by name, without the tables around them and what is no tensor.

    Raises `CheckpointError` for a file that is missing, damaged, too large, or more than tensors.
    """
    check_size(path)
    if path.suffix == ".safetensors" or _is_safetensors(path):
        return read_safetensors(path)
    _check_zip(path)
    found: Any = _unpickled(path)
    while isinstance(found, dict) and not _is_state(found):
        inner = next((found[key] for key in _WRAPPED if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found = inner
    tensors = _tensors(found) if isinstance(found, dict) else {}
    if not tensors:
        told = type(found).__name__
        if isinstance(found, dict):
            told = ", ".join(str(key)[:60] for key in list(found)[:5])
        raise CheckpointError(f"{path} holds no state_dict; its keys: {told}")
    return {str(name): tensor for name, tensor in tensors.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name, on the CPU; raises `CheckpointError` for any other."""
    check_size(path)
    start = _start(path)
    if start[8:] != b"{" and start.startswith((b"\x80", b"PK\x03\x04")):
        raise CheckpointError(
            f"{path} is no safetensors file but what torch.save or pickle writes, and was not "
            "opened; where you trust it, save its state_dict with safetensors.torch.save_file"
        )
    header, size = int.from_bytes(start[:8], "little"), path.stat().st_size
    if len(start) < 8 or header > size - 8:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: it has {size:,} bytes, and its header "
            f"claims {header:,}"
        )
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # of the parser, of a type that torch lacks, of the file system
        raise CheckpointError(f"{path} cannot be read as safetensors: {_told(error)}") from None


def check_size(path: Path) -> None:
    """Raise `CheckpointError` for what is no file, or one of more than `MAX_BYTES`."""
    try:
        if not path.is_file():
            raise CheckpointError(f"there is no weight file {path}")
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{path} has {size / 1e9:.1f} GB; weight files of up to {MAX_BYTES / 1e9:.0f} GB are "
            "read"
        )


def fill(model: nn.Module, weights: Mapping[str, Tensor], *, strict: bool = False) -> str | None:
    """Load weights into a model; what does not fit, None where all does.

    Names are compared without the prefixes of wrappers, and what the models of RobustBench's zoo
    add may differ, unless `strict`. A tensor that shares its memory with one that is there may be
    missing: safetensors keeps one of them.
    """
    wanted: dict[str, Any] = model.state_dict()
    bare = {name: name for name in wanted} if strict else {name: _bare(name) for name in wanted}
    given = dict(weights) if strict else {_bare(name): value for name, value in weights.items()}
    state = {name: given[bare[name]] for name in wanted if bare[name] in given}
    shared = {_memory(wanted[name]) for name in state} - {None}
    missing = [n for n in wanted if n not in state and _memory(wanted[n]) not in shared]
    spare = sorted(given.keys() - set(bare.values()))
    if not strict:
        missing, spare = (
            [name for name in names if name.split(".")[-1] not in _CONSTANTS]
            for names in (missing, spare)
        )
        head, mask = _BESIDE
        spare = [name for name in spare if not (name.startswith(head) or name.endswith(mask))]
    if missing:
        return f"lacks {_listed(missing)}"
    if spare:
        return f"holds unknown {_listed(spare)}"
    problem = _unusable(state, wanted)
    if problem is None:
        try:
            model.load_state_dict(state, strict=False)
        except RuntimeError as error:  # a model may check its weights itself
            problem = f"is refused by the model ({_told(error)})"
    return problem


def _unusable(state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> str | None:
    """Say which tensors have another shape or no plain values."""
    shapes = [
        f"{name}: {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in state.items()
        if value.shape != getattr(wanted[name], "shape", None)
    ]
    if shapes:
        return f"other shapes in {_listed(shapes)}"
    hollow = [
        name
        for name, value in state.items()
        if value.is_meta or value.is_quantized or value.layout != torch.strided
    ]
    return f"holds no plain values for {_listed(hollow)}" if hollow else None


def _memory(value: object) -> tuple[Any, ...] | None:
    """What tells tensors of one piece of memory from others; None where there is none."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.numel():
        return None
    return value.data_ptr(), tuple(value.shape), tuple(value.stride())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(name[:120] for name in names[:_SHOWN])}{more}"


def _bare(key: str) -> str:
    """Name of a tensor without the prefixes of wrappers."""
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, which is not read from strangers "
            f"({str(error).splitlines()[0][:100]}); where you trust it, save its state_dict alone"
        ) from None
    except Exception as error:  # a damaged file may end anywhere in the reader
        raise CheckpointError(f"{path} cannot be read as weights: {_told(error)}") from None


def _check_zip(path: Path) -> None:
    """Refuse an archive that unpacks to more than it has bytes: torch.save packs nothing."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # a damaged directory may end anywhere in the reader
        raise CheckpointError(f"{path} is a damaged archive: {_told(error)}") from None
    if total > path.stat().st_size:
        raise CheckpointError(
            f"{path} is an archive that unpacks to {total:,} bytes, more than it has; torch.save "
            "writes no such file"
        )


def _is_safetensors(path: Path) -> bool:
    start = _start(path)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def _start(path: Path) -> bytes:
    """Read what tells a safetensors file: the length of a header, then its brace."""
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _tensors(found: Mapping[Any, Any]) -> dict[Any, Tensor]:
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def _is_state(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(value, Tensor) for value in found.values())


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
