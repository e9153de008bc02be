"""The file of evidence: what is written comes back, and what was changed is named."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_attacks import BALL
from helpers_evidence_files import Case, case, differences, forge

from robust_nc.evidence.coding import compress
from robust_nc.evidence.contents import Evidence
from robust_nc.evidence.file import (
    first_evidence,
    read_evidence,
    unpack_file,
    write_evidence,
)
from robust_nc.exceptions import InputError, RecordError
from robust_nc.io.files import sha256_of
from robust_nc.threat import Ball
from robust_nc.verification.challenge import read_points


@pytest.fixture(scope="module")
def made() -> Case:
    return case()


@pytest.fixture
def path(made: Case, tmp_path: Path) -> Path:
    target = tmp_path / "cell.evidence"
    write_evidence(target, made.evidence, made.images)
    return target


@pytest.mark.parametrize("ball", [BALL, Ball("L2", 0.3), Ball("L1", 1.0)], ids=str)
def test_evidence_comes_back_to_the_bit(ball: Ball, tmp_path: Path) -> None:
    made, path = case(ball), tmp_path / "deep" / "cell.evidence"
    written = write_evidence(path, made.evidence, made.images)
    assert 0 < written.broken == len(made.evidence.broken) < len(made.images)
    assert (written.name, written.sha256) == ("cell.evidence", sha256_of(path))
    assert written.bytes == path.stat().st_size
    assert not differences(read_evidence(path, made.images), made.evidence)


def test_equal_evidence_gives_equal_bytes(made: Case, path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.evidence"
    write_evidence(again, read_evidence(path, made.images), made.images)
    assert again.read_bytes() == path.read_bytes()


def test_without_images_all_but_the_points_is_read(made: Case, path: Path) -> None:
    found = read_evidence(path, None)
    assert differences(found, made.evidence) == ["adversarials"]
    assert found.adversarials.shape == (0, 1, 8, 8)


def test_other_images_are_refused(made: Case, path: Path) -> None:
    images = made.images.clone()
    images[made.evidence.broken[0], 0, 3, 3] = 0.123
    with pytest.raises(RecordError, match="not those it starts from"):
        read_evidence(path, images)
    with pytest.raises(RecordError, match="30 images of shape"):
        read_evidence(path, images[:29])


def test_the_first_examples_can_be_kept(made: Case, path: Path) -> None:
    cut = first_evidence(made.evidence, 11)
    write_evidence(path, cut, made.images[:11])
    again = read_evidence(path, made.images[:11])
    assert not differences(again, cut)
    assert again.broken.tolist() == [row for row in made.evidence.broken.tolist() if row < 11]
    assert len(again.adversarials) == len(again.broken) > 0


def test_nothing_broken_and_no_example_at_all_can_be_written(made: Case, path: Path) -> None:
    count = int(made.evidence.broken[0])
    for size in (count, 0):
        cut = first_evidence(made.evidence, size)
        assert write_evidence(path, cut, made.images[:size]).broken == 0
        assert not differences(read_evidence(path, made.images[:size]), cut)


def test_a_group_after_the_other_gives_the_same(made: Case, path: Path, monkeypatch) -> None:
    monkeypatch.setattr("robust_nc.evidence.file._GROUP", 3 * 64)
    write_evidence(path, made.evidence, made.images)
    assert not differences(read_evidence(path, made.images), made.evidence)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"robust": torch.zeros(30, dtype=torch.bool)}, "robust is not what broken_by says"),
        ({"broken": torch.arange(2)}, "broken is not what broken_by says"),
        ({"adversarials": torch.zeros(2, 1, 8, 8)}, "adversarials of the same shape"),
        ({"labels": torch.full((30,), 2**40)}, "labels must be of one axis"),
        ({"fingerprint": "f" * 201}, "fingerprint"),
        ({"draws": 0}, "draws"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_evidence_that_contradicts_itself_is_not_written(
    made: Case, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    wrong: Evidence = dataclasses.replace(made.evidence, **changes)
    with pytest.raises(InputError, match=told):
        write_evidence(tmp_path / "x.evidence", wrong, made.images)
    assert not list(tmp_path.iterdir())


def test_pixels_that_are_not_finite_are_not_written(made: Case, tmp_path: Path) -> None:
    points = made.evidence.adversarials.clone()
    points[0, 0, 0, 0] = torch.nan
    wrong = dataclasses.replace(made.evidence, adversarials=points)
    with pytest.raises(InputError, match="not finite"):
        write_evidence(tmp_path / "x.evidence", wrong, made.images)


@pytest.mark.parametrize("name", ["labels", "broken_by", "margins", "steps", "codes", "ids"])
def test_a_changed_tensor_is_named(made: Case, path: Path, name: str) -> None:
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    content[8 + size + header[name]["data_offsets"][0]] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match=f"damaged: {name} is not"):
        read_evidence(path, None)


def test_a_changed_eps_is_found(path: Path) -> None:
    content = path.read_bytes()
    eps = (0.03).hex().encode()
    assert content.count(eps) == 1
    path.write_bytes(content.replace(eps, (0.02).hex().encode()))
    with pytest.raises(RecordError, match="does not fit its seal"):
        read_evidence(path, None)


LONG = np.zeros(31, dtype=np.int32)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": LONG}, "labels has 31 entries instead of 30"),
        ({"labels": LONG[:30] - 1}, "labels holds -1"),
        ({"broken_by": np.full(30, -3, dtype=np.int16)}, "entries instead of 0"),
        ({"broken_by": np.full(30, -1, dtype=np.int16)}, "entries instead of 0"),
        ({"examples": 29}, "entries instead of 29"),
        ({"examples": 31}, "entries instead of 31"),
        ({"eps": "nan"}, "its ball is none"),
        ({"eps": "0x1p2000"}, "its ball is none"),
        ({"norm": "L7"}, "its ball is none"),
        ({"bounds": ("0x1p0", "0x0p0")}, "its ball is none"),
        ({"bounds": ("-inf", "inf")}, "must be finite"),
        ({"bounds": ("0x0p0", "lots")}, "its ball is none"),
        ({"bounds": ("-0x1p900", "0x1p900")}, "must be finite and small"),
        ({"seed": 2**70}, "which no int64 can"),
        ({"shape": (1, 8, 0)}, "shape"),
        ({"schema_version": 2}, "schema_version"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_forged_file_is_refused(path: Path, changes: dict[str, Any], told: str) -> None:
    forge(path, **changes)
    with pytest.raises(RecordError, match=told):
        read_evidence(path, None)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("margins", np.nan, "margins and ranges must be finite"),
        ("margins", 1e9, "no margin above its range"),
        ("ranges", np.inf, "margins and ranges must be finite"),
        ("steps", np.nan, "steps in 0..1"),
        ("steps", -0.1, "steps in 0..1"),
        ("steps", 2.0, "steps in 0..1"),
        ("levels", 128, "levels must be in 0..127"),
        ("levels", 0, "kept exactly has a step"),
        ("frames", 2**62, "frames must be"),
        ("frames", -1, "frames must be"),
    ],
)
def test_forged_numbers_of_broken_examples_are_refused(
    path: Path, name: str, value: float, told: str
) -> None:
    array = unpack_file(path.read_bytes(), what="file").arrays[name].copy()
    array[0] = value
    forge(path, **{name: array})
    with pytest.raises(RecordError, match=told):
        read_evidence(path, None)


def test_codes_of_another_size_are_refused(made: Case, path: Path) -> None:
    bomb = np.frombuffer(compress(b"\0" * 2**26), dtype=np.uint8)
    forge(path, codes=bomb, frames=np.array([len(bomb)]))
    with pytest.raises(RecordError, match="cannot be decompressed"):
        read_evidence(path, made.images)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="not there"):
        read_evidence(tmp_path / "none.evidence", None)
    with pytest.raises(RecordError, match="no file"):
        read_evidence(tmp_path, None)
    (tmp_path / "x").write_bytes(b"\x80\x04" + b"x" * 100)
    with pytest.raises(RecordError, match="no evidence file"):
        read_evidence(tmp_path / "x", None)


def test_a_file_above_the_limit_is_not_read(path: Path, monkeypatch) -> None:
    monkeypatch.setattr("robust_nc.evidence.file.MAX_BYTES", 100)
    with pytest.raises(RecordError, match="larger than 100 bytes"):
        read_evidence(path, None)


def test_points_of_a_challenge_are_read_from_evidence(made: Case, path: Path) -> None:
    found = read_points(path, made.images)
    assert torch.equal(found.rows, made.evidence.broken)
    assert torch.equal(found.points, made.evidence.adversarials)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_points_of_a_challenge_are_read_from_npz(made: Case, tmp_path: Path, save: Any) -> None:
    path, points = tmp_path / "points.npz", made.outcome.adversarials[[4, 2]].numpy()
    save(path, ids=np.array([4, 2]), images=points)
    found = read_points(path, made.images)
    assert found.rows.tolist() == [4, 2]
    assert np.array_equal(found.points.numpy(), points)


ROW, IMAGE = np.array([0]), np.zeros((1, 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"ids": ROW}, "nothing else"),
        ({"ids": ROW, "images": IMAGE, "more": ROW}, "nothing else"),
        ({"ids": ROW + 30, "images": IMAGE}, "the ids 30 to 30"),
        ({"ids": ROW - 1, "images": IMAGE}, "the ids -1 to -1"),
        ({"ids": ROW, "images": IMAGE + 2}, "not in .0, 1."),
        ({"ids": ROW, "images": IMAGE * np.nan}, "not in .0, 1."),
        ({"ids": ROW, "images": IMAGE[:, :, :7]}, "must hold ids"),
        ({"ids": ROW.repeat(2), "images": IMAGE}, "must hold ids"),
        ({"ids": ROW, "images": IMAGE.astype(np.float64)}, "float32 in C order, found '<f8'"),
        ({"ids": ROW.astype(object), "images": IMAGE}, r"found '\|O'"),
        ({"ids": ROW, "images": np.zeros((9, 9, 64, 64), dtype=np.float32)}, "unpacks to"),
    ],
)
def test_points_that_cannot_be_meant_are_refused(
    made: Case, tmp_path: Path, arrays: dict[str, Any], told: str
) -> None:
    path = tmp_path / "points.npz"
    np.savez(path, **arrays)
    with pytest.raises(RecordError, match=told):
        read_points(path, made.images)
