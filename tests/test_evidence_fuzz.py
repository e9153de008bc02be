"""Files of strangers: damaged, cut, lying or random, they are refused with one sentence."""

import contextlib
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_evidence_files import Case, case, differences, forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from robust_nc.evidence.contents import Evidence
from robust_nc.evidence.file import (
    TENSORS,
    TYPES,
    read_evidence,
    unpack_file,
    write_evidence,
)
from robust_nc.exceptions import RecordError
from robust_nc.verification.challenge import read_points

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def made() -> Case:
    return case()


@pytest.fixture(scope="module")
def good(made: Case, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "cell.evidence"
    write_evidence(path, made.evidence, made.images)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cell.evidence"


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


@FUZZ
@given(data=st.data())
def test_flipped_bytes_are_found(made: Case, good: bytes, path: Path, data: DataObject) -> None:
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = read_or_refused(path, made)
    if found is not None:  # white space, or flips that undo one another
        assert not differences(found, made.evidence)


@FUZZ
@given(data=st.data())
def test_flips_in_the_header_are_found(
    made: Case, good: bytes, path: Path, data: DataObject
) -> None:
    content, size = bytearray(good), int.from_bytes(good[:8], "little")
    content[data.draw(st.integers(0, 7 + size))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found = read_or_refused(path, made)
    assert found is None or not differences(found, made.evidence)


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
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    entry = header[data.draw(st.sampled_from(sorted(TENSORS)))]
    before = json.dumps(entry)
    key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    if key == "dtype":
        entry[key] = data.draw(st.sampled_from([*TYPES, "F64", "BOOL", 7]))
    else:
        entry[key] = data.draw(st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3)))
    if json.dumps(entry) == before:
        return
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + good[8 + size :])
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


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"null",
        b"[]",
        deep(10_000),
        b'{"a": 1, "a": 2}',
        b'{"ids": NaN}',
        b'{"__metadata__": {"robust_nc.evidence": "' + b"9" * 5000 + b'"}}',
        b"\xff" * 64,
        b'"\\ud800"',
    ],
    ids=["empty", "null", "list", "deep", "twice", "nan", "long", "latin", "surrogate"],
)
def test_headers_that_are_none_are_refused(made: Case, path: Path, header: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert read_or_refused(path, made) is None


@pytest.mark.parametrize("text", ["[" * 9999, "NaN", "{}", '{"seal": "\\ud800"}', "null", "1e999"])
def test_what_a_file_says_of_itself_is_read_strictly(
    made: Case, good: bytes, path: Path, text: str
) -> None:
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    header["__metadata__"] = {"robust_nc.evidence": text}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + good[8 + size :])
    assert read_or_refused(path, made) is None


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def plain_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, ids=np.arange(3), images=np.full((3, 1, 8, 8), 0.25, dtype=np.float32)
    )
    return buffer.getvalue()


@FUZZ
@given(data=st.data())
def test_damaged_npz_files_are_refused(made: Case, path: Path, data: DataObject) -> None:
    content = bytearray(plain_npz())
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


GOOD_IDS = npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }", b"\0" * 8)


@pytest.mark.parametrize(
    "images",
    [
        b"",
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999, 1, 8, 8), }"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n."),
        npy(b"{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1, 8, 8), }", b"\0" * 256),
        npy(b"__import__('os')"),
        npy(b"(" * 9000),
        npy(b"{'descr': '<f4'", version=b"\x03\x00"),
    ],
    ids=["empty", "huge", "negative", "pickle", "fortran", "code", "deep", "short"],
)
def test_arrays_that_numpy_does_not_write_are_refused(
    made: Case, path: Path, images: bytes
) -> None:
    path.write_bytes(archive({"ids.npy": GOOD_IDS, "images.npy": images}))
    with pytest.raises(RecordError):
        read_points(path, made.images)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_unpack_to_too_much_are_refused(made: Case, path: Path, method: int) -> None:
    path.write_bytes(archive({"ids.npy": GOOD_IDS, "images.npy": b"\0" * 2**24}, method))
    with pytest.raises(RecordError, match=r"unpacks to|stored or deflated"):
        read_points(path, made.images)


def test_an_archive_that_leaves_its_folder_is_refused(made: Case, path: Path) -> None:
    path.write_bytes(archive({"ids.npy": GOOD_IDS, "../images.npy": GOOD_IDS}))
    with pytest.raises(RecordError, match="nothing else"):
        read_points(path, made.images)
