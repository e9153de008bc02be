"""Checkpoints: whatever happens while they are written, one of two generations is whole."""

import itertools
import json
import os
import re
import shutil

import pytest
import torch
from helpers_faults import full_at, killed_at, told

from robust_nc.exceptions import CheckpointError, StorageError
from robust_nc.training.checkpoint import (
    Checkpoints,
    Snapshot,
    Within,
    read_manifest,
    write_manifest,
)

CONFIG = {"seed": 0, "train": {"lr": 0.1}}


def snapshot(step: int, *, best: int = 1, within: bool = False) -> Snapshot:
    """A state with an average; the weights of `best` are shared by all that name it."""
    generator = torch.Generator().manual_seed(step)
    tensors = [{"w": torch.randn(2, 3, generator=generator).t()} for _ in range(3)]
    tensors[0] |= {"half": torch.ones(2).bfloat16() * step, "count": torch.tensor(step)}
    gathered = {"meter.sizes": torch.tensor([step]), "draws.cpu": torch.tensor([[step]])}
    return Snapshot(
        epoch=step // 2,
        step=step,
        weights=tensors[0],
        momentum=tensors[1],
        best_weights={"w": torch.full((2,), float(best))},
        best_epoch=best,
        best_score=(0.25, 0.5),
        history=[{"epoch": 1, "train_loss": 0.1}],
        raw=tensors[2],
        averaged=step,
        within=Within(1, 0.5, gathered, 1, {"epoch": 2, "lr": 0.1}) if within else None,
    )


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def loaded(folder) -> Snapshot | None:
    return Checkpoints(folder, CONFIG).load()


def saved(folder, *snapshots: Snapshot) -> Checkpoints:
    checkpoints = Checkpoints(folder, CONFIG)
    checkpoints.load()
    for each in snapshots:
        checkpoints.save(each, going_on=True)
    return checkpoints


def named(folder) -> set[str]:
    """Names of the tensors that the JSON files of a folder name."""
    texts = [path.read_text() for path in folder.glob("*.json")]
    return {name for text in texts for name in re.findall(r"[\w-]+\.safetensors", text)}


FIRST, SECOND, THIRD = snapshot(1), snapshot(2, within=True), snapshot(3, within=True)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch) -> None:
    """Leave out what only a loss of power would show; it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "cell", FIRST, SECOND)
    return tmp_path / "cell"


def test_the_state_within_an_epoch_is_saved_and_loaded(folder):
    assert loaded(folder / "new") is None
    assert same(loaded(folder), SECOND)
    assert json.loads((folder / "last.json").read_text())["schema"] == 2
    assert json.loads((folder / "previous.json").read_text())["schema"] == 1


def test_any_damaged_byte_is_seen_and_survived(folder, tmp_path):
    files = sorted(path for path in folder.iterdir() if path.name != "best.json")
    assert len(files) == 2 + 5 + 4
    generator = torch.Generator().manual_seed(0)
    for number, path in enumerate(files):
        size = path.stat().st_size
        for place in torch.randint(size, (4,), generator=generator).tolist():
            copy = tmp_path / f"{number}-{place}"
            shutil.copytree(folder, copy)
            content = bytearray(path.read_bytes())
            content[place] ^= 1 << (place % 8)
            (copy / path.name).write_bytes(content)
            checkpoints = Checkpoints(copy, CONFIG)
            found = checkpoints.load()
            assert same(found, SECOND if checkpoints.recovered is None else FIRST)
            checkpoints.save(THIRD, going_on=True)
            assert same(loaded(copy), THIRD)
            shutil.rmtree(copy)


@pytest.mark.parametrize("how", ["empty", "half", "missing", "longer"])
def test_damaged_files_of_the_last_state_are_told(folder, tmp_path, how):
    names = json.loads((folder / "last.json").read_text())
    tensors = [names[key]["name"] for key in ("tensors", "momentum", "best", "raw")]
    for name in (*tensors, names["within"]["tensors"]["name"], "last.json"):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        content = (copy / name).read_bytes()
        changed = {"empty": b"", "half": content[: len(content) // 2], "longer": content + b"x"}
        if how == "missing":
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(changed[how])
        checkpoints = Checkpoints(copy, CONFIG)
        assert same(checkpoints.load(), FIRST)
        assert f"{name} was damaged" in checkpoints.recovered
        assert "of epoch 0, step 1" in checkpoints.recovered
        checkpoints.save(THIRD)
        assert json.loads((copy / "last.json").read_text())["recovered"] == [checkpoints.recovered]
        again = Checkpoints(copy, CONFIG)
        assert same(again.load(), THIRD)
        assert again.recovered is None


def test_two_damaged_states_are_refused(folder):
    for path in folder.glob("momentum-*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"is damaged: its SHA-256 .*; delete {folder}"):
        loaded(folder)


def test_another_configuration_or_a_version_to_come_is_no_damage(folder):
    with pytest.raises(CheckpointError, match="is of another configuration"):
        Checkpoints(folder, {"seed": 1}).load()
    path = folder / "last.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robust_nc.training.checkpoint.SCHEMAS", (1, 2, 3))
        write_manifest(path, read_manifest(path) | {"schema": 3})
    with pytest.raises(CheckpointError, match="its schema is 3, this version reads 1 and 2"):
        loaded(folder)


def test_checkpoints_of_older_versions_are_read(tmp_path):
    Checkpoints(tmp_path, CONFIG).save(FIRST)
    for path in tmp_path.glob("*.json"):
        about = json.loads(path.read_text())
        del about["sha256"]
        path.write_text(json.dumps(about))
    assert same(loaded(tmp_path), FIRST)
    saved(tmp_path, SECOND)
    assert same(loaded(tmp_path), SECOND)


def test_a_kill_at_any_operation_leaves_a_whole_state(tmp_path):
    """Each kill leaves the state before or the new one, and a training goes on from either."""
    for until in itertools.count():
        place = tmp_path / str(until)
        checkpoints = saved(place, FIRST, SECOND)
        with killed_at(until) as operations:
            checkpoints.save(THIRD, going_on=True)
        resumed = Checkpoints(place, CONFIG)
        found = resumed.load()
        assert resumed.recovered is None
        assert same(found, SECOND) or same(found, THIRD)
        resumed.tidy(finished=False)
        assert not list(place.glob(".*"))
        (place / "last.json").write_bytes(b"")
        assert same(loaded(place), FIRST) or same(loaded(place), SECOND)
        saved(place, snapshot(4))
        assert same(loaded(place), snapshot(4))
        assert named(place) == {path.name for path in place.glob("*.safetensors")}
        if not operations.failed:
            break
    assert until > 30


def test_a_kill_while_the_final_state_is_saved_is_made_good(tmp_path):
    final = snapshot(4)
    for until in itertools.count():
        place = tmp_path / str(until)
        checkpoints = saved(place, FIRST, SECOND)
        with killed_at(until) as operations:
            checkpoints.save(final)
        resumed = Checkpoints(place, CONFIG)
        found = resumed.load()
        assert same(found, SECOND) or same(found, final)
        if same(found, SECOND):
            resumed.save(final)
        resumed.tidy(finished=True)
        names = sorted(path.name.split("-")[0] for path in place.iterdir())
        assert names == ["best", "best.json", "last", "last.json", "momentum", "raw"]
        assert not list(place.glob("*-b.safetensors"))
        if not operations.failed:
            break
    assert until > 25


@pytest.mark.parametrize("going_on", [True, False])
def test_a_full_disk_at_any_write_leaves_nothing_half(tmp_path, going_on):
    for until in itertools.count():
        place = tmp_path / str(until)
        checkpoints = saved(place, FIRST, SECOND)
        with full_at(until) as operations, told():
            checkpoints.save(THIRD, going_on=going_on)
        assert not list(place.glob(".*"))
        assert named(place) == {path.name for path in place.glob("*.safetensors")}
        resumed = Checkpoints(place, CONFIG)
        found = resumed.load()
        assert resumed.recovered is None
        assert same(found, SECOND) or same(found, THIRD)
        resumed.save(snapshot(4), going_on=going_on)
        assert same(loaded(place), snapshot(4))
        if not operations.failed:
            break
    assert until >= 3 * 6


def test_a_final_state_that_cannot_be_read_back_keeps_the_one_before(folder, monkeypatch):
    checkpoints = Checkpoints(folder, CONFIG)
    checkpoints.load()
    write = checkpoints._written

    def lossy(*args, **options):
        about = write(*args, **options)
        (folder / about["momentum"]["name"]).write_bytes(b"")
        return about

    monkeypatch.setattr(checkpoints, "_written", lossy)
    with pytest.raises(StorageError, match="does not give back what was written"):
        checkpoints.save(THIRD)
    resumed = Checkpoints(folder, CONFIG)
    assert same(resumed.load(), FIRST)
    assert resumed.recovered is not None


def test_a_finished_training_gets_its_best_back(tmp_path):
    Checkpoints(tmp_path, CONFIG).save(FIRST)
    whole = (tmp_path / "best.json").read_bytes()
    for content in (b"", whole[:100], whole.replace(b"0.25", b"0.35")):
        (tmp_path / "best.json").write_bytes(content)
        checkpoints = Checkpoints(tmp_path, CONFIG)
        checkpoints.load()
        checkpoints.tidy(finished=True)
        assert (tmp_path / "best.json").read_bytes() == whole


@pytest.mark.parametrize("kind", ["last-", "best-", "momentum-", "last.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_without_a_state_before_is_refused_by_name(tmp_path, kind, damage):
    Checkpoints(tmp_path, CONFIG).save(FIRST)
    (path,) = tmp_path.glob(f"{kind}*")
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    else:
        path.unlink()
    if (kind, damage) == ("last.json", "missing"):
        assert Checkpoints(tmp_path, CONFIG).load() is None
        return
    with pytest.raises(CheckpointError, match=path.name) as caught:
        Checkpoints(tmp_path, CONFIG).load()
    assert f"delete {tmp_path}" in str(caught.value)


def test_json_that_lacks_something_or_is_of_another_schema_is_refused(tmp_path):
    Checkpoints(tmp_path, CONFIG).save(FIRST)
    path = tmp_path / "last.json"
    whole = json.loads(path.read_text())
    for key in ("epoch", "tensors", "best", "best_score", "schema"):
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(CheckpointError, match=key):
            Checkpoints(tmp_path, CONFIG).load()
    path.write_text(json.dumps(whole | {"schema": 99}))
    with pytest.raises(CheckpointError, match="99"):
        Checkpoints(tmp_path, CONFIG).load()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        Checkpoints(tmp_path / "file" / "folder", CONFIG).save(FIRST)
