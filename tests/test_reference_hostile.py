"""Files of strangers that were made to do harm: each is answered with one sentence, none is run."""

import contextlib
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers_models import small_config, small_run
from helpers_reference import hub_folder, net_state, opened, write_code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robust_nc.exceptions import CheckpointError, ConfigError, RecordError, RobustNCError
from robust_nc.zoo import weight_files
from robust_nc.zoo.weight_files import fill, read_weights


class Bomb:
    """Something that leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return write_code(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "cell"
    small_run(small_config(epochs=0), folder)
    return folder


def header(text: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    content = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + body


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> str:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}})


LIES = {
    "empty": b"",
    "short": b"\x08\x00",
    "of 2**63 bytes": header("{}", length=2**63),
    "of 2**64 - 1 bytes": header("{}", length=2**64 - 1),
    "longer than the file": header("{}", length=1000),
    "no JSON": header("{nonsense"),
    "no table": header("[1, 2]"),
    "no UTF-8": header(b"{\xff\xfe}"),
    "too deep": header('{"a":' * 5000 + "1" + "}" * 5000),
    "data that is not there": header(entry([1000], 0, 4000)),
    "less data than its shape": header(entry([1000], 0, 4), b"0000"),
    "data before its start": header(entry([1], -4, 0), b"0000"),
    "an end before its start": header(entry([1], 4, 0), b"0000"),
    "a negative shape": header(entry([-1], 0, 4), b"0000"),
    "a shape beyond all numbers": header(entry([2**62, 2**62], 0, 4), b"0000"),
    "an unknown type": header(entry([1], 0, 4, "F33"), b"0000"),
    "bytes after the end": header(entry([1], 0, 4), b"0000" + b"x" * 50),
    "holes": header(entry([1], 4, 8), b"00000000"),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES.keys())
def test_a_lying_header_is_one_sentence(net: Path, tmp_path: Path, content: bytes) -> None:
    folder = hub_folder(tmp_path / "hub", net_state(), {})
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        opened(f"{folder}?class={net}:Net")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.integers(0, 10_000), value=st.binary(min_size=1, max_size=9), pt=st.booleans())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    tmp_path: Path, where: int, value: bytes, pt: bool
) -> None:
    state = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)}
    path = tmp_path / ("w.pt" if pt else "w.safetensors")
    if pt:
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    content = bytearray(path.read_bytes())
    at = where % len(content)
    content[at : at + len(value)] = value
    path.write_bytes(bytes(content))
    found: dict[str, torch.Tensor] = {}
    with contextlib.suppress(CheckpointError):
        found = read_weights(path)
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


@pytest.mark.parametrize("kind", ["pickle", "torch", "legacy"])
def test_a_pickle_under_a_wrong_name_is_never_run(net: Path, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "it-ran"
    folder = hub_folder(tmp_path / "hub", net_state(), {})
    path = folder / "model.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(Bomb(mark), path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(CheckpointError, match=r"no safetensors file.*was not opened"):
        opened(f"{folder}?class={net}:Net")
    renamed = path.rename(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt"):
        read_weights(renamed)
    assert not mark.exists()


def test_a_folder_with_a_pickle_only_is_refused_with_the_remedy(net: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    (tmp_path / "hub").mkdir()
    torch.save(Bomb(mark), tmp_path / "hub" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*safetensors\.torch\.save_file"):
        opened(f"{tmp_path / 'hub'}?class={net}:Net")
    assert not mark.exists()


def test_an_archive_that_climbs_out_is_not_opened(tmp_path: Path) -> None:
    for name in ("model.zip", "w.pt"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("../../climbed.txt", "out")
    with pytest.raises(ConfigError, match="is an archive, which is not opened"):
        opened(tmp_path / "model.zip")
    with pytest.raises(CheckpointError, match=r"w\.pt cannot be read as weights"):
        read_weights(tmp_path / "w.pt")
    assert not list(tmp_path.parent.parent.glob("climbed*"))


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="unpacks to 10,000,000 bytes"):
        read_weights(tmp_path / "w.pt")


def test_files_beyond_all_measure_are_refused(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub_folder(tmp_path / "hub", net_state(), {})
    monkeypatch.setattr(weight_files, "MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match="weight files of up to 0 GB"):
        opened(f"{folder}?class={net}:Net")
    monkeypatch.undo()
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.truncate(21 * 10**9)  # a hole: it takes no room
    with pytest.raises(CheckpointError, match=r"has 21\.0 GB"):
        read_weights(tmp_path / "huge.safetensors")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2]", "must hold a table, found list"),
        ('"model"', "must hold a table, found str"),
        ('{"width": NaN}', "NaN, which is no JSON"),
        ('{"width": 6, "width": 7}', "the key 'width' twice"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested 40 deep"),
        ("[" * 100_000, "nested 100000 deep"),
        ("{", "is not JSON"),
        ('{"a": "' + "x" * (8 * 2**20) + '"}', "is larger than"),
    ],
)
def test_a_config_that_is_no_table_is_refused(
    net: Path, tmp_path: Path, text: str, sentence: str
) -> None:
    folder = hub_folder(tmp_path / "hub", net_state(), text=text)
    with pytest.raises(RecordError, match=sentence) as caught:
        opened(f"{folder}?class={net}:Net")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "own",
    [
        None,
        [],
        {"model": {}},
        {"model": {"head": "liner"}, "seed": 0},
        {"model": {"backbone": {"name": "small_cnn", "width": -1}}, "seed": 0},
        {"model": {"backbone": {"name": "small_cnn", "width": 2**70}}, "seed": 0},
        {"model": {"num_classes": 10, "image_shape": [1, 8, 8]}, "seed": "0"},
        {"model": {"num_classes": 10, "image_shape": [1, 8, 8]}, "code": "import os"},
    ],
)
def test_a_config_of_ours_that_is_garbled_is_one_sentence(tmp_path: Path, own: object) -> None:
    folder = hub_folder(tmp_path / "hub", net_state(), {"robust_nc": own})
    with pytest.raises(RobustNCError) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)


def test_nothing_is_fetched_for_a_model_of_ours(tmp_path: Path) -> None:
    """A config may ask for published weights; ours lie in the file."""
    model = {"backbone": {"name": "small_cnn", "options": {"pretrained": True}}}
    model |= {"num_classes": 10, "image_shape": [1, 8, 8]}
    folder = hub_folder(tmp_path / "hub", net_state(), {"robust_nc": {"model": model}})
    with pytest.raises(CheckpointError, match="does not fit the model in it"):
        opened(folder)


def test_links_lead_nowhere_but_into_the_cache(net: Path, tmp_path: Path) -> None:
    secret = hub_folder(tmp_path / "elsewhere", net_state(), {"width": 6})
    for name in ("model.safetensors", "config.json"):
        folder = hub_folder(tmp_path / f"hub-{name}", net_state(), {"width": 6})
        (folder / name).unlink()
        (folder / name).symlink_to(secret / name)
        with pytest.raises(CheckpointError, match="a link that leads out of its folder"):
            opened(f"{folder}?class={net}:Net")
    cache = tmp_path / "models--someone--net"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (secret / name).rename(blobs / name[:3])
        (snapshot / name).symlink_to(Path("../../blobs") / name[:3])
    assert opened(f"{snapshot}?class={net}:Net").name == "abc"
    assert opened(f"{_linked(tmp_path, snapshot)}?class={net}:Net").digests


def _linked(folder: Path, target: Path) -> Path:
    """A link that the user named, which is followed."""
    link = folder / "link"
    link.symlink_to(target)
    return link


class TestCheckpointsOfStrangers:
    @pytest.mark.parametrize(
        ("key", "value", "sentence"),
        [
            ("tensors", {"name": "../w.safetensors", "sha256": "0"}, "must be a plain file name"),
            ("tensors", {"name": "/etc/passwd", "sha256": "0"}, "must be a plain file name"),
            ("tensors", {"name": "gone.safetensors", "sha256": "0"}, "there is no weight file"),
            ("tensors", None, "it lacks or garbles"),
            ("facts", {}, "it lacks or garbles 'model'"),
            ("facts", {"model": {"head": "liner"}}, "unknown head|liner"),
            ("config", {}, "it lacks or garbles"),
            ("schema", 99, "its schema is 99"),
        ],
    )
    def test_a_garbled_one_is_one_sentence(
        self, trained: Path, tmp_path: Path, key: str, value: object, sentence: str
    ) -> None:
        for path in trained.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        about = json.loads((tmp_path / "best.json").read_text()) | {key: value}
        del about["sha256"]  # as in one of an earlier version: any other is known to be garbled
        (tmp_path / "best.json").write_text(json.dumps(about))
        with pytest.raises((CheckpointError, ConfigError), match=sentence) as caught:
            opened(tmp_path)
        assert "\n" not in str(caught.value)

    def test_one_without_best_says_so(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "last.json").write_bytes((trained / "last.json").read_bytes())
        with pytest.raises(CheckpointError, match=r"there is no checkpoint \S*best\.json"):
            opened(tmp_path)

    def test_json_that_is_no_record_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('{"schema_version": 1, "model": "<script>"}')
        with pytest.raises(RecordError, match=r"a\.json"):
            opened(tmp_path / "a.json")


def test_tensors_without_values_are_refused(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    hollow = {"weight": torch.zeros(2, 2, device="meta"), "bias": torch.zeros(2)}
    assert fill(layer, hollow) == "holds no plain values for weight"
    sparse = {"weight": torch.eye(2).to_sparse(), "bias": torch.zeros(2)}
    assert fill(layer, sparse) == "holds no plain values for weight"
