"""A sealed record names every field that is not as it was sealed."""

import dataclasses
from typing import Any

import helpers_report as helpers
import pytest

from robust_nc.config import plain
from robust_nc.record import Record
from robust_nc.record.schema import broken_seals, sealed

RECORD = sealed(helpers.record_of(helpers.config()))
FIELDS = sorted(set(plain(RECORD)) - {"seals"})


def other(value: Any) -> Any:
    """A value of the same kind that is another one."""
    if isinstance(value, dict):
        return {**value, "more": 1}
    if isinstance(value, list | tuple):
        return [*value, 1]
    return f"{value}0" if isinstance(value, str) else (0 if value is None else value + 1)


def test_a_sealed_record_is_whole() -> None:
    assert broken_seals(plain(RECORD)) == ()
    assert sealed(RECORD) == RECORD


@pytest.mark.parametrize("field", FIELDS)
def test_a_changed_field_is_named(field: str) -> None:
    values = plain(RECORD)
    values[field] = other(values[field])
    assert broken_seals(values) == (field,)


def test_a_field_that_lost_its_seal_is_named() -> None:
    values = plain(RECORD)
    values["seals"] = {name: seal for name, seal in values["seals"].items() if name != "seed"}
    assert broken_seals(values) == ("seed",)


def test_a_seal_without_a_field_is_named() -> None:
    values = plain(RECORD)
    values["seals"]["hardware2"] = "0"
    assert broken_seals(values) == ("hardware2",)


def test_every_field_has_a_seal() -> None:
    assert sorted(RECORD.seals) == FIELDS
    assert {field.name for field in dataclasses.fields(Record)} == {*FIELDS, "seals"}
