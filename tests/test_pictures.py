"""Adversarial images of the evidence as pictures: what they show, and of whom they ask what."""

import dataclasses
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_appraisal import opened
from PIL import Image

from robust_nc.data.load import load_dataset
from robust_nc.evidence.file import pack_file, read_differences, read_evidence, unpack_file
from robust_nc.exceptions import RecordError
from robust_nc.record import Stored, read_record
from robust_nc.record.folder import evidence_path
from robust_nc.report.site.write import write_model
from robust_nc.verification.pictures import MOST, adversarial_pictures

OURS = Path(__file__).parent.parent / "results" / "evaluated" / "fashion-etf-pgd"


def test_a_picture_is_original_attacked_and_difference(verdict: Any, tmp_path: Path) -> None:
    stored, reference = verdict
    images, labels = load_dataset("digits", split="test", limit=stored.record.data.examples)
    evidence = read_evidence(evidence_path(stored.path), images)
    made = adversarial_pictures(stored, tmp_path, reference=reference)
    taken = opened(reference)(evidence.adversarials).argmax(1)
    told = {f"{labels[row]}, taken for {taken[k]}" for k, row in enumerate(evidence.broken)}
    assert {one.title for one in made} <= told
    assert len({one.title[0] for one in made}) == len(made) == min(MOST, len(set(told)))
    assert all("nearest class mean" in one.caption for one in made)
    row = int(evidence.broken[labels[evidence.broken] == int(made[0].title[0])][0])
    place = evidence.broken.tolist().index(row)
    with Image.open(made[0].path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)[..., 0] / 255
    original, attacked = images[row, 0].numpy(), evidence.adversarials[place, 0].numpy()
    times = float(made[0].caption.rpartition(" ")[2])
    assert times == pytest.approx(0.5 / np.abs(attacked - original).max(), rel=0.05)
    shown = (original, attacked, np.clip(0.5 + times * (attacked - original), 0, 1))
    for number, part in enumerate(shown):
        assert np.abs(pixels[:, 9 * number : 9 * number + 8] - part).max() < 0.003


def test_the_page_of_a_finished_model_opens_with_its_verdict_and_images(verdict_copy: Any) -> None:
    stored, reference = verdict_copy
    page = write_model(stored, partial(adversarial_pictures, reference=reference))
    text = page.read_text()
    assert page.parent == stored.path.parent / "model"
    assert text.index('class="verdict"') < text.index(", taken for ") < text.index("<table")
    images = re.findall(r'src="(../figures/[0-9a-f]{8}/adversarial-\d.png)"', text)
    assert len(images) == text.count(", taken for ") / 2
    assert all((page.parent / one).is_file() for one in images)


def test_no_code_runs_unless_it_is_named(verdict: Any, tmp_path: Path) -> None:
    stored, _ = verdict
    for options in ({}, {"reference": "gone.py:make"}):
        made = adversarial_pictures(stored, tmp_path, **options)
        assert len(made) == MOST
        for one in made:
            assert one.title.endswith(", misclassified")
            assert "nearest" not in one.caption


def test_weights_of_ours_say_what_they_see(tmp_path: Path, monkeypatch: Any) -> None:
    path = shutil.copytree(OURS, tmp_path / "ours")
    stored = read_record(next(path.glob("*.json")))
    monkeypatch.chdir(OURS.parent.parent.parent)
    made = adversarial_pictures(stored, tmp_path, root=tmp_path)
    assert made[0].path is None
    assert "only the differences are shown: fashion_mnist is not there" in made[0].skipped
    assert len(made) == 1 + MOST
    assert made[1].title == "T-shirt/top, misclassified"
    with Image.open(made[1].path) as image:
        assert image.size == (28, 28)


def test_differences_need_no_originals(verdict: Any) -> None:
    stored, _ = verdict
    images, _ = load_dataset("digits", split="test", limit=stored.record.data.examples)
    path = evidence_path(stored.path)
    evidence = read_evidence(path, images)
    origins, found = images[evidence.broken], read_differences(path)
    kept = found.flatten(1).isfinite().all(1)
    assert kept.any()
    again = (origins + found).clamp(0, 1)
    assert torch.allclose(again[kept], evidence.adversarials[kept], atol=1e-6)


def test_a_forged_shape_fills_no_memory(verdict_copy: Any) -> None:
    path = evidence_path(verdict_copy[0].path)
    head, arrays = unpack_file(path.read_bytes(), what="it")
    frames = np.zeros(len(arrays["levels"]), dtype=np.int64)
    frames[0] = len(arrays["codes"])
    forged = dataclasses.replace(head, shape=(1, 2**20, 2**20))
    path.write_bytes(pack_file(forged, {**arrays, "frames": frames}))
    with pytest.raises(RecordError, match="more pixels than are read"):
        read_differences(path)


def test_what_cannot_be_shown_is_said(verdict_copy: Any, tmp_path: Path) -> None:
    stored, _ = verdict_copy
    (none,) = adversarial_pictures(stored, tmp_path, rows=torch.tensor([], dtype=torch.int64))
    assert none.skipped == "no attack broke any of these examples"
    bare = Stored(dataclasses.replace(stored.record, evidence=None), stored.path)
    (none,) = adversarial_pictures(bare, tmp_path)
    assert "keeps no adversarial images" in none.skipped
    content = bytearray(evidence_path(stored.path).read_bytes())
    content[-5] ^= 1
    evidence_path(stored.path).write_bytes(content)
    (none,) = adversarial_pictures(stored, tmp_path)
    assert "evidence is not as it should be" in none.skipped
