"""Adversarial images of the evidence as pictures, with what the model takes them for.

A picture holds the original, the attacked image, and their difference times a number that its
caption tells, side by side.

>>> strip = _strip([torch.zeros(1, 2, 2), torch.ones(3, 2, 2)])
>>> strip.size, strip.getpixel((0, 0)), strip.getpixel((4, 1))
((5, 2), (0, 0, 0, 255), (255, 255, 255, 255))
"""

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from robust_nc.data.load import read_spread, to_unit
from robust_nc.evidence.file import Evidence, read_differences
from robust_nc.exceptions import RobustNCError
from robust_nc.io.digests import state_digests
from robust_nc.io.files import write_bytes
from robust_nc.models.taps import PENULTIMATE, read_taps
from robust_nc.record.schema import Record, Stored
from robust_nc.report.board.gather import value_in
from robust_nc.report.figures import SavedFigure
from robust_nc.report.figures.selection import class_name
from robust_nc.runtime.torch_state import default_device, device_of, full_precision, untouched
from robust_nc.verification.evidence import check_evidence, find_evidence
from robust_nc.verification.originals import RecordExamples, data_of, examples_of, model_of
from robust_nc.zoo.checkpoint import from_checkpoint, from_record
from robust_nc.zoo.hub import CONFIG, from_folder

MOST = 8
_TRAIN = 1_000  # images whose class means are the vertices
_SIDE = 96  # pixels; larger images are made smaller
_GAP = 1 / 14  # of a side
_BATCH = 250


class _Seen(NamedTuple):
    """What a model takes n attacked images for, `after` (n,), and the nearest class `means`.

    These are (2, n), clean and attacked; None where there are none.
    """

    after: Tensor
    means: Tensor | None


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
    record = stored.record
    try:
        path = find_evidence(stored)
        if path is None:
            return _none("its record keeps no adversarial images, or they are not beside it")
        examples, why = _examples(record, root)
        found = check_evidence(stored, examples=examples, model=None)
        if found.evidence is None or found.wrong:
            return _none(f"its evidence is not as it should be: {found.wrong[0]}")
        evidence, chosen = found.evidence, _chosen(found.evidence, rows)
        broken, originals, seen = evidence.broken[chosen], None, None
        if examples is None:
            changes = read_differences(path)[chosen]
        else:
            originals, attacked = examples.images[broken], evidence.adversarials[chosen]
            changes = attacked - originals
            with suppress(RobustNCError), _opened(stored, reference, examples, isolated) as model:
                if model is not None and state_digests(model) == dict(evidence.weights):
                    seen = _seen(model, originals, attacked, record, root)
    except RobustNCError as error:
        return _none(str(error))
    if not len(chosen):
        return _none("no attack broke any of these examples")
    made = []
    if originals is None:
        made = _none(f"the originals are not here, only the differences are shown: {why}")
    for index, (row, change) in enumerate(zip(broken.tolist(), changes, strict=True)):
        if not bool(change.isfinite().all()):
            continue  # it was kept as an image, which only its original leads to
        times = float(f"{0.5 / max(float(change.abs().max()), 1e-6):.2g}")
        parts = [] if originals is None else [originals[index], originals[index] + change]
        told = [_landing(record, seen, index), _broken_by(record, evidence, row)]
        taken = (
            "misclassified" if seen is None else f"taken for {_class(record, seen.after[index])}"
        )
        made.append(
            SavedFigure(
                f"adversarial-{index + 1}",
                f"{_class(record, evidence.labels[row])}, {taken}",
                "; ".join(filter(None, [*told, f"difference x {times:g}"])),
                _write([*parts, 0.5 + times * change], folder / f"adversarial-{index + 1}.png"),
            )
        )
    return made


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


def _class(record: Record, label: Tensor) -> str:
    return class_name(record.data.dataset, int(label), record.data.class_names)


def _landing(record: Record, seen: _Seen | None, index: int) -> str:
    """Say next to which class means an example lies, clean and attacked."""
    if seen is None or seen.means is None:
        return ""
    first, then = (_class(record, label) for label in seen.means[:, index])
    leaped = f", then {then}: it leaped" if first != then else ": no leap"
    return f"nearest class mean {first}{leaped}"


def _broken_by(record: Record, evidence: Evidence, row: int) -> str:
    code = int(evidence.broken_by[row])
    return f"by {record.attacks[code].name}" if code < len(record.attacks) else ""


@contextmanager
def _opened(
    stored: Stored, reference: str | None, examples: RecordExamples, isolated: bool
) -> Iterator[nn.Module | None]:
    """Open the model that is named, else weights of ours; None where there are none here."""
    if reference is None:
        yield _own_model(stored)
        return
    asked = (stored.record, reference, examples, lambda _: None)
    with model_of(*asked, trusted=not isolated) as model:
        yield model


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
        train = read_spread(data_of(record.config), "train", _TRAIN, root=root)
        features = _pass(model, to_unit(train.images))[1]
    except RobustNCError:
        return None
    count = max(record.data.num_classes, 1 + int(train.labels.max()))
    chosen = nn.functional.one_hot(train.labels, count).to(features.dtype)
    return chosen.T @ features / chosen.sum(0)[:, None]  # NaN where a class has no image


def _seen(
    model: nn.Module, originals: Tensor, attacked: Tensor, record: Record, root: Path | None
) -> _Seen | None:
    """Ask a model about originals and attacked images `(n, C, H, W)`; None where it fails."""
    try:
        vertices = _vertices(model, record, root)
        if vertices is None:
            with torch.no_grad(), untouched(model), full_precision():
                return _Seen(model(attacked.to(device_of(model))).argmax(1).cpu(), None)
        logits, features = _pass(model, torch.cat([originals, attacked]))
    except Exception:  # a stranger's model may raise anything, and memory may run out
        return None
    nearest = torch.cdist(features, vertices).nan_to_num(torch.inf).argmin(1)
    return _Seen(logits.argmax(1)[len(originals) :], nearest.view(2, -1))


def _pass(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(n, K)` and features `(n, D)` before the head, on the CPU."""
    parts = []
    with torch.no_grad(), untouched(model), full_precision():
        for part in torch.split(images, _BATCH):
            read = read_taps(model, part.to(device_of(model)), (PENULTIMATE,))
            parts.append((read.logits.cpu(), read.features[PENULTIMATE].cpu()))
    logits, features = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(features)


def _strip(parts: Sequence[Tensor]) -> Image.Image:
    """Put images `(C, H, W)` in [0, 1] side by side."""
    images = [_image(one) for one in parts]
    width, height = images[0].size
    step = width + max(1, round(_GAP * width))
    strip = Image.new("RGBA", (step * (len(images) - 1) + width, height))
    for place, image in enumerate(images):
        strip.paste(image, (place * step, 0))
    return strip


def _image(pixels: Tensor) -> Image.Image:
    """Turn `(C, H, W)` in [0, 1] into an image: three channels in colour, of others the mean."""
    shown = pixels if len(pixels) == 3 else pixels.mean(0, keepdim=True).expand(3, -1, -1)
    values = (255 * shown.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    image = Image.fromarray(values.numpy(), "RGB").convert("RGBA")
    image.thumbnail((_SIDE, _SIDE))
    return image


def _write(parts: Sequence[Tensor], path: Path) -> Path:
    content = io.BytesIO()
    _strip(parts).save(content, format="png", optimize=True)
    write_bytes(path, content.getvalue())
    return path
