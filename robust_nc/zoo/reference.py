"""From a reference to a model: code of one's own, a checkpoint, the Hub, RobustBench, timm.

>>> opened = open_model("torch.nn:Flatten", num_classes=4, image_shape=(1, 2, 2))
>>> opened.model(torch.zeros(1, 1, 2, 2)).shape, opened.name
(torch.Size([1, 4]), 'torch.nn-Flatten')
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import nn

from robust_nc.evaluation.scoring import Guarded, checked_logits
from robust_nc.exceptions import ConfigError, InputError, unknown_name
from robust_nc.io.digests import state_digests
from robust_nc.io.files import digest
from robust_nc.io.user_code import Code, split_code
from robust_nc.models.backbones import ImageShape
from robust_nc.record.folder import NOT_RECORDS
from robust_nc.runtime.model_outputs import logits_model
from robust_nc.zoo.checkpoint import FoundModel, Which, from_checkpoint, from_record
from robust_nc.zoo.code import Tell, from_code, strangers_code
from robust_nc.zoo.hub import CONFIG, fetch_folder, from_folder, looks_like_one
from robust_nc.zoo.programs import from_program, is_program
from robust_nc.zoo.robustbench import load_model, read_parts
from robust_nc.zoo.timm import from_timm

FORMS = (
    "package.module:factory",
    "path/to/file.py:factory",
    "the folder of one of our checkpoints (?which=last)",
    "a record of ours",
    "a folder with config.json and model.safetensors (?class=module:Class)",
    "a program: TorchScript (.pt), torch.export (.pt2), ONNX (.onnx)",
    "hf:OWNER/NAME",
    "robustbench:NAME?weights=FILE",
    "timm:NAME?weights=FILE",
)

_KINDS = ("hf:", "robustbench:", "timm:")
_LONGEST = 80
_CHECKPOINTS = ("best.json", "last.json")


class OpenedModel(NamedTuple):
    """A model in eval mode on the CPU, as it was asked for, and a name for files about it.

    `num_classes` are those that it tells apart, `digests` those of its tensors (`state_digests`).
    `facts` holds "head", "objective" and "backbone" of a model of ours, and nothing of others.
    """

    model: nn.Module
    reference: str
    name: str
    num_classes: int
    digests: Mapping[str, str]
    facts: Mapping[str, str]


def open_model(
    reference: str, *, num_classes: int, image_shape: ImageShape, tell: Tell | None = None
) -> OpenedModel:
    """Return the model that a reference names, one of `FORMS`; a path that exists wins.

    Code runs only where the reference names it. The model must turn images of `image_shape` into
    logits of at least `num_classes` columns, which two images show. `tell` is told what a user
    should know. Raises `ConfigError`, `CheckpointError`, `RecordError` or `InputError`, each with
    one sentence.
    """
    if not reference.strip() or "\0" in reference:
        raise ConfigError(f"found no model in {reference[:80]!r}; valid: {'; '.join(FORMS)}")
    found = _found(reference, num_classes=num_classes, image_shape=image_shape, tell=tell)
    with strangers_code(reference, tell):
        model = logits_model(found.model.cpu().eval())
        answered = _checked_classes(model, reference, num_classes, image_shape, tell)
        digests = state_digests(model)
    return OpenedModel(model, reference, name_of(reference), answered, digests, found.facts)


def runs_code(reference: str) -> bool:
    """Whether opening a reference runs code that it names, or that is a program.

    >>> runs_code("net.py:make"), runs_code("hf:a/b?class=net.py:Net"), runs_code("timm:vit")
    (True, True, False)
    """
    place, query = _place(reference)
    named = any(part.startswith("class=") for part in query.split("&"))
    if place is not None:
        return named or is_program(place)
    return named or _code(reference) is not None


def fetched(reference: str, tell: Tell | None = None) -> str:
    """Return a reference that needs no connection; one of the Hub is fetched for it."""
    place, query = _place(reference)
    if place is not None or not reference.startswith("hf:"):
        return reference
    parts = read_parts(query, ("class", "revision"), of="an hf reference")
    name = reference.removeprefix("hf:").partition("?")[0]
    folder = fetch_folder(name, revision=parts.get("revision"), tell=tell)
    return f"{folder}?class={parts['class']}" if "class" in parts else str(folder)


def name_of(reference: str) -> str:
    """Make a short file name of a reference: letters, digits, `.`, `_` and `-`.

    >>> name_of("models/mine.py:net"), name_of("hf:someone/model?revision=main")
    ('mine-net', 'someone-model-main')
    """
    place, query = _place(reference)
    code = None if place is not None else _code(reference)
    if code is not None:
        told = f"{Path(code.place).stem if code.is_file else code.place}-{code.name}"
    elif place is not None:
        told = place.resolve().name.removesuffix(".json")
        told = place.resolve().parent.name if place.name in _CHECKPOINTS else told
    else:
        told = reference.partition("?")[0].removeprefix("hf:")
    # Of the query only what tells models apart in words: no path of weights, no class.
    parts = (part.partition("=") for part in query.split("&"))
    told += "".join(f"-{value}" for key, _, value in parts if key in {"revision", "which"})
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", told).strip("-.")
    if not name or name in NOT_RECORDS:
        return f"model-{name or digest(reference)[:8]}"
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 9]}-{digest(reference)[:8]}"


def _found(
    reference: str, *, num_classes: int, image_shape: ImageShape, tell: Tell | None
) -> FoundModel:
    """Dispatch on the form of a reference."""
    place, query = _place(reference)
    if place is not None:
        return _of_place(place, query, reference, tell)
    kind, colon, rest = reference.partition(":")
    name = rest.partition("?")[0]
    if colon and kind == "robustbench":
        return FoundModel(load_model(reference).model, {})
    if colon and kind == "timm":
        parts = read_parts(query, ("weights",), of="a timm reference")
        model = from_timm(
            name,
            weights=parts.get("weights", ""),
            num_classes=num_classes,
            image_shape=image_shape,
            tell=tell,
        )
        return FoundModel(model, {})
    if colon and kind == "hf":
        parts = read_parts(query, ("class", "revision"), of="an hf reference")
        folder = fetch_folder(name, revision=parts.get("revision"), tell=tell)
        return from_folder(folder, class_name=parts.get("class"), reference=reference, tell=tell)
    code = _code(reference)
    if code is None:
        raise _unknown(reference)
    return FoundModel(from_code(code, tell=tell), {})


def _of_place(path: Path, query: str, reference: str, tell: Tell | None) -> FoundModel:
    """Open what lies at a path."""
    if path.is_dir():
        if any((path / name).is_file() for name in _CHECKPOINTS):
            parts = read_parts(query, ("which",), of="a checkpoint reference")
            which = _which(parts.get("which", "best"))
            return from_checkpoint(path / f"{which}.json", which=which)
        if not any(map(looks_like_one, path.iterdir())):
            raise ConfigError(
                f"{path} holds no model: neither best.json of one of our checkpoints nor "
                f"{CONFIG} and model.safetensors; valid: {'; '.join(FORMS)}"
            )
        parts = read_parts(query, ("class",), of="the reference of a folder")
        return from_folder(path, class_name=parts.get("class"), reference=reference, tell=tell)
    if path.name in _CHECKPOINTS:
        read_parts(query, (), of="the reference of a checkpoint's JSON")
        return from_checkpoint(path, which=_which(path.stem))
    if path.suffix == ".json":
        parts = read_parts(query, ("which",), of="the reference of a record")
        return from_record(path, which=_which(parts.get("which", "best")))
    if path.is_file() and is_program(path):
        read_parts(query, (), of="the reference of a program")
        return FoundModel(from_program(path, tell), {})
    raise ConfigError(_about_file(path))


def _which(name: str) -> Which:
    if name not in ("best", "last"):
        raise unknown_name("checkpoint", name, ("best", "last"))
    return cast(Which, name)


def _place(reference: str) -> tuple[Path | None, str]:
    """Find the path that a reference begins with, all of it or all before some `?`; and the query.

    Without such a path, the query is what follows the first `?`.
    """
    code = _code(reference)
    if code is None or not (code.is_file and _exists(code.place)):
        ends = [len(reference), *(mark.start() for mark in re.finditer(r"\?", reference))]
        for end in sorted(ends, reverse=True):
            if _exists(reference[:end]):
                return Path(reference[:end]), reference[end + 1 :]
    return None, reference.partition("?")[2]


def _code(reference: str) -> Code | None:
    """Return the code that a reference names; a file that is there may have any path."""
    code = split_code(reference)
    if code is None or (code.is_file and _exists(code.place)):
        return code
    return None if "?" in reference or reference.startswith(_KINDS) else code


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long, or no path at all
        return False


def _about_file(path: Path) -> str:
    """Say what to do with a file that is no model by itself."""
    if path.suffix == ".py":
        return f"{path} is a file of code: name the function that returns the model, {path}:NAME"
    if path.suffix in {".zip", ".tar", ".gz", ".tgz", ".xz", ".7z"}:
        return f"{path} is an archive, which is not opened; unpack it and name what is in it"
    if path.suffix in {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl"}:
        return (
            f"{path} holds weights without their architecture: name code that builds the model "
            f"(file.py:factory), or timm:NAME?weights={path}"
        )
    return f"{path} is no model; valid: {'; '.join(FORMS)}"


def _unknown(reference: str) -> ConfigError:
    """Answer a reference of no form with all of them."""
    start, shown = reference.partition("?")[0], reference[:120]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", start):
        return ConfigError(
            f"there is no folder {start!r}; if it is a repository of the Hugging Face Hub, write "
            f"hf:{shown}"
        )
    return ConfigError(
        f"{shown!r} names no model: it is no path that exists; valid: {'; '.join(FORMS)}"
    )


@torch.no_grad()
def _checked_classes(
    model: nn.Module, reference: str, num_classes: int, image_shape: ImageShape, tell: Tell | None
) -> int:
    """Return how many classes a model tells apart; refuse one that makes no logits of images."""
    size = 2 * image_shape[0] * image_shape[1] * image_shape[2]
    probe = torch.linspace(0, 9, size).sin().abs().view(2, *image_shape)
    try:
        classes = checked_logits(Guarded(model, "a probe"), probe, torch.empty(0)).shape[1]
    except InputError as error:
        raise InputError(
            f"{reference}: {error}; it gets float32 images {image_shape} in [0, 1] and must return "
            "logits alone: wrap it, or cast with .float(), where it wants or gives something else"
        ) from None
    if classes < num_classes:
        raise InputError(
            f"{reference} tells {classes} classes apart, but the data have {num_classes}; give the "
            "data that it was trained for, or a model with an output for each class"
        )
    if classes > num_classes and tell is not None:
        tell(f"{reference} has {classes} classes, the data {num_classes}: all of them count")
    return classes
