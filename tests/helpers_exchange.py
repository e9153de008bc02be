"""Records with cards, challenges and evidence, as strangers may send them."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from helpers_report import config, record_of, resealed, write_cell

from robust_nc.config import Component, EvaluationConfig, ThreatConfig, plain
from robust_nc.data.load import fingerprint, read_split, to_unit
from robust_nc.evidence.file import Evidence, write_evidence
from robust_nc.io.digests import state_digest
from robust_nc.pipeline.finished_model import (
    AppraisalConfig,
    EvaluatedData,
    ModelReference,
    appraisal_id,
)
from robust_nc.record import (
    Card,
    Stored,
    Weights,
    tidy,
    write_rows,
)

TENSORS = {"weight": "0" * 16}
STATE = state_digest(TENSORS)
HOSTILE = (
    "two\nlines\r\n---\nlicense: mit\n---\n# Verified",
    "{{ config.items() }} {% raw %} ${{ secrets.TOKEN }}",
    r"\input{/etc/passwd} \write18{rm -rf .} } } @misc{x, title = {",
    "x" * 10_000,
    "\x00\x1b[31mred\x07 \u202egnp.exe \ud83d\ude00".encode("utf-16", "surrogatepass").decode(
        "utf-16"
    ),
    "<script>alert(1)</script> <img src=x onerror=alert(1)> [a](javascript:alert(1)) | b |",
    'quote " colon: # hash & amp * star !tag %percent ~ ^ _ $',
    "https://evil.example/a}{b\\c",
    "",
)


def card_of(text: str) -> Card:
    """A card with a text in every field that holds one."""
    fields = ("name", "authors", "paper", "link", "venue", "architecture", "notes")
    return Card(**dict.fromkeys(fields, text))


def filed(
    out: Path, *, seed: int = 0, head: str = "etf", card: Card | None = None, protocol: str = "pgd"
) -> Stored:
    """Write a sealed synthetic cell: 124 (plus seeds) of 200 robust, 180 right when clean."""
    stored = write_cell(out, config(seed=seed, head=head))
    return resealed(stored, card=card, protocol=protocol)


def appraised(out: Path, *, count: int = 200) -> Stored:
    """Write a sealed appraisal of `count` synthetic images with rows and evidence that fit.

    Every tenth image is misclassified, every fourth of the others is broken: moved in the ball.
    """
    part = Component(name="synthetic", options={"test_size": count, "image_shape": [1, 8, 8]})
    settings = AppraisalConfig(
        model=ModelReference(reference="net.py:make", state=STATE),
        data=EvaluatedData(dataset=part),
        threat=ThreatConfig(eps=8 / 255),
        evaluation=EvaluationConfig(protocol="pgd"),
    )
    cell, split = appraisal_id(settings), read_split(part, "test")
    path = out / f"{cell}.json"
    clean = np.arange(count) % 10 != 0
    robust = clean & (np.arange(count) % 4 != 0)
    record = record_of(
        config(),
        clean=clean,
        robust=robust,
        fingerprint=fingerprint(split),
        cell=cell,
        suite="evaluated",
        model="net",
        config=plain(settings),
        weights=Weights(parameters=5, state=STATE),
        rows=write_rows(path.with_suffix(".parquet"), tidy([])),
        summary={},
    )
    data = dataclasses.replace(record.data, dataset="synthetic", num_classes=10)
    scores = {name: record.scores[name] for name in ("clean", "robust")}
    record = dataclasses.replace(record, data=data, scores=scores)
    images, ball = to_unit(split.images), settings.threat.ball()
    broken = torch.from_numpy(clean & ~robust).nonzero().flatten()
    draw = torch.rand(images[broken].shape, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(count, dtype=torch.int64)
    evidence = Evidence(
        ids=split.ids,
        labels=split.labels,
        clean_correct=torch.from_numpy(clean),
        robust=torch.from_numpy(robust),
        broken_by=torch.tensor(record.verdict.broken_by),
        forwards=ones * 20,
        backwards=ones * 10,
        broken=broken,
        adversarials=ball.project(images[broken] + (draw - 0.5) * 2 * ball.eps, images[broken]),
        margins=torch.ones(len(broken)),
        ranges=torch.full((len(broken),), 10.0),
        ball=ball,
        fingerprint=record.data.fingerprint,
        weights=TENSORS,
    )
    file = write_evidence(path.with_suffix(".evidence"), evidence, images)
    return resealed(Stored(record, path), evidence=file)
