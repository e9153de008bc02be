"""Which rows a figure draws, and what its note says of them.

>>> merge_notes(["n = 9 to 20 test examples; one seed", "n = 1,000 test examples; one seed"])
'n = 9 to 1,000 test examples; one seed'
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from robust_nc.data.load import dataset_info
from robust_nc.exceptions import InputError, RobustNCError
from robust_nc.io.text import one_line
from robust_nc.statistics.intervals import MIN_SEEDS_FOR_T

_CONDITIONS = {"gaussian": "gaussian noise", "sign": "sign noise", "stream": "in training"}
# A figure compares like with like: these must not vary within one.
_FIXED = ("dataset", "backbone", "ball", "feature")
# Where a model has rows of several, a figure is of this one.
_PREFERRED = {"feature": "gap", "split": "train"}
_REPEATS = ("model", "seed", "condition", "tap", "eps", "epoch", "i", "j")
_NAMES = ("model", "head", "objective", "tap")
_UNNAMED: dict[str, Any] = {"model": "model", "objective": "", "head": "", "seed": 0}
_LONGEST = 40  # characters of the name of a class
_COUNT = re.compile(r"n = ([\d,]+)(?: to ([\d,]+))? (.*)")


class RowFilter(NamedTuple):
    """Which rows a figure draws. `None` takes any value."""

    measure: str
    conditions: Collection[str] | None = None
    grouping: str | None = None
    split: str | None = None
    epochs: bool = False
    every_eps: bool = False


class Roles(NamedTuple):
    """Which columns tell models apart in a figure: by colour, by dashes (None: not needed)."""

    hue: str
    style: str | None


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """Name the model of rows that do not: those of `profile`, which are of one."""
    missing = {name: value for name, value in _UNNAMED.items() if name not in frame}
    return frame.assign(**missing) if missing else frame


def select(frame: pd.DataFrame, wanted: RowFilter) -> pd.DataFrame:
    """Return the wanted rows that have a value; of several radii the largest, unless every one.

    Of several features of one model it takes `gap`, of several splits `train`: choose another by
    the frame. Raises `InputError` where there are none, where they mix what cannot be compared, or
    where one point of the figure would be drawn from several rows.
    """
    frame = named(frame)
    chosen = (frame["measure"] == wanted.measure) & (frame["epoch"].ge(0) == wanted.epochs)
    if wanted.conditions is not None:
        chosen &= frame["condition"].isin(list(wanted.conditions))
    for column in ("grouping", "split"):
        if (value := getattr(wanted, column)) is not None:
            chosen &= frame[column] == value
    rows = frame[chosen]
    if rows.empty:
        others = wanted.conditions and (frame["measure"] == wanted.measure).any()
        under = f" under {' or '.join(wanted.conditions or ())}" if others else ""
        raise InputError(f"no rows of {wanted.measure}{under}")
    rows = rows.dropna(subset="value")
    if rows.empty:
        notes = sorted(set(frame[chosen]["note"]) - {""})
        raise InputError(f"no value of {wanted.measure}: {'; '.join(notes) or 'all are missing'}")
    if not wanted.every_eps:
        # An empty radius (clean rows) stands for itself: NaN is its own largest.
        largest = rows.groupby(["model", "condition"])["eps"].transform("max")
        rows = rows[(rows["eps"] == largest) | largest.isna()]
    for column, name in _PREFERRED.items():
        has = (rows[column] == name).groupby(rows["model"]).transform("any")
        rows = rows[(rows[column] == name) | ~has]
    for column in _FIXED:
        found = set(rows[column]) - {""} if column in rows else set()
        if len(found) > 1:
            raise InputError(
                f"one figure cannot compare across {column}: {', '.join(sorted(found))}; "
                f"choose one by frame['{column}']"
            )
    if rows.duplicated(list(_REPEATS)).any():
        raise InputError(
            f"{wanted.measure} stands several times for one model, seed and layer; choose one "
            "attack, split and grouping"
        )
    shown = {name: rows[name].map(literal) for name in _NAMES if name in rows}
    return rows.assign(**shown, input=rows["condition"].replace(_CONDITIONS))


def optional(frame: pd.DataFrame, wanted: RowFilter) -> pd.DataFrame:
    """Return the wanted rows as `select`, or none where it would raise."""
    try:
        return select(frame, wanted)
    except InputError:
        return frame[:0]


def literal(name: str) -> str:
    """Keep matplotlib from reading dollar signs in a name as mathematics."""
    return name.replace("$", r"\$")


def class_name(dataset: str, label: int, names: Sequence[str] | None = None) -> str:
    """Name of a class of a data set, of those that a record told; its number where it has none.

    >>> class_name("fashion_mnist", 9), class_name("npz", 9), class_name("npz", 1, ["ant", "bee"])
    ('Ankle boot', '9', 'bee')
    """
    if not names:
        try:
            names = dataset_info(dataset).class_names
        except RobustNCError:  # a file of the user's own
            names = ()
    return one_line(names[label], limit=_LONGEST) if 0 <= label < len(names) else str(label)


def class_namer(rows: pd.DataFrame) -> Callable[[int], str]:
    """Return what names a class in rows of one data set."""
    dataset = str(rows["dataset"].iloc[0]) if "dataset" in rows else ""
    return partial(class_name, dataset, names=rows.attrs.get("class_names", {}).get(dataset))


def deepest(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the layer next to the output."""
    kept: pd.DataFrame = rows[rows["depth"] == rows["depth"].max()]
    return kept


def one_model(rows: pd.DataFrame, what: str) -> None:
    """Raise `InputError` unless all rows are of one model."""
    models = sorted(rows["model"].unique())
    if len(models) > 1:
        raise InputError(
            f"{what} is of one model; choose one of {', '.join(models)} by frame['model'], or "
            "draw all with save_all"
        )


def roles(rows: pd.DataFrame) -> Roles:
    """Colour by objective and dash by head where those two name the models, else by model."""
    by_parts = rows.groupby(["objective", "head"])["model"].nunique().max() == 1
    if not by_parts:
        return Roles("model", None)
    many = [column for column in ("objective", "head") if rows[column].nunique() > 1]
    return Roles(many[0] if many else "objective", "head" if len(many) > 1 else None)


def in_order(values: Collection[str]) -> list[str]:
    """Sort names, the untrained comparison `standard` first."""
    return sorted(set(values), key=lambda name: (name != "standard", name))


def taps_in_order(rows: pd.DataFrame) -> list[str]:
    """Names of the taps by depth."""
    return list(dict.fromkeys(rows.sort_values("depth", kind="stable")["tap"]))


def note_of(rows: pd.DataFrame, *, spread: str = "line: mean of {seeds}; band: {band}") -> str:
    """Say over how many examples and seeds a figure is, of which split and features."""
    counts = [int(n) for n in rows["n"].unique() if n > 0]
    parts = []
    if counts:
        splits = "/".join(sorted(set(rows["split"]) - {""}))
        parts.append(f"n = {_range(counts)} {splits} examples".replace("  ", " "))
    seeds = rows["seed"].nunique()
    band = (
        "smallest to largest"
        if seeds < MIN_SEEDS_FOR_T
        else "95 % interval (Student t), from the smallest seed where it goes below 0"
    )
    parts.append(spread.format(seeds=f"{seeds} seeds", band=band) if seeds > 1 else "one seed")
    features = set(rows["feature"]) - {""}
    if features:
        parts.append(f"features: {'/'.join(sorted(features))}")
    return "; ".join(parts)


def merge_notes(notes: list[str]) -> str:
    """Say once what several notes say, with all their numbers of examples as one range."""
    merged: dict[str, list[int]] = {}
    for part in (part for note in notes for part in note.split("; ")):
        found = _COUNT.fullmatch(part)
        numbers = [int(n.replace(",", "")) for n in found.groups()[:2] if n] if found else []
        merged.setdefault(found[3] if found else part, []).extend(numbers)
    return "; ".join(
        f"n = {_range(numbers)} {what}" if numbers else what for what, numbers in merged.items()
    )


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
