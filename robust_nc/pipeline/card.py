"""Model cards: what authors say of their model, as plain text of bounded length.

>>> print(plain_text("A" + chr(27) + "[31mB" + chr(10) + "C"))
A[31mB C
"""

import dataclasses
import re
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

from robust_nc.config import read
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.untrusted import read_bounded
from robust_nc.record.schema import Card

LONGEST = 2_000  # characters of one entry
_LARGEST = 64 * 1024  # bytes of a file
_NAME_LENGTH = 100
_LINES = "notes"  # the entry that may have several lines

# Marks that make text read in another order than it is stored in.
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def read_card(path: Path) -> Card:
    """Read a card from a TOML file.

    Control characters are left out. Raises `ConfigError` for a file that is missing or no TOML,
    an unknown key, a value of another type, and an entry of more than 2,000 characters.
    """
    try:
        content = read_bounded(path, limit=_LARGEST).decode()
        values = tomllib.loads(content)
    except RecordError as error:
        raise ConfigError(f"the card {error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the card {path} is not TOML: {error}") from None
    return plain_card(read(Card, values, source=str(path)), source=str(path))


def plain_card(card: Card, *, source: str) -> Card:
    """Return a card without control characters, or raise `ConfigError` for an entry too long."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(card):
        value = getattr(card, field.name)
        if not isinstance(value, str):
            continue
        if len(value) > LONGEST:
            raise ConfigError(
                f"{source}: {field.name} has {len(value):,} characters; at most {LONGEST:,} fit"
            )
        changed[field.name] = plain_text(value, lines=field.name == _LINES)
    return dataclasses.replace(card, **changed)


def plain_text(text: str, *, lines: bool = False) -> str:
    """Leave out control characters and marks of direction; line ends become spaces or are kept."""
    text = _DIRECTIONS.sub("", re.sub(r"\r\n?|\t", lambda m: " " if m[0] == "\t" else "\n", text))
    text = text if lines else text.replace("\n", " ")
    kept = (c for c in text if c == "\n" or unicodedata.category(c) not in {"Cc", "Cs"})
    return "".join(kept).strip()


def safe_name(text: str) -> str:
    """Turn a name into one that a file may have; "" where nothing is left of it.

    >>> safe_name("Ours (Wide ResNet, 2024)/../x")
    'Ours-Wide-ResNet-2024-..-x'
    """
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^\w.+=-]+", "-", folded)[:_NAME_LENGTH].strip("-.+=")
