"""Protocol `standard` against pyautoattack and torchattacks: time, passes, verdicts, memory.

Every run is a fresh process; timed rounds take turns. Each contestant evaluates with the first
seed `repeats` times; its verdicts with the other seeds, and the passes of theirs, come from runs
that are not timed. `limit` is what our passes would take with the bare model at its best batch
sizes. Runs are written to `--out` as they end, and a second call with the same `--out` goes on.

    python -m robust_nc.benchmarks.races.autoattack --model resnet18 --examples 200 --threads 1
"""

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from scipy.stats import binomtest

from robust_nc.benchmarks.races.contestants import (
    CONTESTANTS,
    NAMES,
    OURS,
    PASSES,
    Job,
    Setup,
    in_a_child,
    prepare,
)
from robust_nc.benchmarks.races.timing import (
    Timing,
    begun,
    conditions,
    cpu_name,
    markdown,
    ratio,
)
from robust_nc.exceptions import ConfigError
from robust_nc.io.files import write_text
from robust_nc.runtime import default_device
from robust_nc.runtime.environment import code_digest, hardware, versions
from robust_nc.runtime.third_party import version_of

LIMIT = 1.15  # what our time over the limit should stay below
Line = dict[str, Any]


class Disagreements(NamedTuple):
    """On how many examples the first is the weaker one, and on how many the stronger."""

    weaker: int
    stronger: int


class SignTest(NamedTuple):
    """Pooled disagreements with p-values: of "one is weaker", and of "the first is weaker"."""

    weaker: int
    stronger: int
    two_sided: float
    one_sided: float


def plan(contestants: list[str], seeds: tuple[int, ...], repeats: int) -> list[Job]:
    """List the runs: rounds in turn, with the bare model's passes in each, then those not timed."""
    names = [PASSES, *contestants]
    jobs = []
    for repeat in range(repeats):
        first = repeat % len(names)
        jobs += [Job(name, seeds[0], repeat) for name in names[first:] + names[:first]]
    for seed in seeds[1:] or seeds[:1]:
        jobs += [Job(name, seed, None) for name in contestants if seeds[1:] or not _is_ours(name)]
    return jobs


def contest(
    setup: Setup,
    jobs: list[Job],
    out: Path | None,
    *,
    left_out: dict[str, str] | None = None,
    run: Callable[[Setup, Job], Line] = in_a_child,
) -> Line:
    """Do the jobs that `out` does not hold yet, and return the whole record.

    Runs of ours count as done only if our code is still the same. Raises `RecordError` if `out` is
    the record of another race.
    """
    facts = hardware(default_device())
    name = facts.get("gpu", cpu_name())
    others = {name: version_of(name) for name in ("pyautoattack", "torchattacks", "scipy")}
    made: Line = {
        "race": setup._asdict() | {"torch": torch.__version__, "device": name},
        "versions": versions() | others,
        "hardware": facts | {"processor": cpu_name()},
        "conditions": conditions(),
        "runs": [],
    }
    record = begun(out, made, of="race", by="race", holds="runs")
    record["left_out"] = left_out or {}
    for number, job in enumerate(jobs):
        if any(_same(line, job) for line in record["runs"]):
            continue
        print(f"run {number + 1} of {len(jobs)}: {job}", flush=True)
        line = run(setup, job)
        stale = [old for old in record["runs"] if Job(*_key(old)) == job]
        record["runs"] = [old for old in record["runs"] if old not in stale] + [line]
        if out is not None:
            write_text(out, json.dumps(record, indent=1) + "\n")
        if "robust" in line:
            took = f", {line['seconds']:.1f} s" if line["seconds"] is not None else ""
            print(f"  robust accuracy {share(line['robust']):.2%}{took}", flush=True)
    return record


def _key(line: Line) -> tuple[str, int, int | None]:
    return line["contestant"], line["seed"], line["repeat"]


def _same(line: Line, job: Job) -> bool:
    return Job(*_key(line)) == job and (
        not _is_ours(job.contestant) or line["code"] == code_digest()
    )


def _is_ours(contestant: str) -> bool:
    return contestant.partition("-")[0] == OURS


def report(record: Line, seeds: tuple[int, ...]) -> str:
    """Write tables of what a record holds."""
    runs = [line for line in record["runs"] if "robust" in line]
    names = [name for name in CONTESTANTS if any(line["contestant"] == name for line in runs)]
    parts = [_overview(runs, names, seeds[0]), _limit(record["runs"])]
    if OURS in names:
        parts += [_by_seed(runs, other, seeds) for other in names if other != OURS]
    parts += [f"left out: {name}: {reason}" for name, reason in record["left_out"].items()]
    return "\n\n".join(part for part in parts if part)


def _overview(runs: list[Line], names: list[str], seed: int) -> str:
    head = "contestant|seconds, median (quartiles)|rounds|over ours (quartiles)|forward|backward"
    head += "|robust|ours weaker, theirs weaker|peak MiB|outside the ball"
    rows = [head.split("|")]
    timings = {name: _timing(runs, name) for name in names}
    own, mine = timings.get(OURS), _verdict(runs, OURS, seed)
    for name in names:
        timing, counted = timings[name], _counted(runs, name)
        verdict = _verdict(runs, name, seed)
        memory = [line["mebibytes"] for line in runs if line["contestant"] == name]
        outside = max(line["outside"] for line in runs if line["contestant"] == name)
        both = count(mine, verdict) if mine and verdict else None
        rows.append(
            [
                name,
                _spread(timing) if timing else "",
                str(len(timing.seconds)) if timing else "0",
                _over(timing, own),
                *(f"{passes:,}" if passes is not None else "" for passes in counted),
                f"{share(verdict):.2%}" if verdict else "",
                f"{both.weaker}, {both.stronger}" if both and name != OURS else "",
                f"{statistics.median(memory):,.0f}",
                str(outside),
            ]
        )
    return markdown(rows)


def _limit(runs: list[Line]) -> str:
    """Our passes times the bare model's time per pass, round by round, and our time over that."""
    own = {line["repeat"]: line for line in runs if line["contestant"] == OURS}
    limits, seconds = [], []
    for line in runs:
        mine = own.get(line["repeat"])
        if line["contestant"] != PASSES or mine is None:
            continue
        alone = mine["forwards"] - mine["backwards"]
        forward, gradient = min(line["forward"].values()), min(line["gradient"].values())
        limits.append(alone * forward + mine["backwards"] * gradient)
        seconds.append(mine["seconds"])
    if not limits:
        return ""
    limit = Timing("limit", tuple(limits))
    over = ratio(Timing(OURS, tuple(seconds)), limit)
    about = next(iter(own.values()))["about"] or "nothing"
    return (
        f"limit, seconds: {_spread(limit)}; ours over it: {over.median:.3f} "
        f"({over.low:.3f} to {over.high:.3f}), to stay below {LIMIT}; accelerated by: {about}"
    )


def _by_seed(runs: list[Line], other: str, seeds: tuple[int, ...]) -> str:
    """Disagreements with another contestant, seed by seed and pooled."""
    pairs = [(_verdict(runs, OURS, seed), _verdict(runs, other, seed)) for seed in seeds]
    held = [(mine, theirs) for mine, theirs in pairs if mine and theirs]
    if not held:
        return ""
    test = pooled(held)
    lines = [
        f"{OURS} against {other}, {len(held)} seeds of {len(held[0][0])} examples: "
        f"ours weaker on {test.weaker}, theirs on {test.stronger}; exact sign test: "
        f"two-sided p = {test.two_sided:.3g}, ours weaker p = {test.one_sided:.3g}"
    ]
    for name, rows in ((OURS, [mine for mine, _ in held]), (other, [row for _, row in held])):
        accuracies = ", ".join(f"{share(row):.2%}" for row in rows)
        apart = ", ".join(map(str, between(rows))) or "one seed only"
        lines.append(f"  {name}: robust {accuracies}; disagreements between its seeds: {apart}")
    return "\n".join(lines)


def _timing(runs: list[Line], name: str) -> Timing | None:
    timed = [line for line in runs if line["contestant"] == name and line["repeat"] is not None]
    timed.sort(key=lambda line: int(line["repeat"]))
    return Timing(name, tuple(line["seconds"] for line in timed)) if timed else None


def _verdict(runs: list[Line], name: str, seed: int) -> str:
    rows = [line["robust"] for line in runs if (line["contestant"], line["seed"]) == (name, seed)]
    return rows[0] if rows else ""


def _counted(runs: list[Line], name: str) -> tuple[int | None, int | None]:
    """Passes of the first run that knows them."""
    for line in runs:
        if line["contestant"] == name and line["forwards"] is not None:
            return line["forwards"], line["backwards"]
    return None, None


def _spread(timing: Timing) -> str:
    low, middle, high = timing.spread
    digits = 1 if middle >= 10 else 3
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _over(timing: Timing | None, own: Timing | None) -> str:
    if timing is None or own is None:
        return ""
    if len(timing.seconds) != len(own.seconds):
        return f"{timing.spread.median / own.spread.median:.2f}"
    over = ratio(timing, own)
    return f"{over.median:.2f} ({over.low:.2f} to {over.high:.2f})"


def count(first: str, second: str) -> Disagreements:
    """Compare two rows of flags, one per example, 1 where it was found robust.

    >>> count("1101", "1010")
    Disagreements(weaker=2, stronger=1)
    """
    pairs = list(zip(first, second, strict=True))
    return Disagreements(pairs.count(("1", "0")), pairs.count(("0", "1")))


def pooled(pairs: Iterable[tuple[str, str]]) -> SignTest:
    """Test whether one is weaker: exact sign test of all disagreements; without any, p is 1.

    >>> round(pooled([("1111", "1100")] * 3).one_sided, 4)
    0.0156
    """
    counts = [count(first, second) for first, second in pairs]
    weaker, stronger = sum(c.weaker for c in counts), sum(c.stronger for c in counts)
    total = weaker + stronger
    if not total:
        return SignTest(0, 0, 1.0, 1.0)
    two_sided = float(binomtest(weaker, total).pvalue)
    return SignTest(
        weaker, stronger, two_sided, float(binomtest(weaker, total, alternative="greater").pvalue)
    )


def between(rows: Sequence[str]) -> list[int]:
    """Disagreements of each pair of verdicts of one contestant, in both directions together."""
    return [sum(count(first, second)) for first, second in itertools.combinations(rows, 2)]


def share(row: str) -> float:
    """Share of robust examples."""
    return row.count("1") / len(row)


def able(contestants: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Return those that can race here, and why the others cannot."""
    names, left_out = [], {}
    for name in contestants:
        try:
            prepare(name)
            names.append(name)
        except ConfigError as error:
            left_out[name] = str(error)
    return names, left_out


def main(
    model: str = "resnet18",
    path: Path | None = None,
    data: Path | None = None,
    examples: int = 200,
    repeats: int = 3,
    seeds: tuple[int, ...] = (0,),
    contestants: tuple[str, ...] = tuple(CONTESTANTS),
    batch_size: int | None = None,
    batch_size_theirs: int = 250,
    threads: int | None = None,
    out: Path | None = None,
) -> None:
    """Race, and print the tables.

    Args:
        model: One of resnet18, checkpoint, a-adv, digits.
        path: The checkpoint's folder, or the weights of a-adv.
        data: Images of a-adv as .npz.
        examples: The first so many of the test set.
        repeats: Timed rounds, with the first seed.
        seeds: Each is a verdict of every contestant.
        contestants: Who races: ours, ours-float32, pyautoattack, pyautoattack-bf16, torchattacks,
            torchattacks-100.
        batch_size: Ours (default: measured).
        batch_size_theirs: Theirs; 250 is pyautoattack's default.
        threads: Threads of torch (default: as it decides).
        out: Where runs are written as they end, as JSON.
    """
    unknown = sorted(set(contestants) - set(CONTESTANTS))
    if model not in NAMES or unknown or not seeds or repeats < 1:
        raise SystemExit(
            f"--model is one of {', '.join(NAMES)}, --contestants are of "
            f"{', '.join(CONTESTANTS)}, with at least one seed and one repeat"
        )
    if threads:
        torch.set_num_threads(threads)
    setup = Setup(
        model,
        examples,
        path=str(path) if path else None,
        data=str(data) if data else None,
        threads=threads,
        batch_size=batch_size,
        batch_size_theirs=batch_size_theirs,
    )
    subject = setup.subject()
    print(conditions())
    print(f"{model} ({subject.about}), {subject.ball}, {examples} examples", flush=True)
    names, left_out = able(contestants)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", flush=True)
    record = contest(setup, plan(names, seeds, repeats), out, left_out=left_out)
    print("\n" + report(record, seeds))


if __name__ == "__main__":
    tyro.cli(main)
