"""Results as columns: what each record says of itself, and the rows of many as one tidy frame.

>>> part_label({"name": "trades", "options": {"beta": 3.0}})
'trades(beta=3.0)'
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from robust_nc.exceptions import InputError, RecordError
from robust_nc.io.files import digest
from robust_nc.record.folder import read_all
from robust_nc.record.protocol import judged_protocol
from robust_nc.record.schema import COLUMNS, Record, Stored, unpack_flags
from robust_nc.record.standing import State, standing, weakest_state
from robust_nc.threat import Ball


class Identity(NamedTuple):
    """What a row of the leaderboard is about; seeds that agree in all of it are averaged.

    `recipe` is the digest of the configuration without its seed, and of a finished model also
    without its reference and weights; `images` the fingerprint of the examples that were judged:
    two recipes under one name, or two sets of images, stay two rows. `protocol` is "custom" where
    the attacks are not those of the protocol that the record names.
    """

    suite: str
    dataset: str
    images: str
    examples: int
    norm: str
    eps: float
    ball: str
    protocol: str
    model: str
    backbone: str
    head: str
    objective: str
    recipe: str


class ModelFlags(NamedTuple):
    """A model of one seed as it stands: flags `(N,)` after all challenges.

    `challenged`, `pending`, `state` are those of its `Standing`; `bound` is the share of all
    examples by which an audit leaves `robust` too high (95 %), NaN where there was none.
    """

    record: Record
    clean: npt.NDArray[np.bool_]
    robust: npt.NDArray[np.bool_]
    challenged: int
    pending: int
    state: State
    bound: float

    @property
    def member(self) -> int | str:
        """What tells the models of a row apart, and pairs them with those of another.

        The seed where we trained them: it gives all models of one seed the same order of the data.
        """
        record = self.record
        return record.weights.state or record.seed if is_finished(record) else record.seed


# Columns that `gather_rows` puts in front of the columns of a record's rows.
ADDED = ("suite", "dataset", "backbone", "ball", "model", "head", "objective", "seed")


def read_results(results: str | Path | Sequence[Stored]) -> list[Stored]:
    """Return the records of a folder, of one file, or as they are given.

    Raises `RecordError` if there are none, if one is damaged, or if a cell lies there twice.
    """
    if isinstance(results, str | Path):
        records = read_all(Path(results))
    else:
        records = list(results)
        if not all(isinstance(one, Stored) for one in records):
            raise InputError("results must be a folder, one record's path, or a list of `Stored`")
    if not records:
        place = f" in {results}" if isinstance(results, str | Path) else ""
        raise RecordError(f"there are no records{place}; run a suite first: robust-nc run SUITE")
    seen: dict[tuple[Identity, int, str | None], Path] = {}
    for stored in records:
        record = stored.record
        key = (identity(record), record.seed, record.weights.state if is_finished(record) else None)
        if key in seen:
            raise RecordError(
                f"{stored.path} and {seen[key]} are the same model, configuration and seed; "
                "a seed counts once: remove one of them"
            )
        seen[key] = stored.path
    return records


def identity(record: Record) -> Identity:
    """Return what a record is about, apart from its seed."""
    threat, model = _table(record.config, "threat"), _table(record.config, "model")
    norm, eps = str(threat.get("norm", "")), _number(threat.get("eps"))
    own = {"seed", "model"} if is_finished(record) else {"seed"}
    return Identity(
        suite=record.suite,
        dataset=record.data.dataset,
        images=record.data.fingerprint,
        examples=record.data.examples,
        norm=norm,
        eps=eps,
        ball=_ball(norm, eps),
        protocol=judged_protocol(record),
        model=record.model,
        backbone=part_label(_table(model, "backbone")),
        head=record.head,
        objective=record.objective,
        recipe=digest({key: value for key, value in record.config.items() if key not in own}),
    )


def is_finished(record: Record) -> bool:
    """Whether a record is of a model that came finished, named by where it lies and its weights."""
    return {"reference", "state"} <= _table(record.config, "model").keys()


def model_flags(stored: Stored) -> ModelFlags:
    """Return a record as it stands; raises `RecordError` for what was changed or is damaged.

    What challenges took is gone from `robust`.
    """
    record = stored.record
    if stored.changed:
        raise RecordError(
            f"{stored.path} was changed after it was sealed, in {', '.join(stored.changed)}; make "
            "it again, or remove it"
        )
    try:
        clean = unpack_flags(record.verdict.clean_correct)
        robust = unpack_flags(record.verdict.robust)
    except RecordError as error:
        raise RecordError(f"{stored.path} has damaged flags: {error}") from None
    if not len(clean) == len(robust) == record.data.examples:
        raise RecordError(
            f"{stored.path} has flags for {len(clean)} and {len(robust)} examples, and says that "
            f"it judged {record.data.examples}; make it again"
        )
    stands = standing(stored)
    bound = None if stands.receipt is None else stands.receipt.bound
    return ModelFlags(
        record,
        clean,
        stands.robust,
        stands.challenged,
        stands.pending,
        stands.state,
        math.nan if bound is None else bound,
    )


def models_of_row(members: Sequence[Stored]) -> list[ModelFlags]:
    """Return the models of one row as they stand, by seed.

    Records of the very same weights (by `Weights.state`) are one model that was judged more than
    once: an example is robust if no verdict broke it, and the smallest seed stands for them.
    """
    models: dict[str, ModelFlags] = {}
    for stored in sorted(members, key=lambda stored: stored.record.seed):
        state = stored.record.weights.state or f"seed {stored.record.seed}"
        found, first = model_flags(stored), models.get(state)
        models[state] = found
        if first is not None:
            models[state] = first._replace(
                robust=first.robust & found.robust,
                challenged=first.challenged + found.challenged,
                pending=first.pending + found.pending,
                state=weakest_state([first.state, found.state]),
                bound=float(np.maximum(first.bound, found.bound)),
            )
    return list(models.values())


def gather_rows(records: Sequence[Stored]) -> pd.DataFrame:
    """Read the rows of all records into one frame: columns `ADDED`, then those of the rows.

    `attrs["class_names"]` are names of classes by data set, where the records agree in them.
    """
    frames = []
    for stored in records:
        facts = {**identity(stored.record)._asdict(), "seed": stored.record.seed}
        frames.append(stored.rows().assign(**{name: facts[name] for name in ADDED}))
    if not frames:
        raise RecordError("there are no records to read rows from")
    frame = pd.concat(frames, ignore_index=True)[[*ADDED, *COLUMNS]]
    told = {(one.record.data.dataset, one.record.data.class_names) for one in records}
    datasets = [name for name, _ in told]
    frame.attrs["class_names"] = {
        name: list(names) for name, names in told if names and datasets.count(name) == 1
    }
    return frame


def part_label(part: Mapping[str, Any]) -> str:
    """Write a configured part as its name and options."""
    options = _table(part, "options")
    inside = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{part.get('name', '')}{f'({inside})' if inside else ''}"


def value_in(values: object, *keys: str) -> Any:
    """Return what lies at a path of keys, None where a stranger's configuration has no such."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    # A record of another model than ours may lack a part of the configuration.
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _ball(norm: str, eps: float) -> str:
    try:
        return str(Ball(norm, eps))
    except ValueError:
        return ""
