"""RobustBench's files of models, `model_info/<dataset>/<threat>/<Name>.json`, read and written.

Accuracies are percent in text there ("70.69") and shares here; what is not stated is "" or null
there and None here.

>>> info = from_fields(
...     {"name": "A paper", "dataset": "cifar10", "eps": "8/255", "clean_acc": "88.5",
...      "reported": "", "autoattack_acc": "57.20", "external": "57.14"},
...     dataset="cifar10", threat="Linf", key="Ours2026",
... )
>>> info.clean, info.robust, info.reported
(0.885, 0.5714, None)
>>> to_fields(info)["eps"], to_fields(info)["clean_acc"]
('8/255', '88.50')
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from robust_nc.exceptions import RecordError
from robust_nc.io.files import write_text
from robust_nc.io.text import one_line, safe_link
from robust_nc.io.untrusted import file_name
from robust_nc.record.schema import Card, Record, Stored
from robust_nc.record.standing import standing
from robust_nc.report.board.gather import identity
from robust_nc.threat import format_eps, parse_eps

THREATS = ("Linf", "L2", "corruptions")
AUTOATTACK = "standard"  # our protocol that makes AutoAttack's verdict

_UNSTATED = frozenset({"", "null", "None", "N/A"})
_TEXTS = ("link", "name", "authors", "venue", "architecture", "footnote")
# Their names of accuracies and errors, and ours.
_SHARES = {
    "clean_acc": "clean",
    "reported": "reported",
    "autoattack_acc": "autoattack",
    "external": "external",
    "corruptions_acc": "corruptions",
    "corruptions_acc_3d": "corruptions_3d",
    "corruptions_mce": "mce",
    "corruptions_mce_3d": "mce_3d",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One published model; shares in [0, 1] (`mce` may exceed 1), None where not stated.

    `dataset`, `threat`, `key` are its place, which counts where `declared` (the data set that the
    file names) says another. `external` is an accuracy that an evaluation other than AutoAttack
    left, as a rule lower. `passes` are forward passes of one prediction.
    """

    dataset: str
    threat: str
    key: str
    declared: str = ""
    eps: float | None = None
    clean: float | None = None
    reported: float | None = None
    autoattack: float | None = None
    external: float | None = None
    corruptions: float | None = None
    corruptions_3d: float | None = None
    mce: float | None = None
    mce_3d: float | None = None
    additional_data: bool | None = None
    unreliable: bool = False
    passes: int = 1
    name: str = ""
    authors: str = ""
    link: str = ""
    venue: str = ""
    architecture: str = ""
    footnote: str = ""

    @property
    def robust(self) -> float | None:
        """Lowest known accuracy in the ball: AutoAttack's, or an external one that is lower."""
        known = [value for value in (self.autoattack, self.external) if value is not None]
        return min(known, default=None)

    def card(self) -> Card:
        """Return what the file says in words, and the accuracies that a board does not show."""
        told = [self.footnote]
        if self.reported is not None:
            told.append(f"The authors report {100 * self.reported:.2f} %.")
        if self.unreliable:
            told.append("RobustBench marks its evaluation as unreliable.")
        return Card(
            name=self.key,
            authors=self.authors,
            paper=self.name,
            link=safe_link(self.link),
            venue=self.venue,
            architecture=self.architecture,
            extra_data=self.additional_data,
            notes=" ".join(filter(None, told)),
        )


def from_fields(fields: Mapping[str, Any], *, dataset: str, threat: str, key: str) -> ModelInfo:
    """Make typed values of the fields of a published file; accuracies are text or numbers there."""
    stated = {name: str(value).strip() for name, value in fields.items()}
    stated = {name: text for name, text in stated.items() if text not in _UNSTATED}
    texts: dict[str, Any] = {name: one_line(fields.get(name) or "") for name in _TEXTS}
    shares: dict[str, Any] = {
        ours: _as_share(stated[theirs]) for theirs, ours in _SHARES.items() if theirs in stated
    }
    return ModelInfo(
        dataset=dataset,
        threat=threat,
        key=key,
        declared=one_line(fields.get("dataset") or ""),
        eps=parse_eps(stated["eps"]) if "eps" in stated else None,
        additional_data=fields.get("additional_data"),
        unreliable=bool(fields.get("unreliable")),
        passes=fields.get("number_forward_passes", 1),
        **texts,
        **shares,
    )


def to_fields(info: ModelInfo) -> dict[str, Any]:
    """Return the fields of a file, in RobustBench's order and form."""
    shares = {theirs: getattr(info, ours) for theirs, ours in _SHARES.items()}
    percents = {name: f"{100 * value:.2f}" for name, value in shares.items() if value is not None}
    fields: dict[str, Any] = {
        "link": info.link,
        "name": info.name,
        "authors": info.authors,
        "additional_data": info.additional_data,
        "number_forward_passes": info.passes,
        "dataset": info.declared or info.dataset,
        "venue": info.venue,
        "architecture": info.architecture,
        "eps": None if info.eps is None else eps_text(info.eps),
        "clean_acc": percents.pop("clean_acc", ""),
        "reported": percents.pop("reported", ""),
        **percents,
    }
    if info.footnote:
        fields["footnote"] = info.footnote
    return {**fields, "unreliable": info.unreliable}


def eps_text(eps: float) -> str:
    """Write eps as they do, and so that it reads as the same number.

    >>> eps_text(8 / 255), eps_text(0.5), eps_text(4.5 / 255)
    ('8/255', '0.5', '0.01764705882352941')
    """
    text = format_eps(eps)
    return text if parse_eps(text) == eps else repr(eps)


def export_tree(stored: Sequence[Stored], out: Path) -> list[Path]:
    """Write each record to `out/<dataset>/<threat>/<Name>.json`; return the paths, sorted.

    A name that several records share (seeds) is followed by their cells. `autoattack_acc` is the
    verdict of protocol `standard`; that of another protocol stands as `reported`. What challenges
    left is `external`. Raises `RecordError` where a record has a ball that they have no folder for.
    """
    infos = [info_of(one) for one in stored]
    places = [(info.dataset, info.threat, info.key.lower()) for info in infos]
    paths = []
    for info, place, one in zip(infos, places, stored, strict=True):
        cell = one.record.cell
        key = _file_key(f"{info.key}_{cell}", limit=110) if places.count(place) > 1 else info.key
        path = out / info.dataset / info.threat / f"{key}.json"
        write_text(path, json.dumps(to_fields(info), indent=2, allow_nan=False) + "\n")
        paths.append(path)
    return sorted(paths)


def info_of(stored: Stored) -> ModelInfo:
    """Return a record as their values; accuracies are rounded to two decimals of percent."""
    record, card = stored.record, stored.record.card or Card()
    about, left = identity(record), standing(stored)
    if about.norm not in THREATS:
        raise RecordError(
            f"{stored.path} is about the norm {about.norm[:20]!r}, for which RobustBench has no "
            "folder; it has Linf and L2"
        )
    robust = _two_decimals(record.scores["robust"].value if "robust" in record.scores else None)
    judged = record.protocol == AUTOATTACK
    lowered = _two_decimals(float(left.robust.mean())) if left.challenged else None
    return ModelInfo(
        dataset=file_name(record.data.dataset, what=f"data set of {stored.path}"),
        threat=about.norm,
        key=_file_key(card.name or record.model),
        declared=record.data.dataset,
        eps=about.eps,
        clean=_two_decimals(record.scores["clean"].value if "clean" in record.scores else None),
        reported=None if judged else robust,
        autoattack=robust if judged else None,
        external=lowered,
        additional_data=card.extra_data,
        unreliable=bool(record.warnings),
        footnote=one_line(_footnote(record, left.challenged)),
        name=one_line(card.paper or card.name or record.model),
        authors=one_line(card.authors),
        link=safe_link(card.link),
        venue=one_line(card.venue),
        architecture=one_line(card.architecture or about.backbone),
    )


def _footnote(record: Record, challenged: int) -> str:
    told = [f"Protocol {record.protocol} of robust_nc on {record.data.examples:,} examples."]
    if challenged:
        told.append(f"Challenges broke {challenged:,} more examples.")
    if record.warnings:
        told.append(f"Warnings: {', '.join(one.name for one in record.warnings)}.")
    return " ".join(told)


def _two_decimals(value: float | None) -> float | None:
    return None if value is None else _as_share(f"{100 * value:.2f}")


def _file_key(text: str, *, limit: int = 80) -> str:
    """Return text as a plain file name, "unnamed" where nothing is left of it."""
    name = re.sub(r"[^A-Za-z0-9_.+=-]+", "_", text[: 4 * limit])[:limit].strip("._-+=")
    return name or "unnamed"


def _as_share(percent: str) -> float:
    """Return percent in text as the nearest float64 share."""
    return float(Decimal(percent) / 100)
