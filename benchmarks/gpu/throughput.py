"""How fast training, attacks and measures are against what the device allows, in calls of minutes.

Every measurement is written to --out (JSON) as it is made, beside a Markdown page; the next call
skips what is there. A call ends before --minutes have passed. Exit codes: 0 all is measured, 2 bad
input, 3 time is up, call again. The sections, in this order unless --sections says otherwise:

`device` peak of products and bandwidth; `model` operations and bytes of a pass; `training` standard
and PGD training against their floor; `attacks` PGD and APGD against their passes; `ceiling` the
bare model's passes; `geometry` all taps against the forward passes; `race` AutoAttack on --model.
What `torch.compile` must compile comes after everything else but the race.

    python -m robust_nc.benchmarks.gpu.throughput --out speed.json --minutes 9
"""

import json
import sys
import time
from pathlib import Path

import torch
import tyro

from robust_nc.benchmarks.gpu.entries import Entry, Options, Record, plan, quick
from robust_nc.benchmarks.gpu.passes import clock
from robust_nc.benchmarks.gpu.summary import page
from robust_nc.benchmarks.races.timing import conditions, cpu_name
from robust_nc.exceptions import ConfigError, RobustNCError
from robust_nc.io.files import write_text
from robust_nc.runtime import default_device
from robust_nc.runtime.environment import code_digest, hardware, versions

DONE, BAD_INPUT, TIME_UP = 0, 2, 3
_MARGIN = 1.5  # an entry is begun if so many times what the longest of its kind took is left


def opened(out: Path, device: torch.device) -> Record:
    """Read the record of this device, or begin it; `ConfigError` if it is of something else."""
    facts = hardware(device)
    place = {"device": facts.get("gpu", cpu_name()), "torch": torch.__version__}
    place["threads"] = facts["threads"]
    made: Record = {
        "place": place,
        "conditions": f"{conditions()}; seconds of the {_clock()}",
        "hardware": facts | {"processor": cpu_name()},
        "versions": versions(),
        "rows": {},
    }
    if not out.is_file():
        return made
    try:
        held = json.loads(out.read_text())
        same = held["place"] == place
        rows = dict(held["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{out} is no record of this script ({error}); move it away") from error
    if not same:
        raise ConfigError(
            f"{out} was measured on {held['place']}, and this is {place}; give another --out"
        )
    return made | {"rows": rows}


def _clock() -> str:
    return "processor" if clock() is time.process_time else "wall"


def measure(entries: list[Entry], record: Record, out: Path, *, end: float, again: bool) -> bool:
    """Make what is missing until `end` (of `time.monotonic`); return whether all is there."""
    taken: dict[str, float] = {}
    rows = record["rows"]
    for row in rows.values():
        taken[row["kind"]] = max(taken.get(row["kind"], 0.0), row["took"])
    missing = [
        entry
        for entry in entries
        if entry.key not in rows or (again and "error" in rows[entry.key])
    ]
    for number, entry in enumerate(missing):
        needed = taken.get(entry.kind, entry.guess)
        if time.monotonic() + _MARGIN * needed > end:
            return False
        say(f"{number + 1} of {len(missing)}: {entry.key}")
        started = time.monotonic()
        row = _made(entry)
        row |= {"kind": entry.kind, "took": time.monotonic() - started, "code": code_digest()}
        taken[entry.kind] = max(taken.get(entry.kind, 0.0), row["took"])
        rows[entry.key] = row
        write_text(out, json.dumps(record, indent=1) + "\n")
    return True


def _made(entry: Entry) -> Record:
    """Make one measurement; what fails (memory, a compiler) says why."""
    torch.compiler.reset()
    if torch.cuda.is_available():  # for the race, which is in another process
        torch.cuda.empty_cache()
    try:
        return entry.call()
    except (RuntimeError, RobustNCError, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise ConfigError(
                f"the GPU does not answer after {entry.key} ({why}); call again, and leave that out"
            ) from error
    return {"error": why[:300]}


def say(text: str) -> None:
    """Write a line of progress."""
    print(text, file=sys.stderr, flush=True)


def run(options: Options) -> int:
    """Measure what is missing, write record and page, and return the exit code."""
    end = time.monotonic() + 60 * options.minutes
    device = default_device()
    sizes = quick(options) if options.quick else options
    record = opened(options.out, device)
    say(record["conditions"])
    done = measure(plan(sizes, device), record, options.out, end=end, again=options.again)
    text = page(record)
    write_text(options.out.with_suffix(".md"), text)
    print(text)
    if not done:
        say("time is up; the same call goes on")
    return DONE if done else TIME_UP


def main() -> int:
    """Entry point."""
    try:
        return run(tyro.cli(Options))
    except RobustNCError as error:
        say(f"throughput: {error}")
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
