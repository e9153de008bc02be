"""Seals of a record: a digest per field, so that whatever changed afterwards can be named.

A seal finds damage and careless edits; who changes a field can seal it anew, and then has to stand
up to the evidence.

>>> broken_seals({"seed": 1, "seals": {"seed": seal_of(0)}})
('seed',)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from robust_nc.config import plain
from robust_nc.io.files import digest
from robust_nc.record.schema import Record

_SEALS = "seals"


def seal_of(value: object) -> str:
    """First 16 hexadecimal digits of the digest of one field's plain value."""
    return digest(value)[:16]


def sealed(record: Record) -> Record:
    """Return the record with a seal for each of its fields."""
    values = plain(record)
    found = {name: seal_of(value) for name, value in values.items() if name != _SEALS}
    return dataclasses.replace(record, seals=found)


def broken_seals(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the fields that are not as they were sealed, sorted.

    `values` are those of the record's file: a field that came with a later version is not in it.
    """
    seals = values[_SEALS]
    fields = {name: value for name, value in values.items() if name != _SEALS}
    return tuple(
        sorted(
            name
            for name in seals.keys() | fields.keys()
            if name not in fields or seals.get(name) != seal_of(fields[name])
        )
    )
