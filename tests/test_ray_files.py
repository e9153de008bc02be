"""Files that travel: whole or not at all, JSON last, folders mirrored, nothing above the folder.

What a worker hands over survives a lost queue: never half of what belongs together.
"""

import threading
import time
from pathlib import Path

import pytest
from helpers_runner import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_nc.engines.ray import files as bundles
from robust_nc.engines.ray.files import (
    FileBundle,
    Message,
    MessageQueue,
    read_bundle,
    stamps,
    write_bundle,
)
from robust_nc.engines.ray.start import ClusterSettings
from robust_nc.engines.ray.worker import _handing_over
from robust_nc.exceptions import ConfigError, StorageError
from robust_nc.io.files import write_bytes


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


names = st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}\.(json|bin)", fullmatch=True)


@settings(deadline=None)  # files are synced to the disk
@given(st.dictionaries(names, st.binary(max_size=20), max_size=6))
def test_what_is_packed_is_unpacked(tmp_path_factory, files):
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for name, content in files.items():
        write_bytes(here / name, content)
    write_bundle(read_bundle(here, [path.name for path in here.iterdir()]), there)
    assert contents(there) == files


def test_only_what_changed_is_packed_again(tmp_path):
    write_bytes(tmp_path / "cache" / "a.jsonl", b"1")
    write_bytes(tmp_path / "cache" / "b.jsonl", b"1")
    known = stamps(tmp_path, ["cache"])
    with (tmp_path / "cache" / "b.jsonl").open("ab") as file:
        file.write(b"2")
    found = read_bundle(tmp_path, ["cache"], known=known)
    assert found.files == {"cache/b.jsonl": b"12"}
    assert found.present == {"cache/a.jsonl", "cache/b.jsonl"}


def test_json_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(bundles, "write_bytes", lambda path, content: written.append(path.name))
    write_bundle(FileBundle({"c/a.json": b"", "c/z.safetensors": b"", "b.jsonl": b""}), tmp_path)
    assert written == ["b.jsonl", "z.safetensors", "a.json"]


def test_a_mirrored_folder_loses_what_was_replaced(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("c/old.safetensors", "other/stays"):
        write_bytes(there / name, b"")
    write_bytes(here / "c" / "new.safetensors", b"")
    write_bundle(read_bundle(here, ["c"]), there)
    assert set(contents(there)) == {"c/new.safetensors", "other/stays"}


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    """The JSON and the tensors in a bundle belong together, whatever the writer does meanwhile."""
    ended, folder = threading.Event(), tmp_path / "c"

    def save(number: int) -> None:
        write_bytes(folder / f"t{number}", b"%d" % number)
        write_bytes(folder / "last.json", b"t%d" % number)
        (folder / f"t{number - 1}").unlink(missing_ok=True)

    def write() -> None:
        number = 1
        while not ended.wait(0.002):
            number += 1
            save(number)

    save(1)
    monkeypatch.setattr(bundles, "_TRIES", 1000)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            found = read_bundle(tmp_path, ["c"])
            assert "c/" + found.files["c/last.json"].decode() in found.files
    finally:
        ended.set()
        writer.join()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(StorageError, match="leaves the suite's folder"):
        write_bundle(FileBundle({name: b""}), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"address": "ray://head:10001"}, "ray job submit"),
        ({"gpus": 1.5}, "a share of one such as 0.5, or a whole number, found 1.5"),
        ({"gpus": float("nan")}, "found nan"),
        ({"cpus": 0.0}, "cpus and sync_seconds must be above 0"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ClusterSettings(**options)


class Posted:
    """A queue that can be lost, written to as a worker does; `lives` are all that it had."""

    def __init__(self) -> None:
        self.lives = [MessageQueue()]
        self.sent = 0

    def state(self, bundle: FileBundle | None, life: str | None = None) -> str | None:
        reply = self.lives[-1].put(Message("cell", 1, None, bundle, life))
        self.sent += bundle is not None
        return reply.life


def received(box: MessageQueue, out: Path) -> set[str]:
    """Unpack what lies in a queue; return the names of all files so far."""
    for message in box.drain():
        if message.bundle is not None:
            write_bundle(message.bundle, out)
            names = {path.name for path in out.rglob("*") if path.is_file()}
            for named in (out / "checkpoints" / "c" / "last.json").read_text().split():
                assert named in names, "a checkpoint came without a file that it names"
    return {path.name for path in out.rglob("*") if path.is_file()}


def test_a_lost_mailbox_costs_no_file_of_a_checkpoint(tmp_path: Path) -> None:
    """The first state is lost with the queue, and the second builds upon it."""
    there, here, posted = tmp_path / "there", tmp_path / "here", Posted()
    folder = there / "checkpoints" / "c"
    with _handing_over(there, posted, {}, 0.05):
        write_bytes(folder / "best", b"1")
        write_bytes(folder / "last.json", b"best")
        wait_for(lambda: posted.sent == 1)
        posted.lives.append(MessageQueue())
        write_bytes(folder / "last", b"2")
        write_bytes(folder / "last.json", b"best last")
        wait_for(lambda: posted.sent >= 3)
        time.sleep(0.1)
    assert received(posted.lives[-1], here) == {"best", "last", "last.json"}
