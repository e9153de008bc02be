"""Models of the Hugging Face Hub: a folder with `config.json` and `model.safetensors`.

That is what `PyTorchModelHubMixin` writes. No code of the folder is run, and no pickle is read.

>>> check_repository("someone/model")
'someone/model'
>>> check_repository("../model")
Traceback (most recent call last):
...
robust_nc.exceptions.ConfigError: expected hf:OWNER/NAME, found 'hf:../model'
"""

import dataclasses
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from robust_nc.config import Component, ModelConfig, configuration, read
from robust_nc.exceptions import CheckpointError, ConfigError, RecordError, RobustNCError
from robust_nc.io.untrusted import read_json
from robust_nc.io.user_code import split_code, told
from robust_nc.models.build import build_model
from robust_nc.zoo.checkpoint import FoundModel, facts_of
from robust_nc.zoo.code import Tell, from_code, to_stderr
from robust_nc.zoo.weight_files import check_size, fill, read_safetensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PATTERNS = (CONFIG, WEIGHTS)  # all that is ever fetched

_PICKLES = (".bin", ".pt", ".pth")
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")


@configuration
class OwnConfig:
    """What `config.json` says under "robust_nc" of a model of ours."""

    model: ModelConfig
    seed: int = 0
    objective: str | None = None


def fetch_folder(name: str, *, revision: str | None = None, tell: Tell | None = None) -> Path:
    """Fetch `PATTERNS` of a repository, or take them from the cache, and return their folder.

    Raises `ConfigError` in one sentence where huggingface_hub is missing or the repository is out
    of reach.
    """
    check_repository(name)
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ConfigError(
            f"hf:{name} needs huggingface_hub, which is not installed: "
            'pip install "robust_nc[hub]", or download the folder and name it'
        ) from None
    try:
        with to_stderr():
            found = hub.snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS))
    except Exception as error:  # of the connection, the repository, the client
        at = f" at revision {revision}" if revision else ""
        why = (str(error).splitlines() or [""])[0][:160]
        raise ConfigError(
            f"hf:{name}{at} cannot be fetched ({type(error).__name__}: {why}); check the name "
            "and the connection, or download the folder elsewhere and name it"
        ) from None
    folder = Path(found)
    if revision is None and tell is not None:
        tell(f"hf:{name} is revision {folder.name}; add revision={folder.name} to name it for good")
    return folder


def check_repository(name: str) -> str:
    """Return the name of a repository, `OWNER/NAME`; raises `ConfigError` for anything else."""
    if not _REPOSITORY.fullmatch(name):
        raise ConfigError(f"expected hf:OWNER/NAME, found {f'hf:{name}'[:120]!r}")
    return name


def looks_like_one(path: Path) -> bool:
    """Whether a file is what a model's folder holds."""
    return path.name == CONFIG or path.suffix in {".safetensors", *_PICKLES}


def from_folder(
    folder: Path, *, class_name: str | None, reference: str, tell: Tell | None = None
) -> FoundModel:
    """Build the model of a folder and load its weights, strictly.

    `class_name` is `package.module:Class` or `file.py:Class`, code of the user, called with what
    `config.json` holds; without it, `config.json` must say that the model is one of ours. Raises
    `ConfigError`, `CheckpointError` or `RecordError` in one sentence.
    """
    weights = _weights_file(folder)
    config = _config(folder)
    if class_name is not None:
        code = split_code(class_name)
        if code is None:
            raise ConfigError(
                "class must be package.module:Class or path/to/file.py:Class, found "
                f"{class_name[:120]!r}"
            )
        model = from_code(code, options=config, tell=tell)
        return FoundModel(_filled(model, weights, class_name), {})
    if "robust_nc" not in config:
        raise ConfigError(
            f"{folder} does not say what its weights belong to: name the class, as in "
            f"{reference}{'&' if '?' in reference else '?'}class=package.module:Class or "
            "class=file.py:Class"
        )
    own = read(OwnConfig, config["robust_nc"], source=f"{folder / CONFIG}, robust_nc")
    model = _built(own, folder)
    return FoundModel(
        _filled(model, weights, "the model in it"), facts_of(own.model, own.objective)
    )


def _built(own: OwnConfig, folder: Path) -> nn.Module:
    """Build a model of ours; nothing is fetched for it, as its weights are here."""
    backbone = own.model.backbone
    if "pretrained" in backbone.options:
        kept = {key: value for key, value in backbone.options.items() if key != "pretrained"}
        backbone = Component(name=backbone.name, options=kept)
    try:
        return build_model(dataclasses.replace(own.model, backbone=backbone), seed=own.seed)
    except RobustNCError:
        raise
    except Exception as error:  # sizes beyond all measure end anywhere
        raise ConfigError(f"{folder / CONFIG} cannot be built: {told(error)}") from None


def _filled(model: nn.Module, weights: Path, what: str) -> nn.Module:
    problem = fill(model, read_safetensors(weights), strict=True)
    if problem is not None:
        raise CheckpointError(f"{weights} does not fit {what}: it {problem}")
    return model


def _config(folder: Path) -> Mapping[str, Any]:
    """Read `config.json`; an empty table where there is none, as a class may need nothing."""
    path = folder / CONFIG
    if not path.exists():
        return {}
    _check_place(folder, path)
    config = read_json(path)
    if not isinstance(config, dict):
        raise RecordError(f"{path} must hold a table, found {type(config).__name__}")
    return config


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS
    if path.is_file():
        _check_place(folder, path)
        check_size(path)
        return path
    there = folder.iterdir() if folder.is_dir() else ()
    pickles = sorted(file.name for file in there if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]} and no {WEIGHTS}, and pickles of strangers are not read; "
            "where you trust it, convert it: safetensors.torch.save_file("
            f"torch.load({pickles[0]!r}, weights_only=True), {WEIGHTS!r})"
        )
    raise CheckpointError(
        f"{folder} holds no {WEIGHTS}: expected {CONFIG} and one {WEIGHTS}, as "
        "PyTorchModelHubMixin.save_pretrained writes them"
    )


def _check_place(folder: Path, path: Path) -> None:
    """Refuse a link that leads out of its folder, but to the blobs of the Hub's cache."""
    home, target = folder.resolve(), path.resolve()
    if target.is_relative_to(home):
        return
    if home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs":
        return
    raise CheckpointError(f"{path} is a link that leads out of its folder; put the file there")
