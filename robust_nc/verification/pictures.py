"""Adversarial images of the evidence as pictures, with what the model takes them for.

A picture holds the original, the attacked image, and their difference times a number that its
caption tells, side by side.

>>> strip = _strip(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.125), 4.0)
>>> strip.size, strip.getpixel((0, 0)), strip.getpixel((7, 1))
((8, 2), (0, 0, 0, 255), (255, 255, 255, 255))
"""

import io
from collections import defaultdict
from contextlib import ExitStack
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from robust_nc.data.load import read_split, to_unit
from robust_nc.evidence.file import Evidence, read_differences
from robust_nc.exceptions import InputError, RobustNCError
from robust_nc.io.digests import state_digests
from robust_nc.io.files import write_bytes
from robust_nc.models.taps import PENULTIMATE, read_taps
from robust_nc.record.schema import Record, Stored
from robust_nc.report.board.gather import value_in
from robust_nc.report.figures import SavedFigure
from robust_nc.report.figures.selection import class_name
from robust_nc.runtime.torch_state import default_device, device_of, full_precision, untouched
from robust_nc.training.validation import evenly_chosen
from robust_nc.verification.evidence import check_evidence, find_evidence
from robust_nc.verification.originals import RecordExamples, dataset_of, examples_of, model_of
from robust_nc.zoo.checkpoint import from_checkpoint, from_record
from robust_nc.zoo.hub import CONFIG, from_folder

MOST = 8
_TRAIN = 1_000  # images whose class means are the vertices
_SIDE = 96  # pixels; larger images are made smaller
_GAP = 1 / 14  # of a side
_BATCH = 250


class _Seen(NamedTuple):
    """What a model takes n images for, and the class mean nearest to each (-1: not known)."""

    predicted: Tensor
    nearest: Tensor


def adversarial_pictures(
    stored: Stored,
    folder: Path,
    *,
    rows: Tensor | None = None,
    root: Path | None = None,
    reference: str | None = None,
    isolated: bool = False,
) -> list[SavedFigure]:
    """Write adversarial images of a record's evidence as PNG, `MOST` at most, one of each class.

    `rows` are the examples to choose from (None: all). Without the data set at hand a picture is
    the difference alone. What the model says needs the model: what `reference` names, whose code is
    run (if `isolated`, in a process of its own), else weights of ours that the record names and
    that lie here, which are data. Another one than was judged is not asked. Where there is no
    picture, the one figure says why.
    """
    try:
        path = find_evidence(stored)
        if path is None:
            return _none("its record keeps no adversarial images, or they are not beside it")
        examples, why = _examples(stored.record, root)
        found = check_evidence(stored, examples=examples, model=None)
        if found.evidence is None or found.wrong:
            return _none(f"its evidence is not as it should be: {found.wrong[0]}")
        chosen = _chosen(found.evidence, rows)
        if not len(chosen):
            return _none("no attack broke any of these examples")
        if examples is None:
            return _differences(stored, found.evidence, path, chosen, folder, why)
        with ExitStack() as stack:
            if reference is None:
                model = _own_model(stored)
            else:
                asked = (stored.record, reference, examples, lambda _: None)
                model = stack.enter_context(model_of(*asked, trusted=not isolated))
            seen = _seen(stored, found.evidence, examples, chosen, model, root)
    except RobustNCError as error:
        return _none(str(error))
    return _pictures(stored.record, found.evidence, examples, chosen, seen, folder)


def _none(why: str) -> list[SavedFigure]:
    return [SavedFigure("adversarial", "", "", None, why)]


def _examples(record: Record, root: Path | None) -> tuple[RecordExamples | None, str]:
    try:
        return examples_of(record, root), ""
    except RobustNCError as error:
        return None, str(error)


def _chosen(evidence: Evidence, rows: Tensor | None) -> Tensor:
    """Places among the broken examples: the first of each class, then the second, ..."""
    of_class: dict[int, list[int]] = defaultdict(list)
    wanted = set(evidence.broken.tolist() if rows is None else rows.tolist())
    for place, row in enumerate(evidence.broken.tolist()):
        if row in wanted:
            of_class[int(evidence.labels[row])].append(place)
    turns = zip_longest(*(of_class[label] for label in sorted(of_class)))
    order = [place for place in chain.from_iterable(turns) if place is not None]
    return torch.tensor(order[:MOST], dtype=torch.int64)


def _pictures(
    record: Record,
    evidence: Evidence,
    examples: RecordExamples,
    chosen: Tensor,
    seen: tuple[_Seen, _Seen] | None,
    folder: Path,
) -> list[SavedFigure]:
    made = []
    for index, place in enumerate(chosen.tolist()):
        row = int(evidence.broken[place])
        original, attacked = examples.images[row], evidence.adversarials[place]
        times = _times(attacked - original)
        taken, told = "misclassified", []
        if seen is not None:
            before, after = seen
            taken = f"taken for {_class(record, after.predicted[index])}"
            told = [_landing(record, before.nearest[index], after.nearest[index])]
        told += [_broken_by(record, evidence, row), f"difference x {times:g}"]
        figure = SavedFigure(
            f"adversarial-{index + 1}",
            f"{_class(record, evidence.labels[row])}, {taken}",
            "; ".join(part for part in told if part),
            folder / f"adversarial-{index + 1}.png",
        )
        _write(_strip(original, attacked, times), figure.path)
        made.append(figure)
    return made


def _differences(
    stored: Stored, evidence: Evidence, path: Path, chosen: Tensor, folder: Path, why: str
) -> list[SavedFigure]:
    """Write what evidence holds without the originals: differences alone, and say why so."""
    all_of_them = read_differences(path)
    made = [*_none(f"the originals are not here, only the differences are shown: {why}")]
    for index, place in enumerate(chosen.tolist()):
        difference, row = all_of_them[place], int(evidence.broken[place])
        if not bool(difference.isfinite().all()):
            continue  # this one was kept as an image, which only its original leads to
        times = _times(difference)
        name = f"adversarial-{index + 1}"
        title = f"{_class(stored.record, evidence.labels[row])}, misclassified"
        caption = f"{_broken_by(stored.record, evidence, row)}; difference x {times:g}"
        made.append(SavedFigure(name, title, caption, folder / f"{name}.png"))
        _write(_image(0.5 + times * difference), made[-1].path)
    return made


def _class(record: Record, label: Tensor) -> str:
    return class_name(record.data.dataset, int(label))


def _landing(record: Record, before: Tensor, after: Tensor) -> str:
    """Say next to which class means an example lies, clean and attacked."""
    if int(after) < 0:
        return ""
    there = f"nearest class mean {_class(record, before)}"
    moved = int(before) != int(after)
    return f"{there}, then {_class(record, after)}: it leaped" if moved else f"{there}: no leap"


def _broken_by(record: Record, evidence: Evidence, row: int) -> str:
    code = int(evidence.broken_by[row])
    return f"by {record.attacks[code].name}" if code < len(record.attacks) else ""


def _seen(
    stored: Stored,
    evidence: Evidence,
    examples: RecordExamples,
    chosen: Tensor,
    model: nn.Module | None,
    root: Path | None,
) -> tuple[_Seen, _Seen] | None:
    """Ask the model that was judged about originals and attacked images; None without it."""
    if model is None or state_digests(model) != dict(evidence.weights):
        return None
    originals = examples.images[evidence.broken[chosen]]
    try:
        vertices = _vertices(model, stored.record, root)
        return _ask(model, originals, vertices), _ask(
            model, evidence.adversarials[chosen], vertices
        )
    except RobustNCError:
        raise
    except Exception as error:  # a stranger's model may raise anything
        raise InputError(f"the model did not answer: {type(error).__name__}") from None


def _own_model(stored: Stored) -> nn.Module | None:
    """Open weights of ours: a folder with `config.json`, a checkpoint, those of a suite's cell."""
    reference = value_in(stored.record.config, "model", "reference")
    try:
        if not isinstance(reference, str):
            return from_record(stored.path).model.to(default_device()).eval()
        place = Path(reference)
        if (place / CONFIG).is_file():
            found = from_folder(place, class_name=None, reference=reference)
        else:
            found = from_checkpoint(place / "best.json", which="best")
        return found.model.to(default_device()).eval()
    except (RobustNCError, OSError, ValueError):  # elsewhere, other, or a model with code
        return None


def _vertices(model: nn.Module, record: Record, root: Path | None) -> Tensor | None:
    """Class means `(K, D)` of clean training images before the head; None where there are none."""
    try:
        train = evenly_chosen(read_split(dataset_of(record.config), "train", root=root), _TRAIN)
        features = _pass(model, to_unit(train.images))[1]
    except RobustNCError:
        return None
    count = max(record.data.num_classes, 1 + int(train.labels.max()))
    chosen = nn.functional.one_hot(train.labels, count).to(features.dtype)
    return chosen.T @ features / chosen.sum(0)[:, None]  # NaN where a class has no image


def _ask(model: nn.Module, images: Tensor, vertices: Tensor | None) -> _Seen:
    if vertices is None:
        with torch.no_grad(), untouched(model), full_precision():
            predicted = model(images.to(device_of(model))).argmax(1).cpu()
        return _Seen(predicted, torch.full_like(predicted, -1))
    logits, features = _pass(model, images)
    return _Seen(logits.argmax(1), torch.cdist(features, vertices).nan_to_num(torch.inf).argmin(1))


def _pass(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(n, K)` and features `(n, D)` before the head, on the CPU."""
    parts = []
    with torch.no_grad(), untouched(model), full_precision():
        for part in torch.split(images, _BATCH):
            read = read_taps(model, part.to(device_of(model)), (PENULTIMATE,))
            parts.append((read.logits.cpu(), read.features[PENULTIMATE].cpu()))
    logits, features = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(features)


def _times(difference: Tensor) -> float:
    """The number, of two digits, that makes the largest difference half of the range of pixels."""
    return float(f"{0.5 / max(float(difference.abs().max()), 1e-6):.2g}")


def _strip(original: Tensor, attacked: Tensor, times: float) -> Image.Image:
    parts = [_image(one) for one in (original, attacked, 0.5 + times * (attacked - original))]
    width, height = parts[0].size
    step = width + max(1, round(_GAP * width))
    strip = Image.new("RGBA", (2 * step + width, height))
    for place, part in enumerate(parts):
        strip.paste(part, (place * step, 0))
    return strip


def _image(pixels: Tensor) -> Image.Image:
    """Turn `(C, H, W)` in [0, 1] into an image: three channels in colour, of others the mean."""
    shown = pixels if len(pixels) == 3 else pixels.mean(0, keepdim=True).expand(3, -1, -1)
    values = (255 * shown.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    image = Image.fromarray(values.numpy(), "RGB").convert("RGBA")
    image.thumbnail((_SIDE, _SIDE))
    return image


def _write(image: Image.Image, path: Path | None) -> None:
    assert path is not None
    content = io.BytesIO()
    image.save(content, format="png", optimize=True)
    write_bytes(path, content.getvalue())
