"""What strangers wrote is read strictly: one sentence for whatever is no plain, bounded JSON."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers_report import flags, written
from helpers_runner import cli
from hypothesis import given
from hypothesis import strategies as st

from robust_nc.exceptions import RecordError, RobustNCError
from robust_nc.io.untrusted import MAX_DEPTH, file_name, parse_json, read_bounded, read_json
from robust_nc.zoo.reference import open_model

CHECKPOINT = Path(__file__).parent.parent / "results/evaluated/checkpoints/fashion-etf-pgd"
WHOLE = st.integers(-(2**63), 2**63 - 1)
LEAVES = st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES.filter(lambda v: not isinstance(v, float) or abs(v) != float("inf")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_plain_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value), what="x") == value


@given(st.text())
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    try:
        found = parse_json(text, what="x")
    except RecordError:
        return
    assert found == json.loads(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": NaN}', "holds NaN"),
        ("[Infinity]", "holds Infinity"),
        ("[-Infinity]", "holds -Infinity"),
        ("[1e999]", "holds 1e999"),
        (f"[{2**63}]", "holds 9223372036854775808, which no int64 can"),
        (f'{{"eps": 1{"0" * 400}}}', "holds 1000"),
        ('{"a": {"b": 1, "b": 2}}', "key 'b' twice"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested {MAX_DEPTH + 1} deep"),
        ("[" * 200_000, "nested 200000 deep"),
        ('{"a": 1', "is not JSON"),
        ("[" + "9" * 5_000 + "]", "is not JSON"),
        ('"' + '\\"' * 200_000, "is not JSON"),
    ],
)
def test_what_is_no_strict_json_is_named(text: str, told: str) -> None:
    with pytest.raises(RecordError, match=told):
        parse_json(text, what="card")


def test_brackets_in_text_are_no_nesting() -> None:
    assert parse_json(json.dumps("[" * 1_000 + '\\"{'), what="x") == "[" * 1_000 + '\\"{'


def test_a_file_is_read_to_its_limit_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('"1234"')
    assert read_json(path, limit=6) == "1234"
    with pytest.raises(RecordError, match="larger than 5 bytes"):
        read_json(path, limit=5)


def test_what_is_no_file_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="not there"):
        read_bounded(tmp_path, limit=10)
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match="not UTF-8"):
        read_json(path)


@pytest.mark.parametrize("name", ["a.parquet", "0f3.evidence", "A-b_c=1+2.json"])
def test_plain_file_names_pass(name: str) -> None:
    assert file_name(name, what="rows") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "/etc/passwd", ".hidden", "a\\b", "a\0b", "a" * 121, "a\n"],
)
def test_names_that_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(RecordError, match="plain file name"):
        file_name(name, what="rows")


@pytest.mark.parametrize("place", ["data.dataset", "protocol", "model.head"])
def test_code_that_a_record_or_a_checkpoint_names_is_not_run(tmp_path: Path, place: str) -> None:
    """Only what the user names in a suite, in Python or on the command line is."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef make(): ...\n")
    reference = f"{tmp_path / 'evil.py'}:make"
    stored = written(tmp_path / "out", flags(100))
    values = json.loads(stored.path.read_text())
    part = {"name": reference, "options": {}}
    if place == "protocol":
        values["protocol"] = reference
    else:
        table, key = place.split(".")
        values["config"][table][key] = part
    stored.path.write_text(json.dumps(values))
    for verb in ("verify", "board"):
        assert "Traceback" not in cli(verb, stored.path).err
    folder = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["robust_nc"]["model"]["head"] = part
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RobustNCError, match="code is run where you name it"):
        open_model(str(folder), num_classes=10, image_shape=(1, 28, 28))
    assert not (tmp_path / "ran").exists()
