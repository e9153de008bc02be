"""Files are written whole or not at all; digests do not depend on order."""

import errno
import os
from pathlib import Path

import pytest

from robust_nc.exceptions import StorageError
from robust_nc.io.files import atomic, canonical_json, digest, sha256_of, write_text


def fail_midway(path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError


def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError):
        fail_midway(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_becomes_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*: No space left on device; free"):
        write_text(tmp_path / "a", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_becomes_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "text")


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": [1.5]}) == '{"a":[1.5],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) != digest({"a": 2, "b": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(float("nan"))


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    write_text(tmp_path / "abc", "abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == known
