r"""The model card for the Hugging Face Hub: `README.md` with metadata that the Hub reads.

The metadata is YAML whose values are written as JSON, which is YAML too; so no text of a stranger
can end it or add to it.

>>> print(yaml_line("name", "--- {{ x }}"))
name: "-\u002d- {\u007b x }}"
"""

import json
from typing import Any

from robust_nc.io.text import escape_markdown, one_line, safe_link
from robust_nc.record.schema import Card, Record, Stored, data_name
from robust_nc.record.standing import standing
from robust_nc.report.board.formats import percent
from robust_nc.report.board.gather import identity


def model_card(stored: Stored) -> str:
    """Return the README of a record: metadata (`model-index`, never "verified"), then the text."""
    return "\n".join(["---", *_metadata(stored), "---", "", *_body(stored), ""])


def yaml_line(name: str, value: Any) -> str:
    """Write `name: value` as one line of YAML, with nothing in it that any reader would obey."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # These can stand only inside of strings here, where an escape says the same.
    for found, escape in (("--", "-\\u002d"), ("{{", "{\\u007b"), ("<", "\\u003c")):
        text = text.replace(found, escape)
    return f"{name}: {text}"


def _metadata(stored: Stored) -> list[str]:
    record, about = stored.record, identity(stored.record)
    dataset = one_line(record.data.dataset, limit=100)
    protocol = f"protocol {one_line(record.protocol, limit=60)}"
    left, robust = standing(stored), _share(record, "robust")
    if left.challenged:
        robust = round(float(left.robust.mean()), 6)
    metrics = [
        _metric("accuracy", "clean accuracy", _share(record, "clean")),
        _metric("robust_accuracy", f"robust accuracy, {about.ball}, {protocol}", robust),
    ]
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": dataset, "name": dataset, "split": one_line(record.data.split)},
        "metrics": [metric for metric in metrics if metric["value"] is not None],
    }
    return [
        yaml_line("library_name", "robust_nc"),
        yaml_line("pipeline_tag", "image-classification"),
        yaml_line("tags", ["adversarial-robustness", "neural-collapse", "robust_nc"]),
        yaml_line("datasets", [dataset]),
        yaml_line("model-index", [{"name": _name(record), "results": [result]}]),
    ]


def _metric(kind: str, name: str, value: float | None) -> dict[str, Any]:
    return {"type": kind, "name": one_line(name), "value": value, "verified": False}


def _body(stored: Stored) -> list[str]:
    record, about = stored.record, identity(stored.record)
    left, card = standing(stored), record.card or Card()
    link, evidence = safe_link(card.link), record.evidence
    facts = {
        "clean accuracy": _accuracy(record, "clean"),
        "robust accuracy": _accuracy(record, "robust"),
        "ball": about.ball,
        "protocol": record.protocol,
        "data": f"{data_name(record)}, {record.data.which}",
        "challenged": f"{left.challenged:,} examples broken since" if left.challenged else "",
        "warnings": ", ".join(one.name for one in record.warnings),
        "SHA-256 of the tensors": record.weights.state or "",
        "evidence": ""
        if evidence is None
        else f"{evidence.name}, {evidence.broken:,} adversarial examples",
        "authors": card.authors,
        "paper": card.paper,
        "venue": card.venue,
        "architecture": card.architecture,
        "extra training data": {True: "yes", False: "no", None: ""}[card.extra_data],
        "notes": card.notes,
    }
    return [
        f"# {_text(_name(record))}",
        "",
        "| what | value |",
        "| --- | --- |",
        *[f"| {name} | {_text(value)} |" for name, value in facts.items() if value],
        *(["", f"Link of its authors: <{link}>"] if link else []),
        "",
        f"The record is `{record.cell}.json`, as robust_nc wrote it. What its authors say of",
        "themselves (name, paper, notes) is shown as they wrote it. To check the record:",
        "",
        "```console",
        f"robust-nc verify {record.cell}.json",
        "```",
    ]


def _accuracy(record: Record, name: str) -> str:
    score = record.scores.get(name)
    if score is None:
        return ""
    return f"{percent(score.value, score.low, score.high)} % of {score.n:,} examples"


def _share(record: Record, name: str) -> float | None:
    return round(record.scores[name].value, 6) if name in record.scores else None


def _name(record: Record) -> str:
    return one_line((record.card.name if record.card else "") or record.model, limit=100)


def _text(text: str) -> str:
    """Escape for Markdown, and for what reads HTML or templates in Markdown."""
    escaped = escape_markdown(one_line(text))
    for found, entity in (("\\<", "&lt;"), ("\\>", "&gt;"), ("{", "&#123;"), ("}", "&#125;")):
        escaped = escaped.replace(found, entity)
    return escaped
