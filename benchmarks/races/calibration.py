"""What the cheap protocol misses: `fast` against `standard`, on the same examples.

    python -m robust_nc.benchmarks.races.calibration out/fashion --out calibration.json

Takes every finished cell of these suites, judges its `best` weights by both protocols (what a
record says already is not done again), and keeps models of which `standard` leaves more than 30 %
robust. States how many examples `fast` leaves standing that `standard` breaks, beside the survivors
of `standard`, with the one-sided 95 % bound (Clopper and Pearson, 1934). Killed, it goes on from
`--out`.
"""

import json
from pathlib import Path
from typing import Any

import tyro
from scipy.stats import beta

from robust_nc.benchmarks.races.timing import markdown
from robust_nc.config import RunConfig, read
from robust_nc.data.load import read_split, to_unit
from robust_nc.evaluation import evaluate
from robust_nc.io.files import write_text
from robust_nc.record import Record, unpack_flags
from robust_nc.record.folder import read_all
from robust_nc.runtime import default_device
from robust_nc.runtime.environment import hardware, versions
from robust_nc.training.run import load_classifier

LEAST_ROBUST = 0.3
PROTOCOLS = ("standard", "fast")
_HEAD = "data|model|seed|examples|`standard`, robust|`fast`, robust|missed|by `fast` alone|units"
HEAD = _HEAD.split("|")


def judged(record: Record, suite: Path, protocol: str) -> dict[str, Any]:
    """Flags of the robust examples, and units spent (a forward or a backward pass is one)."""
    if record.protocol == protocol:
        units = record.passes.forward + record.passes.backward
        return {"robust": unpack_flags(record.verdict.robust).tolist(), "units": units}
    config = read(RunConfig, record.config)
    count = record.data.examples
    test = read_split(config.data.dataset, "test", limit=count)
    assert record.weights.best is not None, "a suite's record names its weights"
    model = load_classifier((suite / record.weights.best.path).parent).to(default_device())
    outcome = evaluate(
        model,
        to_unit(test.images),
        test.labels,
        config.threat.ball(),
        protocol=protocol,
        seed=config.seed,
        checks=False,
    )
    units = int(outcome.forward_passes.sum() + outcome.backward_passes.sum())
    return {"robust": outcome.robust.tolist(), "units": units}


def calibrate(suites: list[Path], out: Path) -> list[dict[str, Any]]:
    """Judge every cell by both protocols; one entry each, written to `out` as they come."""
    found = json.loads(out.read_text())["cells"] if out.is_file() else {}
    for suite in suites:
        for stored in read_all(suite):
            record = stored.record
            entry = found.setdefault(record.cell, {"model": record.model, "seed": record.seed})
            entry |= {"data": record.data.dataset, "examples": record.data.examples}
            for protocol in PROTOCOLS:
                if protocol not in entry:
                    entry[protocol] = judged(record, suite, protocol)
                    facts = {"versions": versions(), "hardware": hardware(default_device())}
                    write_text(out, json.dumps(facts | {"cells": found}) + "\n")
                    print(f"{record.model} seed {record.seed}: {protocol} done", flush=True)
    return list(found.values())


def summary(entries: list[dict[str, Any]]) -> str:
    """Return the table as Markdown, with the pooled bound in its last line."""
    kept = [entry for entry in entries if _share(entry["standard"]) > LEAST_ROBUST]
    if not kept:
        return "no model of which `standard` leaves more than 30 % robust"
    rows = [_row(entry) for entry in sorted(kept, key=lambda e: (e["data"], e["model"], e["seed"]))]
    survivors = sum(sum(entry["standard"]["robust"]) for entry in kept)
    missed = sum(_differing(entry, "fast", "standard") for entry in kept)
    spent = [sum(entry[protocol]["units"] for entry in kept) for protocol in PROTOCOLS]
    bound = beta.ppf(0.95, missed + 1, survivors - missed)
    return (
        f"{markdown([HEAD, *rows])}\n\nMissed: {missed} beside {survivors:,} survivors, "
        f"{missed / survivors:.2%}; at most {bound:.2%} with 95 % confidence. Units of `fast`: "
        f"{spent[1] / spent[0]:.3f} of those of `standard`."
    )


def _row(entry: dict[str, Any]) -> list[str]:
    return [
        entry["data"],
        entry["model"],
        str(entry["seed"]),
        str(entry["examples"]),
        f"{_share(entry['standard']):.1%}",
        f"{_share(entry['fast']):.1%}",
        str(_differing(entry, "fast", "standard")),
        str(_differing(entry, "standard", "fast")),
        f"{entry['fast']['units'] / entry['standard']['units']:.3f}",
    ]


def _share(verdict: dict[str, Any]) -> float:
    flags: list[bool] = verdict["robust"]
    return sum(flags) / len(flags)


def _differing(entry: dict[str, Any], kept: str, broken: str) -> int:
    """Count the examples that one protocol leaves standing and the other breaks."""
    pairs = zip(entry[kept]["robust"], entry[broken]["robust"], strict=True)
    return sum(stands and not robust for stands, robust in pairs)


def main(suites: tyro.conf.Positional[list[Path]], *, out: Path = Path("calibration.json")) -> None:
    """Compare `fast` with `standard` on the cells of SUITES, folders that `run` has written."""
    print(summary(calibrate(suites, out)))


if __name__ == "__main__":
    tyro.cli(main)
