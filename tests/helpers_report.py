"""Synthetic records and rows for tests of reports: schema-valid, written by the code of `record`.

The numbers follow simple formulas, so that a test can say by hand what a table must show.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robust_nc.config import RunConfig, cell_id, plain, read
from robust_nc.io.files import digest, sha256_of
from robust_nc.plugins import find_protocol
from robust_nc.record import (
    AttackUse,
    Facts,
    File,
    Passes,
    Record,
    Score,
    Stored,
    Verdict,
    Weights,
    pack_flags,
    read_record,
    tidy,
    write_record,
    write_rows,
)
from robust_nc.record.folder import record_path, rows_path
from robust_nc.record.protocol import parameters_of
from robust_nc.record.schema import sealed
from robust_nc.record.signing import sign, signer_name
from robust_nc.record.standing import (
    Receipt,
    challenge_path,
    challenges_of,
    receipt_path,
    signers_path,
)
from robust_nc.statistics.intervals import wilson

TAPS = ("stem", "stage1", "stage2", "penultimate")
EXAMPLES = 200
CLASSES = 4
OBJECTIVES = ("standard", "pgd", "trades")
HEADS = ("linear", "etf")
Flags = npt.NDArray[np.bool_]
Rows = Iterator[dict[str, Any]]


def config(
    *, objective: str = "pgd", head: str = "etf", seed: int = 0, dataset: str = "digits"
) -> RunConfig:
    return read(
        RunConfig,
        {
            "data": {"dataset": dataset},
            "model": {"head": head},
            "train": {"objective": objective},
            "threat": {"norm": "Linf", "eps": 0.15},
            "seed": seed,
        },
    )


def summary(objective: str, seed: int) -> dict[str, float | None]:
    robust = objective != "standard"
    return {
        "nc1_clean": 0.1 + 0.01 * seed,
        "nc1_attacked": (0.5 if robust else 8.0) + 0.1 * seed,
        "nc1_landed": 0.2,
        "nc1_landed_null": 0.9,
        "nc1_leap_null": 5.0,
        "nc2_angle_clean": 0.05,
        "leap_rate": (0.2 if robust else 0.9) + 0.01 * seed,
        "landed": None if robust and seed == 1 else 0.75,
        "landing_fraction": 0.4,
    }


def flags(count: int, n: int = 1000, start: int = 0) -> Flags:
    """`count` of `n` examples, from `start` on."""
    return (np.arange(n) >= start) & (np.arange(n) < start + count)


def score(given: Flags) -> Score:
    found = wilson(int(given.sum()), len(given))
    return Score(value=found.value, low=found.low, high=found.high, n=found.n)


def verdict(clean: Flags, robust: Flags) -> Verdict:
    codes = tuple(np.where(robust, -1, np.where(clean, 0, -2)).tolist())
    return Verdict(clean_correct=pack_flags(clean), robust=pack_flags(robust), broken_by=codes)


def uses(protocol: str, broke: int) -> tuple[AttackUse, ...]:
    """The attacks of a protocol, of which the first broke all."""
    attacks = find_protocol(protocol).attacks
    counts = [broke, *[0] * len(attacks)]
    return tuple(
        AttackUse(name=name, parameters=parameters_of(attack), broke=count)
        for (name, attack), count in zip(attacks, counts, strict=False)
    )


def record_of(
    setting: RunConfig,
    *,
    correct: int | None = None,
    robust: Flags | None = None,
    clean: Flags | None = None,
    state: str | None = None,
    fingerprint: str = "f" * 64,
    protocol: str = "pgd",
    **changes: Any,
) -> Record:
    """Make a record; `correct` of the `EXAMPLES` examples are robust, 180 are right when clean.

    With `robust` flags of any examples, all are right when clean unless `clean` says otherwise.
    """
    objective, head = setting.train.objective.name, setting.model.head.name
    if correct is None:
        correct = {"standard": 4, "pgd": 120, "trades": 130}[objective] + 2 * setting.seed
        correct += 4 * (head == "etf")
    if clean is None:
        clean = flags(180, EXAMPLES) if robust is None else np.ones(len(robust), dtype=bool)
    robust = flags(correct, EXAMPLES) if robust is None else robust
    n = len(robust)
    made = Record(
        cell=cell_id(setting),
        suite="synthetic",
        model=f"small_cnn-{head}-{objective}",
        objective=objective,
        head=head,
        config=plain(setting),
        seed=setting.seed,
        data=Facts(
            dataset=setting.data.dataset.name,
            split="test",
            examples=n,
            which=f"the first {n} of test in the official order",
            fingerprint=fingerprint,
            num_classes=CLASSES,
        ),
        weights=Weights(
            parameters=12_345,
            best=File(path="checkpoints/x/best.safetensors", sha256="0" * 64),
            last=File(path="checkpoints/x/last.safetensors", sha256="1" * 64),
            state=state,
        ),
        protocol=protocol,
        attacks=uses(protocol, int((clean & ~robust).sum())),
        passes=Passes(forward=20 * n, backward=10 * n),
        verdict=verdict(clean, robust),
        scores={
            "clean": score(clean),
            "robust": score(robust),
            "clean_train": score(flags(199, EXAMPLES)),
        },
        summary=summary(objective, setting.seed),
        rows=File(path="none.parquet", sha256="0" * 64),
        seconds={"train": 1.5},
        versions={"robust_nc": "0.1.0", "torch": "2.13.0"},
        hardware={"device": "cpu", "threads": 1},
        created="2026-01-01T00:00:00+00:00",
    )
    return dataclasses.replace(made, **changes)


def record(robust: Flags | None = None, **options: Any) -> Record:
    """Make a record as `record_of` does, with the options of `config` among its own."""
    names = ("objective", "head", "seed", "dataset")
    setting = config(**{name: options.pop(name) for name in names if name in options})
    return record_of(setting, robust=robust, **options)


def stored(robust: Flags | None = None, **options: Any) -> Stored:
    """Make a record that lies nowhere."""
    made = record(robust, **options)
    return Stored(made, Path(f"{digest([made.model, made.cell, repr(options)])[:16]}.json"))


def put(path: Path, made: Record) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, made)
    return path


def written(folder: Path, robust: Flags, **options: Any) -> Stored:
    """Write a record as `<folder>/<cell>.json` and read it back."""
    made = record(robust, **options)
    return read_record(put(folder / f"{made.cell}.json", made))


def resealed(stored: Stored, **changes: Any) -> Stored:
    """Write a record with other fields, sealed."""
    write_record(stored.path, sealed(dataclasses.replace(stored.record, **changes)))
    return read_record(stored.path)


def challenged(path: Path, *, rows: Sequence[int], content: bytes = b"a") -> Path:
    """Write a challenge that broke these rows of the record at a path, and some evidence."""
    cell, evidence = json.loads(path.read_text())["cell"], sha256(content).hexdigest()
    values = {"cell": cell, "evidence": evidence, "broken": list(rows), "created": "2026"}
    challenge = challenge_path(path, evidence)
    challenge.with_suffix(".npz").write_bytes(content)
    challenge.write_text(json.dumps(values))
    return challenge


def signed(stored: Stored, key: Path, *, trusted: bool = True, **changes: Any) -> Stored:
    """Leave a receipt that calls a record reproduced and holds its challenges for true."""
    named = stored.record.evidence
    receipt = Receipt(
        record=sha256_of(stored.path),
        evidence=None if named is None else named.sha256,
        state="reproduced",
        signer=signer_name(key),
        bound=0.004,
        challenges=tuple(sha256_of(path) for path in challenges_of(stored.path)),
        created="2026-01-01",
    )
    text = json.dumps(plain(dataclasses.replace(receipt, **changes)))
    receipt_path(stored.path).write_text(sign(text, key))
    trust(stored, key if trusted else None)
    return stored


def trust(stored: Stored, key: Path | None) -> None:
    """Let the receipts of a key count for a record, or those of none."""
    words = [] if key is None else key.with_name(f"{key.name}.pub").read_text().split()
    signers_path(stored.path).write_text(" ".join([*words[2:], *words[:2], "\n"]))


def row(shared: dict[str, Any], measure: str, value: float, **more: Any) -> dict[str, Any]:
    known = {"grouping": "none", "vertices": "clean-train", **shared, **more}
    return {**known, "measure": measure, "value": value}


def place_of(
    condition: str, depth: int = len(TAPS) - 1, *, split: str = "train", eps: float = 0.15
) -> dict[str, Any]:
    """What the rows of a condition share at a tap, by default the deepest."""
    shared = {"feature": "gap", "condition": condition, "eps": eps, "split": split, "n": EXAMPLES}
    return {**shared, "tap": TAPS[depth], "depth": depth}


def at_taps(condition: str, **at: Any) -> list[dict[str, Any]]:
    return [place_of(condition, depth, **at) for depth in range(len(TAPS))]


def strength_of(objective: str, head: str) -> float:
    """How much an attack moves the features of a model."""
    return {"standard": 1.0, "pgd": 0.35, "trades": 0.3}[objective] * (0.8 if head == "etf" else 1)


def scalar_rows(strength: float, seed: int) -> Rows:
    """Make collapse and leap measures per tap; they grow or shrink geometrically with depth."""
    pushes = {"clean": 0.0, "attacked": 1.0, "gaussian": 0.1, "sign": 0.15}
    for depth, (condition, push) in itertools.product(range(len(TAPS)), pushes.items()):
        place = place_of(condition, depth, eps=0.0 if condition == "clean" else 0.15)
        place["attack"] = "ce+margin, 20 steps, 1 restart" if condition == "attacked" else ""
        nc1 = 3.0 * 0.25**depth * (1 + 0.05 * seed) + push * strength * 0.6 * (depth + 1)
        if condition != "clean":
            rate = min(1.0, push * strength * (0.1 + 0.3 * depth) + 0.01 * seed)
            yield row(place, "leap_rate", rate)
            yield row(place, "landing_fraction", push * strength * 0.8)
            yield row(place, "landed", 0.5 * push)
            yield row(place, "nc1_leap_null", nc1 * 0.7, grouping="true")
            yield row(place, "nc1", nc1 * 0.3, grouping="landed", vertices="same")
            yield row(place, "nc1_landed_null", nc1 * 1.5, grouping="landed")
        grouped = {**place, "grouping": "true", "vertices": "same"}
        yield row(grouped, "nc1", nc1)
        yield row(grouped, "nc2_angle", 0.3 * 0.5**depth + 0.2 * push * strength)


def count_rows(strength: float, seed: int) -> Rows:
    """Make the leap matrix, the landing histogram and the leap layers."""
    draw = np.random.default_rng(seed)
    centres = np.linspace(-0.5, 1.5, 41)[:-1] + 0.025
    for condition, push in (("attacked", 1.0), ("gaussian", 0.1)):
        deep = place_of(condition)
        counts = draw.integers(0, 10, (CLASSES, CLASSES)) + np.diag([30] * CLASSES)
        for i, j in itertools.product(range(CLASSES), repeat=2):
            yield row(deep, "leap_matrix", float(counts[i, j]), i=i, j=j)
        for i, centre in enumerate(centres):
            count = 40 * np.exp(-((centre - 0.9 * push * strength) ** 2) / 0.03)
            yield row(deep, "landing_histogram", float(round(count)), i=i)
        here = [int(20 * push * strength * (depth + 1)) for depth in range(len(TAPS))]
        for place, count in zip(at_taps(condition), here, strict=True):
            yield row(place, "leap_layer", float(count))
        yield row(deep, "leap_layer", float(EXAMPLES - sum(here)), tap="none", depth=-1)


def curve_rows(strength: float, seed: int) -> Rows:
    """Make the curves of training and the accuracy against eps."""
    output = {"tap": "output", "depth": len(TAPS), "n": EXAMPLES}
    test = {**output, "condition": "attacked", "split": "test"}
    for eps in (0.0, 0.05, 0.1, 0.15, 0.2):
        accuracy = max(0.0, 0.95 - 5 * strength * eps - 0.01 * seed)
        yield row(test, "accuracy", accuracy, eps=eps)
    # The accuracy on the images of the geometry, at a radius that the sweep has too.
    yield row(test, "accuracy", 0.01, eps=0.15, feature="gap")
    for epoch in range(8):
        train = {
            **place_of("clean"),
            "epoch": epoch,
            "feature": "",
            "grouping": "true",
            "vertices": "same",
        }
        del train["eps"]
        value = 2.0 * 0.6 ** (epoch * (0.5 + strength)) * (1 + 0.1 * seed)
        yield row(train, "nc1_trace", value)
        yield row(train, "nc2_angle", 0.4 * 0.8**epoch)
        for split, condition in itertools.product(("train", "validation"), ("clean", "attacked")):
            at = {"condition": condition, "split": split, "epoch": epoch}
            yield row(output, "accuracy", 0.5 + 0.05 * epoch, **at)


def geometry_rows(strength: float, seed: int) -> Rows:
    """Make the rows of the geometry in full, and flattened features beside the averaged ones."""
    for found in (*scalar_rows(strength, seed), *count_rows(strength, seed)):
        yield {**found, "feature": "flatten", "value": 0.5 * found["value"]}
    for place in at_taps("attacked")[:-1]:  # `count_rows` has the leap matrix of the deepest
        stay = 30 - int(8 * strength * place["depth"])
        for i, j in itertools.product(range(CLASSES), repeat=2):
            count = float(stay if i == j else 1 + (i + 2 * j + seed) % 5)
            yield row(place, "leap_matrix", count, i=i, j=j)
    yield from target_rows(strength, seed)
    yield from classifier_rows(strength, seed)
    yield from alignment_rows(strength, seed)
    yield from sweep_rows(strength, seed)
    yield from trajectory_rows(strength, seed)


def target_rows(strength: float, seed: int) -> Rows:
    """Make leaps under targeted attacks, on both splits."""
    pushes = {"cyclic": 0.7, "random": 0.75, "nearest": 0.95, "farthest": 0.4}
    for (condition, push), split in itertools.product(pushes.items(), ("train", "test")):
        for place in at_taps(condition, split=split):
            rate = push * strength * (0.5 + 0.15 * place["depth"]) + 0.01 * seed
            yield row(place, "leap_rate", rate)
            yield row(place, "landed", 0.6 * push)
            yield row(place, "nc1", 100.0, grouping="true", vertices="same")


def classifier_rows(strength: float, seed: int) -> Rows:
    """Make accuracies of the nearest-vertex classifier and of the network, on test."""
    for protocol, less in (("standard", 0.05), ("pgd", 0.0)):
        for place in at_taps("attacked", split="test"):
            shared = {**place, "attack": protocol, "grouping": "true"}
            clean = 0.4 + 0.15 * place["depth"] - 0.01 * seed
            yield row(shared, "ncc_clean", clean)
            yield row(shared, "ncc_transferred", clean * (1 - 0.5 * strength) - less)
            yield row(shared, "ncc_adaptive", clean * (1 - 0.9 * strength))
        output = {"tap": "output", "depth": len(TAPS), "condition": "attacked", "eps": 0.15}
        place = {**output, "split": "test", "attack": protocol, "n": EXAMPLES}
        yield row(place, "robust_accuracy", 0.7 * (1 - strength) + 0.05 - less)


def alignment_rows(strength: float, seed: int) -> Rows:
    """Make angles per class, and their mean, under attack and noise."""
    for condition, push in (("attacked", 60.0), ("gaussian", 6.0)):
        for place in at_taps(condition):
            base = push * strength * (0.2 + 0.25 * place["depth"])
            angles = [base * (0.7 + 0.2 * i) + seed for i in range(CLASSES)]
            yield row(place, "alignment_angle", sum(angles) / CLASSES, grouping="true")
            for i, angle in enumerate(angles):
                yield row(place, "alignment_angle_class", angle, grouping="true", i=i)


def sweep_rows(strength: float, seed: int) -> Rows:
    """Make leaps and collapse on test against eps, and where the leap rate crosses 0.1."""
    for eps in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3):
        for place in at_taps("sweep", split="test", eps=eps):
            rate = min(1.0, strength * 4 * eps * (0.7 + 0.1 * place["depth"]) + 0.005 * seed)
            yield row(place, "leap_rate", rate)
            yield row(place, "nc1_trace", 0.2 + 8 * rate, grouping="true", vertices="same")
            yield row(place, "nc1_trace", 0.18 + 0.5 * rate, grouping="landed", vertices="same")
        yield row(place, "accuracy", 0.9 - rate, tap="output", depth=len(TAPS))
    for place in at_taps("sweep", split="test", eps=0.3):
        crossed = (0.1 - 0.005 * seed) / (strength * 4 * (0.7 + 0.1 * place["depth"]))
        for end, factor in (("", 1.0), ("_low", 0.8), ("_high", 1.25)):
            yield row(place, f"collapse_radius{end}", factor * crossed)


def trajectory_rows(strength: float, seed: int) -> Rows:
    """Make the paths of leaps: on the edge at all taps, in the plane of the deepest."""
    steps = range(21)
    for place, step in itertools.product(at_taps("attacked"), steps):
        far = strength * (0.4 + 0.2 * place["depth"]) * step / 20
        for end, factor in (("", 1.0), ("_low", 0.6), ("_high", 1.3)):
            yield row(place, f"trajectory_t{end}", factor * far, i=step)
    turns = 2 * np.pi * np.arange(CLASSES) / CLASSES
    vertices = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    for axis, values in zip("xy", vertices.T.tolist(), strict=True):
        for i, value in enumerate(values):
            yield row(place, f"vertex_{axis}", value, i=i)
    for j, step in itertools.product(range(3, 36, 3), steps):  # who does not move is not followed
        here, there = vertices[j % CLASSES], vertices[(j + 1 + j % 2) % CLASSES]
        point = here + strength * step / 20 * (there - here) + 0.01 * (j + seed)
        for axis, value in zip("xy", point.tolist(), strict=True):
            yield row(place, f"trajectory_{axis}", value, n=1, i=step, j=j)


def rows_of(
    objective: str, head: str, seed: int, *, geometry: bool = False
) -> list[dict[str, Any]]:
    """Make the rows of a cell; `geometry` adds those of the geometry in full."""
    strength = strength_of(objective, head)
    parts = (scalar_rows, count_rows, curve_rows, *([geometry_rows] if geometry else []))
    return [found for part in parts for found in part(strength, seed)]


def frame_of(
    objectives: tuple[str, ...] = OBJECTIVES,
    *,
    heads: tuple[str, ...] = HEADS,
    seeds: int = 2,
    geometry: bool = False,
) -> pd.DataFrame:
    """Make the frame that `gather_rows` makes, without files."""
    parts = []
    for objective, head, seed in itertools.product(objectives, heads, range(seeds)):
        facts = {"model": f"{head}-{objective}", "head": head, "objective": objective}
        rows = tidy(rows_of(objective, head, seed, geometry=geometry))
        parts.append(rows.assign(**facts, seed=seed, ball="Linf 0.15"))
    return pd.concat(parts, ignore_index=True)


def write_cell(out: Path, setting: RunConfig, **options: Any) -> Stored:
    """Write one synthetic cell, rows and record, and read it back."""
    made = record_of(setting, **options)
    frame = tidy(rows_of(made.objective, made.head, setting.seed))
    rows = write_rows(rows_path(out, made.model, made.cell), frame)
    path = record_path(out, made.model, made.cell)
    write_record(path, dataclasses.replace(made, rows=rows))
    return read_record(path)


def write_grid(
    out: Path,
    *,
    objectives: tuple[str, ...] = OBJECTIVES,
    heads: tuple[str, ...] = HEADS,
    seeds: int = 3,
) -> list[Stored]:
    """Write objectives x heads x seeds."""
    return [
        write_cell(out, config(objective=objective, head=head, seed=seed))
        for objective, head, seed in itertools.product(objectives, heads, range(seeds))
    ]


PLACE = {"tap": "penultimate", "depth": 3, "feature": "gap", "split": "train", "n": 100}
OUTPUT = {"tap": "output", "depth": -1, "split": "test", "n": 100}
VERDICT = OUTPUT | {"measure": "verdict", "note": "best"}
HIT = {"condition": "attacked", "eps": 0.1}
LEAP = {"tap": "penultimate", "feature": "gap", "n": 60, "grouping": "none"} | HIT
LAYER = {"feature": "gap", "split": "train", "condition": "clean", "grouping": "true", "n": 50}
NC1 = LAYER | {"vertices": "same", "measure": "nc1_trace"}
NFM = {"split": "test", "condition": "clean", "n": 20}


def curve(name: str, values: list[float], **at: Any) -> list[dict[str, Any]]:
    place = {"condition": "clean", "split": "train", "measure": name, "n": 30} | at
    return [place | {"epoch": epoch, "value": value} for epoch, value in enumerate(values, 1)]


def quantity_rows(**changes: Any) -> list[dict[str, Any]]:
    """Rows that the quantities of claims are read from, by hand; `changes` by name."""
    told = {"clean": 0.01, "landed_nc1": 1.0, "null": 10.0, "landed": 0.2, "train": 1.0}
    told |= {"warned": "", "doubted": ""}
    told |= {"block1": 0.6, "block2": 0.6, "block2_flatten": 0.6, "late": 0.5, "network": 0.5}
    told |= changes
    true = PLACE | {"condition": "clean", "grouping": "true", "vertices": "same", "measure": "nc1"}
    hit = PLACE | {"condition": "attacked", "attack": "pgd 20", "eps": 0.1}
    there = hit | {"grouping": "landed"}
    leap = hit | {"grouping": "none", "vertices": "clean-train"}
    test = hit | {"split": "test", "attack": "pgd", "n": 50, "grouping": "true"}
    vertex = test | {"measure": "ncc_adaptive", "note": told["warned"]}
    output = {"tap": "output", "depth": -1}
    return [
        true | {"value": told["clean"]},
        true | {"value": 99.0, "epoch": 4},
        true | {"value": 98.0, "split": "test", "n": 60},
        true | {"value": 97.0, "tap": "block2"},
        true | {"value": 96.0, "feature": "flatten"},
        true | {"value": 50.0, "condition": "attacked"},
        there | {"measure": "nc1", "vertices": "same", "value": told["landed_nc1"]},
        there | {"measure": "nc1_landed_null", "vertices": "clean-train", "value": told["null"]},
        leap | {"measure": "landed", "value": told["landed"], "note": "no leaps"},
        leap | {"measure": "landed", "value": 0.7, "condition": "gaussian"},
        leap | {"measure": "landed", "value": 0.3, "i": 2},
        PLACE | output | {"condition": "clean", "measure": "accuracy", "value": told["train"]},
        vertex | {"tap": "block1", "value": told["block1"]},
        vertex | {"tap": "block2", "value": told["block2"]},
        vertex | {"tap": "block2", "value": told["block2_flatten"], "feature": "flatten"},
        vertex | {"value": told["late"]},
        vertex | {"measure": "robust_accuracy_at_both", "value": 0.45},
        test
        | output
        | {"measure": "robust_accuracy", "value": told["network"], "note": told["doubted"]},
        test | output | {"measure": "robust_accuracy", "value": 0.9, "attack": "x", "n": 70},
        VERDICT | {"condition": "clean", "value": 0.9},
        VERDICT | {"condition": "clean", "value": 0.8, "note": "last"},
        VERDICT | HIT | {"attack": "standard", "value": 0.5},
        VERDICT | HIT | {"attack": "standard", "value": 0.4, "note": "last"},
        VERDICT | HIT | {"attack": "pgd_ce", "value": 0.58},
        OUTPUT | {"condition": "clean", "measure": "accuracy", "value": 0.91},
        OUTPUT | {"condition": "clean", "measure": "mistake_severity", "value": 1.5, "n": 9},
        OUTPUT | {"condition": "severest", "measure": "mistake_severity", "value": 2.5},
        OUTPUT | {"condition": "clean", "measure": "hd_1", "value": 0.2},
        OUTPUT | {"condition": "clean", "measure": "hd_5", "value": 1.2},
        LEAP | {"split": "test", "measure": "severity", "value": 1.8},
        LEAP | {"split": "train", "measure": "severity", "value": 9.0},
        LEAP | {"split": "train", "measure": "leap_rate_wrong", "value": 0.7, "n": 10},
        LEAP | {"split": "train", "measure": "leap_rate_memorised", "value": 0.5, "n": 4},
        LEAP | {"split": "train", "measure": "leap_rate_right", "value": 0.4, "n": 50},
        NC1 | {"tap": "layer1", "value": 10.0},
        NC1 | {"tap": "layer4", "value": 0.1},
        NC1 | {"tap": "penultimate", "value": 1.0},
        NFM | {"tap": "block1", "measure": "nfm_agop_root", "value": 0.4},
        NFM | {"tap": "block2", "measure": "nfm_agop_root", "value": 0.8},
        NFM | {"tap": "block3", "measure": "nfm_agop_root", "value": float("nan")},
        NFM | {"tap": "head", "measure": "nfm_agop_root", "value": 1.0},
        NFM | {"tap": "block1", "measure": "nfm_agop_root_centred", "value": 0.1},
        NFM | {"tap": "block1", "measure": "nfm_agop", "value": 0.9},
        *curve("accuracy", [0.5, 0.93, 0.9, 0.96], split="validation", tap="output"),
        *curve("accuracy", [0.99] * 4, tap="output"),
        *curve("memorised_way", [0.1, 0.3, 0.2, 0.6]),
        *curve("dilation", [1.0, 3.0, 2.0, 10.0], split="test"),
        *curve("memorised", [0.0, 0.2, 0.4, 0.9]),
    ]
