"""Models of others by reference: an architecture of RobustBench's zoo with a local weight file.

A reference is `robustbench:NAME?weights=PATH`; where a name stands for several models that the
file fits, `&dataset=cifar10&threat_model=Linf` chooses. Nothing is ever downloaded.

>>> read_reference("robustbench:Rice2020Overfitting?weights=rice.pt").weights
'rice.pt'
>>> read_reference("robustbench:Rice2020Overfitting?weight=rice.pt")
Traceback (most recent call last):
...
robust_nc.exceptions.UnknownNameError: unknown part of a zoo reference 'weight'; \
did you mean 'weights'? Valid: dataset, threat_model, weights
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import torch
from torch import nn

from robust_nc.exceptions import CheckpointError, ConfigError, unknown_name
from robust_nc.io.files import sha256_of
from robust_nc.runtime.third_party import import_peer
from robust_nc.zoo.weight_files import fill, read_weights

_ZOO = "robustbench"
_PARTS = ("dataset", "threat_model", "weights")
_SIDE = {"imagenet": 224}  # pixels; 32 elsewhere


class ZooModel(NamedTuple):
    """A model in eval mode, what it was asked for by, and the SHA-256 of its weight file."""

    model: nn.Module
    reference: str
    sha256: str


class ZooReference(NamedTuple):
    """A reference, taken apart; "" for what it leaves out."""

    name: str
    dataset: str = ""
    threat_model: str = ""
    weights: str = ""


class Candidate(NamedTuple):
    """One entry of the zoo under a name."""

    dataset: str
    threat_model: str
    entry: Mapping[str, Any]

    def __str__(self) -> str:
        return f"dataset={self.dataset}&threat_model={self.threat_model}"


def load_model(reference: str) -> ZooModel:
    """Build the architecture that a reference names, and load its local weights, strictly.

    The file is safetensors, or read with `weights_only=True`. Raises `ConfigError` for a reference
    that cannot be used or names several models, `CheckpointError` for a file that is missing,
    unsafe or of another architecture; a missing one is answered with where it comes from.
    """
    asked = read_reference(reference)
    candidates = find(asked)
    path = Path(asked.weights)
    if not asked.weights or not path.is_file():
        raise CheckpointError(_about_missing(asked, candidates))
    weights = read_weights(path)
    fitting: list[tuple[Candidate, nn.Module]] = []
    problems = []
    for candidate in candidates:
        model = _build(asked.name, candidate)
        problem = fill(model, weights)
        if problem is None:
            fitting.append((candidate, model.eval()))
        else:
            problems.append(f"{candidate}: {problem}")
    if not fitting:
        raise CheckpointError(f"{path} does not fit {asked.name}: {'; '.join(problems)}")
    if not _alike(fitting):
        choices = " or ".join(f"&{candidate}" for candidate, _ in fitting)
        raise ConfigError(f"{reference} names several models that the file fits; add {choices}")
    return ZooModel(fitting[0][1], reference, sha256_of(path))


def read_reference(reference: str) -> ZooReference:
    """Take a reference apart; `ConfigError` says how one looks."""
    zoo, colon, rest = reference.partition(":")
    name, _, query = rest.partition("?")
    if zoo != _ZOO or not colon or not name:
        raise ConfigError(f"expected {_ZOO}:NAME?weights=PATH, found {reference!r}")
    return ZooReference(name, **read_parts(query, _PARTS, of="a zoo reference"))


def read_parts(query: str, valid: Collection[str], *, of: str) -> dict[str, str]:
    """Take `key=value&key=value` apart, with %XX undone.

    Raises `UnknownNameError` for a key that is not valid, `ConfigError` for one that comes twice.
    """
    parts: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key not in valid:
            raise unknown_name(f"part of {of}", key, valid)
        if key in parts:
            raise ConfigError(f"{of} names {key} twice: {query!r}")
        parts[key] = unquote(value)
    return parts


def find(asked: ZooReference) -> list[Candidate]:
    """All entries of the zoo that a reference may mean, those of robustbench's defaults first."""
    zoo = import_peer(f"{_ZOO}.model_zoo", _ZOO).model_dicts
    everything = [
        (dataset.value, threat.value, models)
        for dataset, threats in zoo.items()
        for threat, models in threats.items()
    ]
    names = {name for _, _, models in everything for name in models}
    if asked.name not in names:
        raise unknown_name("model of robustbench", asked.name, names)
    found = [
        Candidate(d, t, models[asked.name]) for d, t, models in everything if asked.name in models
    ]
    chosen = [
        candidate
        for candidate in found
        if asked.dataset in ("", candidate.dataset)
        and asked.threat_model in ("", candidate.threat_model)
    ]
    if not chosen:
        valid = " or ".join(str(candidate) for candidate in found)
        raise ConfigError(f"robustbench has {asked.name} with {valid} only")
    return chosen


def _build(name: str, candidate: Candidate) -> nn.Module:
    """Construct without weights and without touching the caller's generator."""
    source = candidate.entry.get("gdrive_id")
    if isinstance(source, list):
        raise ConfigError(
            f"{name} is an ensemble of {len(source)} files, which has no reference; "
            "load it in Python with robustbench.utils.load_model"
        )
    timm = import_peer("timm", "timm")
    registered = "_".join((name, candidate.dataset, candidate.threat_model))
    registered = registered.lower().replace("-", "_")
    with torch.random.fork_rng(devices=[]):
        if timm.is_model(registered):
            classes = import_peer(f"{_ZOO}.utils", _ZOO).DATASET_CLASSES
            (count,) = [count for key, count in classes.items() if key.value == candidate.dataset]
            model: nn.Module = timm.create_model(registered, num_classes=count, pretrained=False)
            return model
        if source is None or (candidate.dataset == "imagenet" and name.startswith("Standard")):
            raise ConfigError(
                f"{name} ({candidate}) fetches its weights where it is constructed, so it cannot "
                "be built from a local file; load it in Python with robustbench.utils.load_model"
            )
        built: nn.Module = candidate.entry["model"]()
        return built


@torch.no_grad()
def _alike(fitting: list[tuple[Candidate, nn.Module]]) -> bool:
    """Whether all answer alike, so that it does not matter which entry is meant."""
    if len({candidate.dataset for candidate, _ in fitting}) > 1:
        return False
    side = _SIDE.get(fitting[0][0].dataset, 32)
    probe = torch.linspace(0, 1, 3 * side * side).sin().abs().view(1, 3, side, side)
    answers = [model(probe) for _, model in fitting[: len(fitting) if len(fitting) > 1 else 0]]
    return all(torch.equal(answers[0], answer) for answer in answers)


def _about_missing(asked: ZooReference, candidates: list[Candidate]) -> str:
    path = asked.weights or f"models/{asked.name}.pt"
    told = f"there is no file {path}" if asked.weights else "the reference names no weights"
    places = []
    for candidate in candidates:
        source = candidate.entry.get("gdrive_id")
        ids = source if isinstance(source, list) else [source]
        links = [f"https://drive.google.com/uc?id={one}" for one in ids if one]
        places.append(f"{' and '.join(links) or 'through timm'} ({candidate})")
    return (
        f"{told}: fetch it from {', or '.join(places)}, and name it in "
        f"{_ZOO}:{asked.name}?weights={path}"
    )
