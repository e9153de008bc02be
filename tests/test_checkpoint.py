"""Checkpoints: whole or refused, whatever happens while they are written."""

import json

import pytest
import torch

from robust_nc.exceptions import CheckpointError, StorageError
from robust_nc.io import files
from robust_nc.training.checkpoint import Checkpoints, Snapshot

CONFIG = {"seed": 0, "train": {"lr": 0.1, "epochs": 3}}


def snapshot(epoch: int, best: int | None = None) -> Snapshot:
    generator = torch.Generator().manual_seed(epoch)
    tensors = {
        "a": torch.randn(3, 4, generator=generator).t(),
        "count": torch.tensor(epoch),
        "half": torch.randn(2, generator=generator).bfloat16(),
    }
    history = [{"epoch": index + 1, "train_loss": 0.1 * index} for index in range(epoch)]
    best = epoch if best is None else best
    weights = {"a": torch.full((2,), float(best))}
    momentum = {"a": torch.ones(4, 3) * epoch}
    return Snapshot(epoch, 10 * epoch, tensors, momentum, weights, best, (0.25, 0.5), history)


def same(one: Snapshot, other: Snapshot) -> bool:
    tensors = ("weights", "momentum", "best_weights")
    numbers = [f for f in Snapshot._fields if f not in tensors]
    return all(getattr(one, f) == getattr(other, f) for f in numbers) and all(
        getattr(one, f).keys() == getattr(other, f).keys()
        and all(torch.equal(getattr(one, f)[k], getattr(other, f)[k]) for k in getattr(one, f))
        for f in tensors
    )


def names(folder) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    assert Checkpoints(tmp_path / "new", CONFIG).load() is None
    Checkpoints(tmp_path, CONFIG).save(snapshot(2, best=1))
    assert same(Checkpoints(tmp_path, CONFIG).load(), snapshot(2, best=1))


def test_old_files_are_removed_after_the_switch(tmp_path):
    checkpoints = Checkpoints(tmp_path, CONFIG)
    for epoch in range(1, 5):
        checkpoints.save(snapshot(epoch, best=min(epoch, 2)))
    assert names(tmp_path) == ["best", "best.json", "last", "last.json", "momentum"]
    assert same(Checkpoints(tmp_path, CONFIG).load(), snapshot(4, best=2))


class Killed(BaseException):
    """Stands for a kill between two writes."""


@pytest.mark.parametrize("writes", range(7))
def test_a_kill_between_two_writes_leaves_the_previous_checkpoint(tmp_path, monkeypatch, writes):
    Checkpoints(tmp_path, CONFIG).save(snapshot(1))
    left = writes
    write = files.write_bytes

    def until_killed(path, content):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        write(path, content)

    checkpoints = Checkpoints(tmp_path, CONFIG)
    checkpoints.load()
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", until_killed)
        try:
            checkpoints.save(snapshot(2))
            killed = False
        except Killed:
            killed = True
    # Three files of tensors and two of JSON make one checkpoint.
    assert killed == (writes < 5)
    assert same(Checkpoints(tmp_path, CONFIG).load(), snapshot(1 if killed else 2))
    resumed = Checkpoints(tmp_path, CONFIG)
    resumed.load()
    resumed.save(snapshot(3))
    assert names(tmp_path) == ["best", "best.json", "last", "last.json", "momentum"]
    assert same(Checkpoints(tmp_path, CONFIG).load(), snapshot(3))


@pytest.mark.parametrize("kind", ["last-", "best-", "momentum-", "last.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_is_named_with_a_remedy(tmp_path, kind, damage):
    Checkpoints(tmp_path, CONFIG).save(snapshot(2))
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
    Checkpoints(tmp_path, CONFIG).save(snapshot(2))
    path = tmp_path / "last.json"
    whole = json.loads(path.read_text())
    for key in ("epoch", "tensors", "best", "best_score", "schema"):
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(CheckpointError, match=key):
            Checkpoints(tmp_path, CONFIG).load()
    path.write_text(json.dumps(whole | {"schema": 99}))
    with pytest.raises(CheckpointError, match="99"):
        Checkpoints(tmp_path, CONFIG).load()


def test_another_configuration_is_refused_by_its_keys(tmp_path):
    Checkpoints(tmp_path, CONFIG).save(snapshot(1))
    other = {"seed": 0, "train": {"lr": 0.2, "epochs": 3, "momentum": 0.9}}
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(tmp_path, other).load()
    assert "train.lr (0.1 there, 0.2 here)" in str(caught.value)
    assert "train.momentum ('nothing' there, 0.9 here)" in str(caught.value)
    assert "train.epochs" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        Checkpoints(tmp_path / "file" / "folder", CONFIG).save(snapshot(1))
