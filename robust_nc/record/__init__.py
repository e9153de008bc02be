"""A record: its schema, its seals, the folder it lies in, what it stands for."""

# ruff: noqa: F403, F405 (each name is listed once)
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_nc.record.schema import *

__all__ = [
    "COLUMNS",
    "AttackUse",
    "Card",
    "Caution",
    "EvidenceFile",
    "Facts",
    "File",
    "Passes",
    "Record",
    "Score",
    "Stored",
    "Verdict",
    "Weights",
    "pack_flags",
    "read_record",
    "same_record",
    "tidy",
    "unpack_flags",
    "write_record",
    "write_rows",
]


def __getattr__(name: str) -> object:
    if name not in __all__:  # a room, not a name: importing it needs no torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("robust_nc.record.schema"), name)
