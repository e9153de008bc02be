"""The file of evidence: what is written comes back; changed, damaged or lying, it is refused."""

import contextlib
import dataclasses
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_attacks import BALLS, Case, with_evidence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch import Tensor

from robust_nc.evidence.coding import compress
from robust_nc.evidence.file import (
    TENSORS,
    TYPES,
    Evidence,
    first_evidence,
    pack_file,
    read_evidence,
    unpack_file,
    write_evidence,
)
from robust_nc.exceptions import InputError, RecordError
from robust_nc.io.files import sha256_of
from robust_nc.threat import Ball
from robust_nc.verification.challenge import read_points

FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def made() -> Case:
    return with_evidence()


@pytest.fixture(scope="module")
def good(made: Case, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "cell.evidence"
    write_evidence(path, made.evidence, made.images)
    return path.read_bytes()


@pytest.fixture
def path(good: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "cell.evidence"
    path.write_bytes(good)
    return path


def forge(path: Path, **changes: Any) -> None:
    """Change tensors or fields of the head, and make all digests anew."""
    head, arrays = unpack_file(path.read_bytes(), what="file")
    values = {name: changes.pop(name) for name in set(changes) - set(arrays)}
    for name, value in values.items():
        object.__setattr__(head, name, value)
    path.write_bytes(pack_file(head, {**arrays, **changes}))


def differences(first: Evidence, second: Evidence) -> list[str]:
    """Fields in which two evidences differ."""
    found = []
    for name in Evidence.__annotations__:
        left, right = getattr(first, name), getattr(second, name)
        same = torch.equal(left, right) if isinstance(left, Tensor) else left == right
        found += [] if same else [name]
    return found


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows it."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def headed(header: object, rest: bytes = b"") -> bytes:
    """A file with this header, which may be bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_evidence_comes_back_to_the_bit(ball: Ball, tmp_path: Path) -> None:
    made, path = with_evidence(ball), tmp_path / "deep" / "cell.evidence"
    written = write_evidence(path, made.evidence, made.images)
    assert 0 < written.broken == len(made.evidence.broken) < len(made.images)
    assert (written.name, written.sha256) == ("cell.evidence", sha256_of(path))
    assert written.bytes == path.stat().st_size
    found = read_evidence(path, made.images)
    assert not differences(found, made.evidence)
    write_evidence(tmp_path / "again.evidence", found, made.images)
    assert (tmp_path / "again.evidence").read_bytes() == path.read_bytes()


def test_other_images_are_refused_and_without_images_all_but_the_points_is_read(
    made: Case, path: Path
) -> None:
    images = made.images.clone()
    images[made.evidence.broken[0], 0, 3, 3] = 0.123
    with pytest.raises(RecordError, match="not those it starts from"):
        read_evidence(path, images)
    with pytest.raises(RecordError, match="30 images of shape"):
        read_evidence(path, images[:29])
    found = read_evidence(path, None)
    assert differences(found, made.evidence) == ["adversarials"]
    assert found.adversarials.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("size", [11, None, 0])
def test_the_first_examples_can_be_kept(made: Case, path: Path, size: int | None) -> None:
    count = int(made.evidence.broken[0]) if size is None else size  # None: nothing is broken
    cut = first_evidence(made.evidence, count)
    assert (write_evidence(path, cut, made.images[:count]).broken > 0) == (size == 11)
    again = read_evidence(path, made.images[:count])
    assert not differences(again, cut)
    assert again.broken.tolist() == [row for row in made.evidence.broken.tolist() if row < count]


def test_large_images_are_coded_a_group_after_the_other(made: Case, path: Path) -> None:
    count, ball = 7, Ball("Linf", 0.1)
    images = torch.rand(count, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    yes, ones = torch.ones(count, dtype=torch.bool), torch.ones(count, dtype=torch.int64)
    large = dataclasses.replace(
        made.evidence,
        ids=torch.arange(count),
        labels=0 * ones,
        clean_correct=yes,
        robust=~yes,
        broken_by=0 * ones,
        forwards=ones,
        backwards=ones,
        broken=torch.arange(count),
        adversarials=ball.project(images + 0.05, images),
        margins=torch.ones(count),
        ranges=torch.full((count,), 2.0),
        ball=ball,
    )
    write_evidence(path, large, images)
    assert not differences(read_evidence(path, images), large)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"robust": torch.zeros(30, dtype=torch.bool)}, "robust is not what broken_by says"),
        ({"broken": torch.arange(2)}, "broken is not what broken_by says"),
        ({"adversarials": torch.zeros(2, 1, 8, 8)}, "adversarials of the same shape"),
        ({"labels": torch.full((30,), 2**40)}, "labels must be of one axis"),
        ({"fingerprint": "f" * 201}, "fingerprint"),
        ({"draws": 0}, "draws"),
        ({}, "not finite"),
    ],
)
def test_evidence_that_contradicts_itself_is_not_written(
    made: Case, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    changes = changes or {"adversarials": made.evidence.adversarials * torch.nan}
    wrong: Evidence = dataclasses.replace(made.evidence, **changes)
    with pytest.raises(InputError, match=told):
        write_evidence(tmp_path / "x.evidence", wrong, made.images)
    assert not list(tmp_path.iterdir())


def test_a_changed_tensor_is_named_and_a_changed_eps_found(good: bytes, path: Path) -> None:
    header, rest = header_of(good)
    for name in ("labels", "codes"):
        content = bytearray(rest)
        content[header[name]["data_offsets"][0]] ^= 1
        path.write_bytes(good[: -len(rest)] + content)
        with pytest.raises(RecordError, match=f"damaged: {name} is not"):
            read_evidence(path, None)
    path.write_bytes(good.replace((0.03).hex().encode(), (0.02).hex().encode()))
    with pytest.raises(RecordError, match="does not fit its seal"):
        read_evidence(path, None)


LONG = np.zeros(31, dtype=np.int32)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": LONG}, "labels has 31 entries instead of 30"),
        ({"labels": LONG[:30] - 1}, "labels holds -1"),
        ({"broken_by": np.full(30, -1, dtype=np.int16)}, "entries instead of 0"),
        ({"examples": 29}, "entries instead of 29"),
        ({"eps": "nan"}, "its ball is none"),
        ({"norm": "L7"}, "its ball is none"),
        ({"bounds": ("0x1p0", "0x0p0")}, "its ball is none"),
        ({"bounds": ("-0x1p900", "0x1p900")}, "must be finite and small"),
        ({"seed": 2**70}, "which no int64 can"),
        ({"shape": (1, 8, 0)}, "shape"),
        ({"schema_version": 2}, "schema_version"),
        ({"margins": np.nan}, "margins and ranges must be finite"),
        ({"margins": 1e9}, "no margin above its range"),
        ({"steps": np.nan}, "steps in 0..1"),
        ({"steps": 2.0}, "steps in 0..1"),
        ({"levels": 128}, "levels must be in 0..127"),
        ({"levels": 0}, "kept exactly has a step"),
        ({"frames": 2**62}, "frames must be"),
        ({"frames": -1}, "frames must be"),
    ],
)
def test_a_forged_file_is_refused(path: Path, changes: dict[str, Any], told: str) -> None:
    arrays = unpack_file(path.read_bytes(), what="file").arrays
    for name in arrays.keys() & changes.keys():
        if isinstance(changes[name], int | float):  # of the first broken example
            array = arrays[name].copy()
            array[0] = changes[name]
            changes = changes | {name: array}
    forge(path, **changes)
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


# Files of strangers


def read_or_refused(path: Path, made: Case) -> Evidence | None:
    """Nothing but a `RecordError` of one line may come out."""
    told = "one sentence"
    with contextlib.suppress(RecordError):
        read_evidence(path, None)
    try:
        return read_evidence(path, made.images)
    except RecordError as error:
        told = str(error)
    assert "\n" not in told
    return None


def check_consistent(found: Evidence, made: Case) -> None:
    """What a reader relies on, whatever was in the file."""
    assert len(found.ids) == len(found.labels) == len(found.robust) == len(made.images)
    assert bool((found.robust <= found.clean_correct).all())
    wanted = (found.clean_correct & ~found.robust).nonzero().flatten()
    assert torch.equal(found.broken, wanted)
    assert torch.equal(found.broken_by == -2, ~found.clean_correct)
    assert torch.equal(found.broken_by == -1, found.robust)
    assert found.adversarials.shape == (len(wanted), *made.images.shape[1:])
    assert bool(found.adversarials.isfinite().all())
    assert bool(found.margins.isfinite().all())
    assert bool((found.margins.abs() <= found.ranges).all())
    assert int(found.forwards.min()) >= 0


@pytest.mark.parametrize("header", [True, False])
@FUZZ
@given(data=st.data())
def test_flipped_bytes_are_found(
    made: Case, good: bytes, path: Path, header: bool, data: DataObject
) -> None:
    content = bytearray(good)
    last = 7 + int.from_bytes(good[:8], "little") if header else len(content) - 1
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, last))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = read_or_refused(path, made)
    if found is not None:  # white space, or flips that undo one another
        assert not differences(found, made.evidence)


@FUZZ
@given(data=st.data())
def test_truncated_and_lengthened_files_are_refused(
    made: Case, good: bytes, path: Path, data: DataObject
) -> None:
    cut = good[: data.draw(st.integers(0, len(good) - 1))]
    path.write_bytes(data.draw(st.sampled_from([cut, good + cut[:9] + b"x"])))
    assert read_or_refused(path, made) is None


@FUZZ
@given(content=st.binary(max_size=400), size=st.integers(0, 2**64 - 1))
def test_random_bytes_are_refused(made: Case, path: Path, content: bytes, size: int) -> None:
    for whole in (content, struct.pack("<Q", size) + content):
        path.write_bytes(whole)
        assert read_or_refused(path, made) is None
    path.write_bytes(b"PK\x03\x04" + content)
    with pytest.raises(RecordError):
        read_points(path, made.images)


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=3)
)


@FUZZ
@given(data=st.data())
def test_lying_headers_are_refused(made: Case, good: bytes, path: Path, data: DataObject) -> None:
    header, rest = header_of(good)
    entry = header[data.draw(st.sampled_from(sorted(TENSORS)))]
    before = json.dumps(entry)
    key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
    if key == "dtype":
        entry[key] = data.draw(st.sampled_from([*TYPES, "F64", "BOOL", 7]))
    else:
        entry[key] = data.draw(st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3)))
    if json.dumps(entry) == before:
        return
    path.write_bytes(headed(header, rest))
    assert read_or_refused(path, made) is None


@FUZZ
@given(data=st.data())
def test_forged_tensors_are_refused_or_consistent(
    made: Case, good: bytes, path: Path, data: DataObject
) -> None:
    """Who forges a tensor can forge its digest: what is inside must hold all the same."""
    path.write_bytes(good)
    arrays = unpack_file(good, what="good").arrays
    changes = {}
    for name in data.draw(st.sets(st.sampled_from(sorted(TENSORS)), min_size=1, max_size=3)):
        raw = bytearray(arrays[name].tobytes())
        for _ in range(data.draw(st.integers(0, 3)) if raw else 0):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        array = np.frombuffer(bytes(raw), dtype=arrays[name].dtype)
        changes[name] = array[: data.draw(st.sampled_from([len(array), len(array) - 1, 0]))]
    forge(path, **changes)
    found = read_or_refused(path, made)
    if found is not None:
        check_consistent(found, made)


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"null",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a": 1, "a": 2}',
        b'{"ids": NaN}',
        b'{"__metadata__": {"robust_nc.evidence": "' + b"9" * 5000 + b'"}}',
        b"\xff" * 64,
        b'"\\ud800"',
        "[" * 9999,
        "NaN",
        "{}",
        '{"seal": "\\ud800"}',
        "null",
        "1e999",
    ],
    ids=lambda header: repr(header[:12]),
)
def test_headers_that_are_none_are_refused(
    made: Case, good: bytes, path: Path, header: bytes | str
) -> None:
    """Bytes are the header; a text is what it says of itself."""
    path.write_bytes(headed(header))
    if isinstance(header, str):
        whole, rest = header_of(good)
        whole["__metadata__"] = {"robust_nc.evidence": header}
        path.write_bytes(headed(whole, rest))
    assert read_or_refused(path, made) is None


# Points of a challenge


def test_points_of_a_challenge_are_read_from_evidence_and_from_npz(made: Case, path: Path) -> None:
    found = read_points(path, made.images)
    assert torch.equal(found.rows, made.evidence.broken)
    assert torch.equal(found.points, made.evidence.adversarials)
    path, points = path.with_suffix(".npz"), made.outcome.adversarials[[4, 2]].numpy()
    for save in (np.savez, np.savez_compressed):
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


@FUZZ
@given(data=st.data())
def test_damaged_npz_files_are_refused(made: Case, path: Path, data: DataObject) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, ids=np.arange(3), images=IMAGE.repeat(3, 0) + np.float32(0.25))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 9]))])
    with contextlib.suppress(RecordError):
        found = read_points(path, made.images)
        assert found.points.shape == (len(found.rows), 1, 8, 8)
        assert bool(((found.points >= 0) & (found.points <= 1)).all())
        assert 0 <= int(found.rows.min()) <= int(found.rows.max()) < len(made.images)


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + data


def archive(images: bytes, *, name: str = "images.npy", method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr(
            "ids.npy", npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }", b"\0" * 8)
        )
        file.writestr(name, images)
    return buffer.getvalue()


BOMB = b"\0" * 2**24


@pytest.mark.parametrize(
    "content",
    [
        archive(b""),
        archive(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999, 1, 8, 8), }")),
        archive(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }")),
        archive(
            npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n.")
        ),
        archive(
            npy(b"{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1, 8, 8), }", b"\0" * 256)
        ),
        archive(npy(b"__import__('os')")),
        archive(npy(b"(" * 9000)),
        archive(npy(b"{'descr': '<f4'", version=b"\x03\x00")),
        archive(BOMB, method=zipfile.ZIP_DEFLATED),
        archive(BOMB, method=zipfile.ZIP_BZIP2),
        archive(BOMB, method=zipfile.ZIP_LZMA),
        archive(IMAGE.tobytes(), name="../images.npy"),
    ],
    ids=range(12),
)
def test_archives_that_numpy_does_not_write_are_refused(
    made: Case, path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    with pytest.raises(RecordError):
        read_points(path, made.images)
