"""The leaderboard: seeds aggregated, with intervals and ranks; two heads compared seed by seed.

>>> sorted(set(COLUMNS) & {"robust", "robust_low", "robust_high", "seeds"})
['robust', 'robust_high', 'robust_low', 'seeds']
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robust_nc.exceptions import InputError, unknown_name
from robust_nc.io.files import digest
from robust_nc.record.protocol import CUSTOM, doubts
from robust_nc.record.schema import Record, Stored
from robust_nc.record.standing import CHECKED, CLAIMED, REPRODUCED, weakest_state
from robust_nc.registry import PROTOCOLS
from robust_nc.report.board.gather import (
    Identity,
    ModelFlags,
    identity,
    models_of_row,
    read_results,
    value_in,
)
from robust_nc.report.board.ranking import MIN_EXAMPLES, Row, compare_with, tiers
from robust_nc.statistics.intervals import (
    MIN_SEEDS_FOR_T,
    Interval,
    mean_interval,
    paired_interval,
    wilson,
)

# Rows that agree in these are ranked together; any other two are not comparable.
BOARD = ("dataset", "ball", "protocol", "examples", "images")
SCORES = ("clean", "robust")
# Headline measures of the penultimate tap, each beside its null (design of the measures).
SUMMARIES = (
    "leap_rate",
    "landed",
    "nc1_clean",
    "nc1_attacked",
    "nc1_leap_null",
    "nc1_landed",
    "nc1_landed_null",
    "nc2_angle_clean",
    "collapse_radius",
    "leap_layer",
)
COLUMNS = (
    *("rank", "order", "unranked", "model", "backbone", "head", "objective", "suite", "dataset"),
    *("ball", "norm", "eps", "protocol", "seeds", "examples", "state", "bound"),
    *("challenged", "pending"),
    *("clean", "clean_low", "clean_high", "robust", "robust_low", "robust_high", "interval"),
    *("lead_over", "lead", "lead_p", "lead_test"),
    *("beside", "robust_beside", "gap", "robust_last", *SUMMARIES),
    *("parameters", "passes_per_example", "warnings", "images", "recipe"),
)
_FEW = f"fewer than {MIN_EXAMPLES:,} examples"
_CLAIMED, _CHECKED = f"{CLAIMED}, not {REPRODUCED}", f"{CHECKED}, not {REPRODUCED}"
# Behind ranked rows stand those that are ordered by value alone, then those in doubt.
_RANKED, _BY_VALUE, _IN_DOUBT = 0, 1, 2
_PLACES = {"": _RANKED, **dict.fromkeys((_FEW, _CLAIMED, _CHECKED), _BY_VALUE)}
PAIRED_COLUMNS = (
    *("suite", "dataset", "ball", "protocol", "backbone", "objective", "model", "against"),
    *("measure", "difference", "low", "high", "interval", "seeds", "examples"),
)


def leaderboard(results: str | Path | Sequence[Stored]) -> pd.DataFrame:
    """Return one row per model (seeds aggregated), best robust accuracy first on each board.

    Columns `COLUMNS`. Accuracies are shares in [0, 1], means over `seeds` seeds, each judged on
    `examples` examples and after all challenges, which took `challenged` examples; `interval` says
    what low and high are: `t95` (Student t over at least 3 seeds, cut to [0, 1]), `range` (of 2
    seeds), `wilson` (over the examples of one seed). `clean` and `robust` are of the weights that
    validation chose; `robust_last` and the measures are of the last weights, means over seeds, NaN
    where any seed lacks one. `robust_beside` is the accuracy under the weaker protocol `beside`,
    and `gap` by how much that flatters. `state` is the weakest of its seeds' ("claimed", "checked",
    "reproduced"), `bound` the share of all examples by which audits leave `robust` too high (95 %,
    the largest of its seeds'), `pending` how many challenges nobody judged yet.

    `rank` is the tier (`board.ranking`) within one data set, ball, protocol and set of examples
    (`images`, their fingerprint); NaN, with the reason in `unranked`, for fewer than
    `ranking.MIN_EXAMPLES` examples, for what is not reproduced, for attacks that are not those of
    the protocol, and where gradients or randomness leave a doubt. Rows without a rank stand below;
    the first two kinds have an `order` among themselves, by value and not tested.
    `lead` is by how much a row is above the next one of its table, `lead_over`, with the p-value of
    the test `lead_test`, not adjusted. Raises `RecordError` if there are no records, or one or a
    challenge is damaged.

    >>> from robust_nc.exceptions import RecordError
    >>> try:
    ...     leaderboard([])
    ... except RecordError as error:
    ...     print(error)
    there are no records; run a suite first: robust-nc run SUITE
    """
    groups: dict[Identity, list[Stored]] = defaultdict(list)
    for stored in read_results(results):
        groups[identity(stored.record)].append(stored)
    models = [models_of_row(members) for members in groups.values()]
    frame = pd.DataFrame([_row(what, each) for what, each in zip(groups, models, strict=True)])
    frame["unranked"] = [_unranked(row) for row in frame.to_dict("records")]
    frame["rank"] = math.nan
    robust = [{one.member: one.robust for one in row} for row in models]
    clean = [{one.member: one.clean for one in row} for row in models]
    for _, table in frame[frame["unranked"] == ""].groupby(list(BOARD)):
        rows = [robust[i] for i in table.index], [clean[i] for i in table.index]
        frame.loc[table.index, "rank"] = tiers(rows[0], clean=rows[1])
    order = dict.fromkeys(("dataset", "norm", "eps", *BOARD[2:], "last"), True)
    order |= {"robust": False, "model": True, "recipe": True}
    frame = frame.assign(last=[_PLACES.get(one, _IN_DOUBT) for one in frame["unranked"]])
    frame = frame.sort_values(list(order), ascending=list(order.values()))
    frame["order"], leads = math.nan, {}
    for (*_, last), table in frame.groupby([*BOARD, "last"], sort=False):
        if last == _BY_VALUE:
            frame.loc[table.index, "order"] = np.arange(1, len(table) + 1)
        for first, second in itertools.pairwise(table.index):
            leads[first] = _lead(robust[first], robust[second], frame.loc[second])
    for name, none in (
        ("lead_over", ""),
        ("lead", math.nan),
        ("lead_p", math.nan),
        ("lead_test", ""),
    ):
        frame[name] = [leads[i][name] if i in leads else none for i in frame.index]
    return frame.reset_index(drop=True)[list(COLUMNS)]


def _lead(first: Row, second: Row, below: "pd.Series[Any]") -> dict[str, Any]:
    """Say by how much a row is above the one below it, and how sure that is."""
    common = len(first.keys() & second.keys())
    over = f"{common} seeds" if common >= MIN_SEEDS_FOR_T else f"{below['examples']:,} examples"
    shares = [np.mean([flags.mean() for flags in row.values()]) for row in (first, second)]
    return {
        "lead_over": below["model"],
        "lead": shares[0] - shares[1],
        "lead_p": float(compare_with(first, [second]).p[0]),
        "lead_test": f"paired over {over}",
    }


def paired(
    results: str | Path | Sequence[Stored],
    *,
    against: str,
    measures: Sequence[str] = ("clean", "robust", "leap_rate"),
) -> pd.DataFrame:
    """Return each head minus the head `against`, seed by seed, one row per model and measure.

    Two models are compared where all but the head, its feature normalisation and temperature agree
    (so also the objective and the examples); `difference` is the mean over their common seeds, with
    `paired_interval`. Pairs without a common seed are left out; the frame is empty where nothing
    else is there to compare. Raises `UnknownNameError` if no record has the head `against`.
    """
    valid = (*SCORES, *SUMMARIES)
    if isinstance(measures, str) or not measures:
        raise InputError(f"measures must be a list of names, found {measures!r}")
    for name in measures:
        if name not in valid:
            raise unknown_name("measure", name, valid)
    records = [stored.record for stored in read_results(results)]
    if against not in {record.head for record in records}:
        raise unknown_name("head", against, {record.head for record in records})
    models: dict[Identity, list[Record]] = defaultdict(list)
    for record in records:
        models[identity(record)].append(record)
    rest = {what: _but_head(members[0]) for what, members in models.items()}
    rows = [
        _difference(what, models[what], models[base], measure)
        for what in models
        for base in models
        if what.head != against and base.head == against and rest[what] == rest[base]
        for measure in measures
    ]
    frame = pd.DataFrame([row for row in rows if row], columns=list(PAIRED_COLUMNS))
    return frame.sort_values(["dataset", "ball", "protocol", "objective", "model"], kind="stable")


def _row(what: Identity, models: list[ModelFlags]) -> dict[str, Any]:
    records = [one.record for one in models]
    clean, robust = (_share(models, name) for name in SCORES)
    row: dict[str, Any] = {**what._asdict(), "seeds": len(models)}
    for name, found in zip(SCORES, (clean, robust), strict=True):
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    measures = ("robust_beside", "robust_last", *SUMMARIES)
    row |= {name: _mean([_value(record, name) for record in records]) for name in measures}
    beside = value_in(records[0].config, "evaluation", "beside")
    row |= {"beside": str(beside or ""), "gap": row["robust_beside"] - robust.value}
    return {
        **row,
        "state": weakest_state([one.state for one in models]),
        "bound": float(np.max([one.bound for one in models])),
        "challenged": sum(one.challenged for one in models),
        "pending": sum(one.pending for one in models),
        "doubts": frozenset().union(*map(doubts, records)),
        "interval": robust.kind if math.isfinite(robust.value) else clean.kind,
        "parameters": records[0].weights.parameters,
        "passes_per_example": _mean([_passes(record) for record in records]),
        "warnings": ", ".join(sorted({one.name for record in records for one in record.warnings})),
    }


def _unranked(row: dict[Any, Any]) -> str:
    """Say why a row has no rank, "" where it has one."""
    if not math.isfinite(row["robust"]):
        return "no verdict"
    if not row["ball"]:
        return "no ball"
    if row["protocol"] == CUSTOM:
        return "attacks that are not those of the protocol it names"
    if row["doubts"]:
        return f"in doubt: {', '.join(sorted(row['doubts']))}"
    if PROTOCOLS.load(row["protocol"]).draws > 1:
        return "in doubt: random-output"
    if row["examples"] < MIN_EXAMPLES:
        return _FEW
    return {CLAIMED: _CLAIMED, CHECKED: _CHECKED}.get(row["state"], "")


def _share(models: list[ModelFlags], name: str) -> Interval:
    """Share of an accuracy, from the flags as they stand; NaN where a record has no such score."""
    if any(name not in one.record.scores for one in models):
        return Interval(math.nan, math.nan, math.nan, len(models), "none")
    return mean_share([one.clean if name == "clean" else one.robust for one in models])


def mean_share(flags: Sequence[npt.NDArray[np.bool_]]) -> Interval:
    """Share of flags `(N,)` that are set: the mean over several models, in [0, 1]."""
    shares = [wilson(int(each.sum()), len(each)) for each in flags]
    if len(shares) == 1:
        return shares[0]
    found = mean_interval([share.value for share in shares])
    return found._replace(low=max(0.0, found.low), high=min(1.0, found.high))


def _value(record: Record, name: str) -> float:
    if name in record.scores:
        return record.scores[name].value
    value = record.summary.get(name)
    return math.nan if value is None else float(value)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _passes(record: Record) -> float:
    spent = record.passes.forward + record.passes.backward
    return spent / record.data.examples if record.data.examples else math.nan


def _but_head(record: Record) -> str:
    # What two records must share to differ in the head alone; the objective and all else included.
    model = record.config.get("model")
    kept = {
        key: value
        for key, value in (model if isinstance(model, dict) else {}).items()
        if key not in {"head", "normalise_features", "temperature"}
    }
    facts = identity(record)._asdict()
    for key in ("model", "head", "recipe", "eps"):
        facts.pop(key)
    return digest({**facts, "config": {**record.config, "model": kept, "seed": None}})


def _difference(
    what: Identity, members: list[Record], base: list[Record], measure: str
) -> dict[str, Any]:
    def by_seed(members: list[Record]) -> dict[int, float]:
        values = {record.seed: _value(record, measure) for record in members}
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    first, second = by_seed(members), by_seed(base)
    if not set(first) & set(second):
        return {}
    found = paired_interval(first, second)
    return {
        **{key: value for key, value in what._asdict().items() if key in PAIRED_COLUMNS},
        "against": base[0].model,
        "measure": measure,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "interval": found.kind,
        "seeds": found.n,
    }
