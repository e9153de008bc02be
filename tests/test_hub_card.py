"""The card for the Hub says what the record says, in metadata that nothing can break out of."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers_exchange import HOSTILE, card_of, filed
from helpers_report import challenged, resealed, signed

from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.exchange.hub_card import model_card, yaml_line
from robust_nc.exchange.hub_push import push
from robust_nc.io.files import sha256_of
from robust_nc.record import Card, EvidenceFile, File, Stored, Weights

hub = pytest.importorskip("huggingface_hub")
yaml = pytest.importorskip("yaml")


def metadata(text: str) -> dict[str, Any]:
    """Read the metadata as the Hub's own client does."""
    found: dict[str, Any] = hub.ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    return found


def front(text: str) -> dict[str, Any]:
    """Read the metadata as any reader of YAML would."""
    first, block, body = text.split("---\n", 2)
    assert first == ""
    assert body.startswith("\n# ")
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def test_the_metadata_holds_task_data_set_and_metrics(tmp_path: Path, signing_key: Path) -> None:
    stored = filed(tmp_path, card=Card(name="Mine", extra_data=False))
    text = model_card(stored)
    for found in (front(text), metadata(text)):
        (entry,) = found["model-index"]
        (result,) = entry["results"]
        assert entry["name"] == "Mine"
        assert result["task"]["type"] == "image-classification"
        assert result["dataset"]["type"] == "digits"
        values = {one["type"]: one["value"] for one in result["metrics"]}
        assert values == {"accuracy": 0.9, "robust_accuracy": 0.62}
        assert not any(one.get("verified") for one in result["metrics"])
        assert "Linf 0.15" in result["metrics"][1]["name"]
    assert all("verified" in one for one in front(text)["model-index"][0]["results"][0]["metrics"])
    assert "| extra training data | no |" in text
    assert "62.0 [55.1, 68.4] % of 200 examples" in text.replace("\\", "")
    challenged(stored.path, rows=(0, 1))
    signed(stored, signing_key)
    text = model_card(stored)
    assert front(text)["model-index"][0]["results"][0]["metrics"][1]["value"] == 0.61
    assert "| challenged | 2 examples broken since |" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_cards_add_nothing_to_the_metadata_or_the_text(tmp_path: Path, text: str) -> None:
    plain = model_card(filed(tmp_path / "plain", card=card_of("a")))
    shown = model_card(filed(tmp_path, card=card_of(text)))
    assert set(front(shown)) == set(front(plain)) == set(metadata(shown))
    assert shown.count("\n---") == 1
    assert "{{" not in shown
    assert "<script" not in shown
    assert not re.search(r"(?<!\\)\]\(", shown.split("\n---\n")[1])
    assert len(shown) < 20_000
    assert all(one.isprintable() for one in shown.splitlines())
    assert len([line for line in shown.splitlines() if line.startswith("#")]) == 1
    for quoted in (text[:99], "--- a: {{ b }}", "{{{--- --"):  # in the metadata it reads as it was
        assert yaml.safe_load(yaml_line("x", [{"y": quoted}])) == {"x": [{"y": quoted}]}


# Pushing, to a hub that only takes note.


class Noting:
    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self.made: list[str] = []
        self.folder, self.error = folder, error

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
        if self.error:
            raise self.error
        assert exist_ok
        self.made.append(repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        assert repo_id in self.made
        shutil.copytree(folder_path, self.folder)


def with_files(out: Path) -> Stored:
    """Write a record with evidence and weights, as a run leaves it."""
    stored = filed(out)
    cell = stored.record.cell
    evidence = stored.path.with_suffix(".evidence")
    evidence.write_bytes(b"images")
    weights = out / "checkpoints" / cell / "best.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (stored.path.parent / "private.txt").write_text("not to be pushed")
    named = File(path=f"checkpoints/{cell}/best.safetensors", sha256=sha256_of(weights))
    return resealed(
        stored,
        weights=Weights(parameters=1, best=named, last=named),
        evidence=EvidenceFile(name=evidence.name, sha256=sha256_of(evidence), bytes=6, broken=56),
    )


def test_record_rows_evidence_and_card_are_pushed_and_nothing_else(tmp_path: Path) -> None:
    stored, there = with_files(tmp_path / "out"), tmp_path / "hub"
    cell = stored.record.cell
    found = push(stored, "me/mine", api=Noting(there))
    wanted = {"README.md", f"{cell}.json", f"{cell}.parquet", f"{cell}.evidence"}
    assert {path.name for path in there.iterdir()} == wanted == set(found.files)
    assert (there / "README.md").read_text() == model_card(stored)
    assert (there / f"{cell}.json").read_bytes() == stored.path.read_bytes()


def test_what_is_not_as_it_was_written_is_not_pushed_and_a_hub_that_fails_is_told(
    tmp_path: Path,
) -> None:
    stored, no = with_files(tmp_path / "out"), tmp_path / "no"
    error = RuntimeError("401 Client Error\nwith a long story")
    with pytest.raises(ConfigError, match=r"took no push to me/mine \(RuntimeError: 401") as caught:
        push(stored, "me/mine", api=Noting(no, error))
    assert "\n" not in str(caught.value)
    values = json.loads(stored.path.read_text())
    stored.path.write_text(json.dumps({**values, "seed": 7}))
    with pytest.raises(RecordError, match="changed after it was written, in seed"):
        push(stored, "me/x", api=Noting(no))
    assert not no.exists()


@pytest.mark.parametrize("name", ["mine", "a/b/c", "../b", "a/b\n", "-a/b", ""])
def test_a_repository_is_owner_and_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        push(filed(tmp_path), name, api=Noting(tmp_path / "no"))
