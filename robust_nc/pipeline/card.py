"""Model cards: what authors say of their model, as printable text of bounded length.

>>> model_name(Card(name="Ours (Wide ResNet, 2024)/../x"))
'Ours-Wide-ResNet-2024-..-x'
"""

import dataclasses
import re
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

from robust_nc.config import read
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.io.text import printable
from robust_nc.io.untrusted import read_bounded
from robust_nc.record.schema import Card

LONGEST = 2_000  # characters of one entry
_LARGEST = 64 * 1024  # bytes of a file
_NAME_LENGTH = 100
_LINES = "notes"  # the entry that may have several lines


def read_card(path: Path) -> Card:
    """Read a card from a TOML file.

    What no reader sees is replaced (`io.text.printable`). Raises `ConfigError` for a file that is
    missing or no TOML, an unknown key, a value of another type, and an entry of more than 2,000
    characters.
    """
    try:
        content = read_bounded(path, limit=_LARGEST).decode()
        values = tomllib.loads(content)
    except RecordError as error:
        raise ConfigError(f"the card {error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the card {path} is not TOML: {error}") from None
    card = read(Card, values, source=str(path))
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(card):
        value = getattr(card, field.name)
        if not isinstance(value, str):
            continue
        if len(value) > LONGEST:
            raise ConfigError(
                f"{path}: {field.name} has {len(value):,} characters; at most {LONGEST:,} fit"
            )
        lines = value.splitlines() if field.name == _LINES else [value]
        changed[field.name] = "\n".join(map(printable, lines)).strip()
    return dataclasses.replace(card, **changed)


def model_name(card: Card) -> str:
    """Turn the name of a card into one that a file may have; "" where nothing is left of it."""
    folded = unicodedata.normalize("NFKD", card.name).encode("ascii", "ignore").decode()
    return re.sub(r"[^\w.+=-]+", "-", folded)[:_NAME_LENGTH].strip("-.+=")
