"""Checks of a tree of committed results; each returns what is wrong, in sentences."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from robust_nc.config import RunConfig, read
from robust_nc.exceptions import RobustNCError
from robust_nc.io.files import digest, sha256_of
from robust_nc.pipeline.finished_model import SUITE as EVALUATED
from robust_nc.pipeline.finished_model import AppraisalConfig
from robust_nc.record import COLUMNS, Stored, read_record, unpack_flags
from robust_nc.record.schema import broken_seals
from robust_nc.record.standing import standing
from robust_nc.statistics.intervals import wilson

TREE = 22 * 2**20  # bytes of all tracked files; 6 MiB of them for evidence on CIFAR-10
RECORD, ROWS = 2 * 2**20, 2**20
EVIDENCE, EVIDENCE_EXAMPLES = 2_000_000, 1_000
# Small weights of ours lie here, so that anyone can check what was said of them.
WEIGHTS, HUB = (EVALUATED, "checkpoints"), {"config.json", "model.safetensors"}
NAME = re.compile(
    r"(?P<cell>[0-9a-f]{16})\."
    r"(json|parquet|evidence|receipt|[0-9a-f]{16}\.(challenge|evidence|npz))"
)


def wrong_record(stored: Stored, results: Path) -> list[str]:
    """What a record says wrong of itself: its place, its name, its scores, its seals."""
    record, found = stored.record, []
    if stored.path != results / record.suite / record.model / f"{record.cell}.json":
        found.append("lies in another place than its suite, model and cell")
    try:  # still a configuration of today
        read(AppraisalConfig if record.suite == EVALUATED else RunConfig, record.config)
    except RobustNCError as error:
        found.append(str(error))
    if digest(record.config)[:16] != record.cell:
        found.append("its cell is not the digest of its configuration")
    if record.seals or record.suite == EVALUATED:
        values = json.loads(stored.path.read_text())
        found += [f"{name} is not as it was sealed" for name in broken_seals(values)]
    if record.suite == EVALUATED and record.evidence is None:
        found.append("is submitted without evidence")
    if list(stored.rows().columns) != list(COLUMNS):
        found.append("its rows have other columns")
    return found + _wrong_scores(stored)


def _wrong_scores(stored: Stored) -> list[str]:
    record, found = stored.record, []
    flags = {"clean": record.verdict.clean_correct, "robust": record.verdict.robust}
    for name, packed in flags.items():
        bits, score = unpack_flags(packed), record.scores[name]
        right = wilson(int(bits.sum()), len(bits))
        if not len(bits) == record.data.examples == score.n:
            found.append(f"its {name} accuracy is over another number of examples")
        if not np.allclose([score.value, score.low, score.high], right[:3]):
            found.append(f"its {name} accuracy is not that of its verdict")
    codes = np.array(record.verdict.broken_by)
    if not np.array_equal(codes == -1, unpack_flags(flags["robust"])):
        found.append("broken_by and robust disagree")
    if not np.array_equal(codes != -2, unpack_flags(flags["clean"])):
        found.append("broken_by and clean_correct disagree")
    for index, attack in enumerate(record.attacks):
        if attack.broke != (codes == index).sum():
            found.append(f"attack {attack.name} broke another number")
    return found


def wrong_evidence(stored: Stored, results: Path) -> list[str]:
    """What is wrong with the evidence that is committed with a record."""
    named = stored.record.evidence
    path = stored.path.with_suffix(".evidence")
    if named is None:
        return ["has evidence that it does not name"] if path.is_file() else []
    found = [] if named.name == path.name else [f"names its evidence {named.name[:80]!r}"]
    examples = named.rows or stored.record.data.examples
    if examples > stored.record.data.examples or (named.rows is None) != (named.full is None):
        found.append("its evidence says wrongly how it was cut")
    if not path.is_file():
        submitted = stored.record.suite == EVALUATED
        return [*found, "its evidence is not committed"] if submitted else found
    if sha256_of(path) != named.sha256:
        found.append("its evidence is not the file that it names")
    if path.stat().st_size > EVIDENCE or examples > EVIDENCE_EXAMPLES:
        found.append(f"its evidence is of more than {EVIDENCE_EXAMPLES} examples or {EVIDENCE} B")
    return found


def wrong_standing(stored: Stored, results: Path) -> list[str]:
    """What is wrong with the receipt and the challenges of a record."""
    found = []
    try:
        standing(stored)
    except RobustNCError as error:
        found.append(str(error))
    for path in sorted(stored.path.parent.glob(f"{stored.path.stem}.*.challenge")):
        digests = {sha256_of(file) for file in path.parent.glob(f"{path.stem}.*") if file != path}
        if json.loads(path.read_text())["evidence"] not in digests:
            found.append(f"{path.name} has no evidence beside it")
    return found


def twins(records: list[Stored]) -> list[str]:
    """Cells that lie there twice, and one network judged twice in the same way."""
    seen: dict[Any, Path] = {}
    found = []
    for stored in records:
        record = stored.record
        keys: list[Any] = [record.cell]
        if record.suite == EVALUATED and record.weights.state:
            ball = json.dumps(record.config["threat"], sort_keys=True)
            keys.append((record.weights.state, record.data.fingerprint, ball, record.protocol))
        for key in keys:
            if key in seen:
                found.append(f"{stored.path} is {seen[key]} again")
            seen[key] = stored.path
    return found


def strangers(results: Path, records: list[Stored]) -> list[str]:
    """Files below suite/model/ that no record has, and files that are too large."""
    cells = {(stored.path.parent, stored.record.cell) for stored in records}
    weights = {str(_reference(stored)) for stored in records}
    found = []
    for path in results.rglob("*"):
        place = path.relative_to(results).parts
        if path.is_symlink():
            found.append(f"{path} is a link")
        if not path.is_file() or place in {("README.md",)} or place[:2] == ("claims", "answers"):
            continue
        if place[0] == ".index":  # of `board --sql`, which git ignores
            continue
        name = NAME.fullmatch(path.name)
        known = len(place) == 3 and name and (path.parent, name["cell"]) in cells
        if place[:2] == WEIGHTS and len(place) == 4 and path.name in HUB:
            known = f"{results.name}/{'/'.join(place[:-1])}" in weights
        if not known:
            found.append(f"{path} belongs to no record")
        limit = {".json": RECORD, ".parquet": ROWS, ".evidence": EVIDENCE, ".npz": EVIDENCE}.get(
            path.suffix, ROWS
        )
        if path.stat().st_size > limit:
            found.append(f"{path} is larger than {limit} bytes")
    return found


def _reference(stored: Stored) -> Any:
    model = stored.record.config.get("model")
    return model.get("reference") if isinstance(model, dict) else None


def base_of(root: Path) -> str | None:
    """The main branch as the remote has it, else the local one, else None."""
    for ref in ("refs/remotes/origin/main", "refs/heads/main"):
        if _git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}") is not None:
            return ref
    return None


def moved_scores(root: Path, base: str, results: str = "results") -> list[str]:
    """Records whose scores are other than those of the same cell in the version `base`."""
    listed = _git(root, "diff", "--no-renames", "--name-only", "-z", base, "--", results) or ""
    before = _git(root, "ls-tree", "-r", "--name-only", "-z", base, "--", results) or ""
    old = {Path(name).name: name for name in before.split("\0") if name.endswith(".json")}
    changed = {Path(name) for name in listed.split("\0") if NAME.fullmatch(Path(name).name)}
    found = []
    for path in sorted(path for path in changed if path.suffix == ".json" and path.name in old):
        here = list((root / results).rglob(path.name))
        text = _git(root, "show", f"{base}:{old[path.name]}")
        scores = {name: one["value"] for name, one in json.loads(text or "{}")["scores"].items()}
        for place in here:
            now = {name: one.value for name, one in read_record(place).record.scores.items()}
            for name in sorted({"clean", "robust"} & (scores.keys() | now.keys())):
                if scores.get(name) != now.get(name):
                    moved = f"from {scores.get(name)} to {now.get(name)}"
                    found.append(f"{place}: the {name} accuracy of this cell moved {moved}")
    return found


def tracked_bytes(root: Path) -> int:
    """Bytes of all tracked files, as they are in the working tree."""
    names = (_git(root, "ls-files", "-z") or "").split("\0")
    return sum((root / name).stat().st_size for name in names if name and (root / name).is_file())


def _git(root: Path, *words: str) -> str | None:
    ran = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    return ran.stdout if ran.returncode == 0 else None
