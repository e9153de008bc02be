"""RobustBench's files of models: what they say is read, and what we write they can read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers_exchange import HOSTILE, challenged, filed
from hypothesis import given
from hypothesis import strategies as st

from robust_nc.exceptions import RecordError, RobustNCError, UnknownNameError
from robust_nc.exchange.robustbench_json import (
    ModelInfo,
    export_tree,
    from_fields,
    info_of,
    read_model_info,
    to_fields,
)
from robust_nc.exchange.robustbench_published import published_models
from robust_nc.io.files import write_text
from robust_nc.record import Card, Stored

FIELDS = {
    "link": "https://arxiv.org/abs/2001.00001",
    "name": "A paper",
    "authors": "Ada Lovelace, Alan Turing",
    "additional_data": True,
    "number_forward_passes": 2,
    "dataset": "cifar10",
    "venue": "GitHub,<br>Sep 2019",
    "architecture": "WideResNet-28-10",
    "eps": "8/255",
    "clean_acc": "88.5",
    "reported": "",
    "autoattack_acc": "57.20",
    "external": "57.14",
    "footnote": None,
    "unreliable": False,
}


def imported(folder: Path, fields: Any, threat: str = "Linf") -> ModelInfo:
    path = folder / "cifar10" / threat / "Ours2026.json"
    write_text(path, json.dumps(fields))
    return read_model_info(path)


def test_a_file_becomes_typed_values(tmp_path: Path) -> None:
    info = imported(tmp_path, FIELDS)
    assert (info.dataset, info.threat, info.key) == ("cifar10", "Linf", "Ours2026")
    assert (info.eps, info.clean, info.autoattack, info.external) == (8 / 255, 0.885, 0.572, 0.5714)
    assert info.robust == 0.5714
    assert info.reported is None
    assert info.footnote == ""
    assert info.venue == "GitHub, Sep 2019"
    assert info.additional_data is True
    assert info.passes == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clean_acc": "880.5"}, "clean_acc must be percent in 0..100"),
        ({"clean_acc": "nan"}, "clean_acc must be percent"),
        ({"clean_acc": "-1"}, "clean_acc must be percent"),
        ({"clean_acc": [88]}, "clean_acc must be percent"),
        ({"clean_acc": True}, "clean_acc must be percent"),
        ({"clean_acc": ""}, "states no clean_acc"),
        ({"autoattack_acc": None, "external": ""}, "states no autoattack_acc"),
        ({"eps": "8/0"}, "eps must be a radius"),
        ({"eps": "0"}, "eps must be a radius"),
        ({"eps": "1e9"}, "eps must be a radius"),
        ({"eps": "null"}, "states no eps"),
        ({"number_forward_passes": "2"}, "number_forward_passes must be a whole number"),
        ({"additional_data": "yes"}, "additional_data must be true or false"),
        ({"name": 5}, "name must be text"),
        ({"autoatack_acc": "50.00"}, "did you mean 'autoattack_acc'"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RobustNCError, match=said) as caught:
        imported(tmp_path, {**FIELDS, **change})
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_object_and_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="must hold an object"):
        imported(tmp_path, [FIELDS])
    with pytest.raises(UnknownNameError, match="threat folder"):
        imported(tmp_path, FIELDS, threat="L7")
    with pytest.raises(RecordError, match="larger than"):
        imported(tmp_path, {**FIELDS, "name": "x" * 70_000})
    with pytest.raises(RecordError, match="plain file name"):
        from_fields(FIELDS, dataset="..", threat="Linf", key="x")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=3))
def test_any_value_of_any_field_is_taken_or_refused(value: Any) -> None:
    for name in FIELDS:
        try:
            info = from_fields(
                {**FIELDS, name: value}, dataset="cifar10", threat="Linf", key="Ours2026"
            )
        except RobustNCError:
            continue
        assert 0 <= info.clean <= 1
        assert info.eps > 0
        text = json.dumps(to_fields(info), allow_nan=False)
        again = from_fields(json.loads(text), dataset="cifar10", threat="Linf", key="Ours2026")
        # Their accuracies have two decimals: what was finer is rounded once, and then stays.
        again = dataclasses.replace(again, declared=info.declared)
        assert to_fields(again) == to_fields(info)
        assert abs(again.clean - info.clean) <= 0.5e-4 + 1e-12


def test_every_published_file_reads_the_same_after_it_is_written(tmp_path: Path) -> None:
    for info in published_models():
        path = tmp_path / info.dataset / info.threat / f"{info.key}.json"
        write_text(path, json.dumps(to_fields(info)))
        assert read_model_info(path) == info


def test_records_read_the_same_after_they_are_exported(tmp_path: Path) -> None:
    stored = [filed(tmp_path, seed=0), filed(tmp_path, seed=1), filed(tmp_path, head="linear")]
    paths = export_tree(stored, tmp_path / "info")
    assert len({path.stem for path in paths}) == 3, "seeds of one name have files of their own"
    read = {path.stem: read_model_info(path) for path in paths}
    for one in stored:
        info = info_of(one)
        key = f"{info.key}_{one.record.cell}"
        key = key if key in read else info.key
        assert read[key] == dataclasses.replace(info, key=key)
    fields = json.loads(paths[0].read_text())
    assert fields["eps"] == "0.15"
    assert fields["clean_acc"] == "90.00"


def test_only_the_verdict_of_autoattack_is_called_so_and_challenges_count(tmp_path: Path) -> None:
    weak = info_of(filed(tmp_path, protocol="pgd"))
    assert (weak.autoattack, weak.reported) == (None, 0.62)
    strong = info_of(challenged(filed(tmp_path, protocol="standard"), rows=(0, 1, 2, 3)))
    assert (strong.autoattack, strong.external, strong.robust) == (0.62, 0.6, 0.6)
    assert "broke 4 more" in strong.footnote


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_card_stays_text_of_bounded_length(tmp_path: Path, text: str) -> None:
    fields = ("name", "authors", "paper", "link", "venue", "architecture", "notes")
    stored: Stored = filed(tmp_path, card=Card(**dict.fromkeys(fields, text)))
    (path,) = export_tree([stored], tmp_path / "info")
    assert path.parent == tmp_path / "info" / "digits" / "Linf"
    assert path.stat().st_size < 5_000
    written = json.loads(path.read_text())
    assert all(one.isprintable() for one in written.values() if isinstance(one, str))
    assert not written["link"] or written["link"].startswith("http")
    assert read_model_info(path) == info_of(stored)
