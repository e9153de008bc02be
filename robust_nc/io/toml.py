"""Writing TOML, which the standard library only reads.

>>> print(toml_value({"name": "pgd", "steps": 3, "a b": [0.1, True]}))
{ name = "pgd", steps = 3, "a b" = [0.1, true] }
"""

import json
import re
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_value(value: Any) -> str:
    """Write a string, a number, a list or a table in one line."""
    if isinstance(value, dict):
        inner = ", ".join(f"{toml_key(key)} = {toml_value(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(key: str) -> str:
    """Write a key, in quotes where it needs them."""
    return key if _BARE.fullmatch(key) else toml_value(key)
