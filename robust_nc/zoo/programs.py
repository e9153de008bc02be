"""Files that hold a network with its code: TorchScript, `torch.export`, ONNX.

They are programs, and reading one runs what it says: only where its user named it, and for a record
of somebody else in a process of its own (`runs_code`).

>>> is_program(Path("net.onnx")), is_program(Path("nowhere.pt"))
(True, False)
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_nc.exceptions import CheckpointError, ConfigError
from robust_nc.io.user_code import told
from robust_nc.runtime.model_outputs import ExportedModel
from robust_nc.zoo.code import Tell, strangers_code
from robust_nc.zoo.weight_files import check_size

_ZIPPED = {".pt", ".pth", ".bin", ".ts", ".jit", ".torchscript"}


def is_program(path: Path) -> bool:
    """Whether a file is opened here: by its name, and of archives by what is in them."""
    if path.suffix in {".onnx", ".pt2"}:
        return True
    return path.suffix in _ZIPPED and any("/code/" in name for name in _members(path))


def from_program(path: Path, tell: Tell | None = None) -> nn.Module:
    """Return the model of a file, on the CPU.

    Raises `CheckpointError` for one that cannot be read, `ConfigError` where a library is missing.
    """
    check_size(path)
    with strangers_code(str(path), tell):
        try:
            if path.suffix == ".onnx":
                return _from_onnx(path)
            if path.suffix == ".pt2":
                return ExportedModel(torch.export.load(path).module())
            with warnings.catch_warnings():  # that TorchScript is on its way out
                warnings.simplefilter("ignore", DeprecationWarning)
                load: Any = torch.jit.load  # it has no types
                found: nn.Module = load(path, map_location="cpu")
            return found
        except (CheckpointError, ConfigError):
            raise
        except Exception as error:  # a damaged file may end anywhere in the reader
            raise CheckpointError(f"{path} cannot be read: {told(error)[:300]}") from None


def _from_onnx(path: Path) -> nn.Module:
    try:
        from onnx2torch import convert
    except ImportError as error:
        raise ConfigError(
            f"{path} is read by onnx2torch, which needs {error.name}, and that is not installed or "
            "does not work here: pip install 'robust-nc[onnx]', which needs a torch with a "
            "torchvision that imports"
        ) from None
    model: nn.Module = convert(str(path))
    return model


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []
