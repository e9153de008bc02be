"""The folder of results as a whole, and what a pull request changes in it.

`python -m robust_nc.verification.results_tree BASE HEAD` compares two plain folders: the results of
the main branch and those with the changes. Exits with 0; with 1 where something is refused; with 2
where a folder cannot be read. With `--maintainer`, files that are there may change or go, and
records may come without evidence.

Kind and size of a file are looked at before it is opened. None is run: a model is asked only where
it is one of ours whose weights lie in the tree.

>>> print(Finding("evaluated/net/00ff.json", "was removed"))
evaluated/net/00ff.json: was removed
>>> results_command(["only one folder"])
2
"""

import itertools
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robust_nc.data.load import dataset_info
from robust_nc.evidence.file import read_evidence
from robust_nc.exceptions import DataError, RecordError, RobustNCError
from robust_nc.exchange.submission import EXAMPLES, LARGEST, check_names
from robust_nc.io.files import sha256_of
from robust_nc.io.text import printable
from robust_nc.pipeline.finished_model import SUITE
from robust_nc.record.folder import evidence_path
from robust_nc.record.schema import Stored, read_record
from robust_nc.record.signing import SIGNERS
from robust_nc.record.standing import (
    challenge_evidence,
    challenge_path,
    challenges_of,
    counted_receipt,
    read_challenge,
    receipt_path,
    standing,
)
from robust_nc.report.board.gather import value_in
from robust_nc.report.board.table import leaderboard
from robust_nc.verification.challenge import read_points
from robust_nc.verification.check import check_record
from robust_nc.verification.consistency import inconsistencies
from robust_nc.verification.evidence import Finding, check_evidence, inside, name_rows
from robust_nc.verification.options import CheckOptions
from robust_nc.verification.originals import ball_of, dataset_of, examples_of

_TREE, _FILES = 256 * 2**20, 10_000  # bytes and number of all files
_LARGEST = {".json": 2 * 2**20, ".evidence": LARGEST, ".npz": LARGEST}
_OTHERS = 2**20
_PAGES = {"README.md", "claims/README.md", "claims/next.toml"}
_ANSWERS = ("claims", "answers")
# Small weights of ours lie here, so that anyone can check what was said of them.
_CHECKPOINTS, _HUB = f"{SUITE}/checkpoints", {"config.json", "model.safetensors"}
_NAME = re.compile(
    r"(?P<cell>[0-9a-f]{16})\."
    r"(json|parquet|evidence|receipt|(?P<challenge>[0-9a-f]{16})\.(challenge|evidence|npz))"
)

Files = dict[str, Path]  # by their place below the folder


class TreeCheck(NamedTuple):
    """What is refused, what could not be looked at here, and how many files changed."""

    refused: list[Finding]
    unchecked: list[Finding]
    changed: int


def check_tree(
    base: Path, head: Path, *, maintainer: bool = False, root: Path | None = None
) -> TreeCheck:
    """Check the results in `head`, and with images and models what is other than in `base`.

    `root` is the folder of data sets. Raises `RecordError` where `base` holds what is no record,
    `OSError` where a folder cannot be read.
    """
    (before, _), (now, refused) = _listed(base), _listed(head)
    if refused:
        return TreeCheck(refused, [], 0)  # nothing is opened
    gone, new = before.keys() - now.keys(), now.keys() - before.keys()
    both = (before.keys() & now.keys()) - _PAGES
    edited = {place for place in both if _differs(before[place], now[place])}
    if not maintainer:
        refused += _not_yours(before, gone=gone, edited=edited, new=new)
    records, unchecked = [], []
    for place in filter(_is_record, sorted(now)):
        try:
            records.append(read_record(now[place]))
        except RecordError as error:
            refused.append(Finding(place, str(error)))
    refused += [*tree_findings(head, records), *_moved(head, before, records)]
    wrong = {one.place for one in refused}
    for stored in records:
        place = _place(stored.path, head)
        if place in new and not maintainer and not (stored.record.seals and stored.record.evidence):
            refused.append(Finding(place, "comes without seals or without evidence"))
        if place in wrong:
            continue
        changed = {one for one in new | edited if one.startswith(place.removesuffix("json"))}
        if changed or not {*_weights(stored, now)}.isdisjoint(new | edited):
            trusted = maintainer or SIGNERS not in new | edited
            found = _touched(stored, head, now, changed, root=root, trusted=trusted)
            refused += found.refused
            unchecked += found.unchecked
    if records and not refused:
        try:
            leaderboard(records)
        except RecordError as error:
            refused.append(Finding("the board", str(error)))
    shown = (one._replace(text=one.text.replace(f"{head}{os.sep}", "")) for one in refused)
    return TreeCheck(list(dict.fromkeys(shown)), unchecked, len(new | edited | gone))


def tree_findings(results: Path, records: Sequence[Stored]) -> list[Finding]:
    """Name what is wrong with `records`, all those of a folder, and with the files beside them."""
    found = [*_twins(results, records), *_strays(_listed(results)[0], records)]
    for stored in records:
        record, place = stored.record, _place(stored.path, results)
        told = [str(one) for one in inconsistencies(stored)]
        if place != f"{record.suite}/{record.model}/{record.cell}.json":
            told.append("lies in another place than its suite, model and cell")
        try:
            check_names(stored)
            standing(stored)
        except RecordError as error:
            told.append(str(error))
        if evidence_path(stored.path).is_file():
            told += map(str, check_evidence(stored, examples=None, model=None).wrong)
            if record.evidence is None:
                told.append("does not name the evidence beside it")
            elif (record.evidence.rows or record.data.examples) > EXAMPLES:
                told.append(f"has evidence of more than {EXAMPLES:,} examples")
        elif record.suite == SUITE:
            told.append("has no evidence beside it")
        found += [Finding(place, text) for text in told]
    return found


def _listed(results: Path) -> tuple[Files, list[Finding]]:
    """List the plain files of a folder, and name what is none or too large; nothing is opened."""
    files, found, total = {}, [], 0

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(results, onerror=refuse):
        # Git keeps no such: it stands for a repository within, of which nothing came.
        if not folders and not names and folder != str(results):
            found.append(Finding(_place(Path(folder), results), "is a folder without files"))
        for path in (Path(folder, name) for name in (*folders, *names)):
            kind, place = path.lstat(), _place(path, results)
            if stat.S_ISDIR(kind.st_mode):
                continue
            total += kind.st_size
            files[place] = path
            if not stat.S_ISREG(kind.st_mode):
                found.append(Finding(place, "is a link, or no plain file"))
            elif kind.st_size > (most := _LARGEST.get(path.suffix, _OTHERS)):
                found.append(Finding(place, f"is larger than {most:,} bytes"))
        if total > _TREE or len(files) > _FILES:
            found.append(Finding("the folder", f"has over {_FILES:,} files or {_TREE:,} bytes"))
            break
    return files, found


def _not_yours(before: Files, *, gone: set[str], edited: set[str], new: set[str]) -> list[Finding]:
    """Name what only a maintainer may do."""
    found = [Finding(place, "was removed; only a maintainer removes results") for place in gone]
    found += [Finding(place, "was changed; only a maintainer changes results") for place in edited]
    # On some file systems, names that differ in case are one.
    taken = {place.rpartition("/")[0].casefold() for place in before}
    for place in new:
        folder, _, last = place.rpartition("/")
        if _is_record(place) and folder.casefold() in taken:
            text = f"{folder} is another's, whose row it would be averaged with; take another name"
            found.append(Finding(place, text))
        elif not _NAME.fullmatch(last) and not place.startswith(f"{_CHECKPOINTS}/"):
            found.append(Finding(place, "comes from maintainers only"))
    return sorted(found)


def _twins(results: Path, records: Sequence[Stored]) -> Iterator[Finding]:
    """Name cells that lie there twice, and one network judged twice in the same way."""
    seen: dict[Any, str] = {}
    for stored in records:
        record, place = stored.record, _place(stored.path, results)
        keys: list[Any] = [(record.suite, record.cell)]  # suites may share a cell
        if record.suite == SUITE and record.weights.state:
            ball = json.dumps(record.config.get("threat"), sort_keys=True)
            keys.append((record.weights.state, record.data.fingerprint, ball, record.protocol))
        for key in keys:
            if key in seen:
                yield Finding(place, f"is {seen[key]} again")
            seen[key] = place


def _strays(files: Files, records: Sequence[Stored]) -> Iterator[Finding]:
    """Name the files below suite/model/ that no record has."""
    weights = set(itertools.chain.from_iterable(_weights(stored, files) for stored in records))
    for place in files:
        *folders, last = place.split("/")
        name = _NAME.fullmatch(last)
        known = place in {*_PAGES, SIGNERS} or tuple(folders) == _ANSWERS or place in weights
        if len(folders) == 2 and name:
            beside = "/".join((*folders, name["cell"]))
            owner = f".{name['challenge']}.challenge" if name["challenge"] else ".json"
            known = {f"{beside}.json", f"{beside}{owner}"} <= files.keys()
        if not known:
            yield Finding(place, "belongs to no record")


def _moved(head: Path, before: Files, records: Sequence[Stored]) -> Iterator[Finding]:
    """Name records whose scores are other than those of the same cell in `before`."""
    old = {path.name: path for place, path in before.items() if _is_record(place)}
    for stored in records:
        first = old.get(stored.path.name, stored.path)
        if _differs(first, stored.path):
            was = read_record(first).record.scores
            for name in ("clean", "robust"):
                told = [one.get(name) for one in (was, stored.record.scores)]
                then, now = (None if one is None else one.value for one in told)
                if then != now:
                    text = f"its {name} accuracy moved from {then} to {now}"
                    yield Finding(_place(stored.path, head), text)


def _touched(
    stored: Stored, head: Path, files: Files, changed: set[str], *, root: Path | None, trusted: bool
) -> TreeCheck:
    """Check a record with all that is here: its images, and its model where it lies in the tree."""
    place, weights = _place(stored.path, head), _weights(stored, files)
    model = str(files[weights[0]].parent) if len(weights) == len(_HUB) else None
    options, refused, unchecked = CheckOptions((), model=model, root=root), [], []
    try:
        found = check_record(stored, options, tell=lambda text: None, show=lambda *event: None)
        refused += [Finding(place, str(one)) for one in found.wrong]
        unchecked = [Finding(place, one) for one in (*found.evidence.unchecked, *found.unchecked)]
    except RobustNCError as error:
        refused.append(Finding(place, str(error)))
    for path in challenges_of(stored.path):
        told = _place(path, head)
        if any(one.startswith(told.removesuffix("challenge")) for one in changed):
            try:
                missing = _look_at(stored, path, root)
            except RobustNCError as error:
                refused.append(Finding(told, str(error)))
                continue
            if model is None or missing == "data":
                unchecked.append(Finding(told, f"not judged here: its {missing} is not at hand"))
    receipt = receipt_path(stored.path)
    if _place(receipt, head) in changed and not (trusted and counted_receipt(stored)):
        text = f"receipts come from maintainers; no key of {SIGNERS} signed this for the record"
        refused.append(Finding(_place(receipt, head), text))
    return TreeCheck(refused, unchecked, len(changed))


def _look_at(stored: Stored, path: Path, root: Path | None) -> str:
    """Raise `RecordError` for a challenge that is false by its looks; say what else it needs."""
    told, evidence = read_challenge(path), challenge_evidence(path)
    if evidence is None or challenge_path(stored.path, sha256_of(evidence)) != path:
        raise RecordError("it has no evidence beside it, or another than it is named by")
    if not told.broken:
        raise RecordError("it lowers nothing")
    try:
        examples = examples_of(stored.record, root)
    except DataError:
        if evidence.suffix == ".evidence":
            read_evidence(evidence, None)
        else:
            shape = dataset_info(dataset_of(stored.record.config), root).image_shape
            read_points(evidence, torch.zeros(1).expand(stored.record.data.examples, *shape))
        return "data"
    rows, points = read_points(evidence, examples.images)
    placed = rows[inside(ball_of(stored.record.config), points, examples.images[rows])]
    missing = sorted({*told.broken}.difference(placed.tolist()))
    if missing:
        raise RecordError(f"it has no point in the ball for {name_rows(missing)}")
    return "model"


def _weights(stored: Stored, files: Files) -> list[str]:
    """Return the files of a record's model that lie in the tree."""
    reference = str(value_in(stored.record.config, "model", "reference"))
    places = (f"{reference.removeprefix('results/')}/{name}" for name in sorted(_HUB))
    return [place for place in places if place in files and place.startswith(_CHECKPOINTS)]


def _is_record(place: str) -> bool:
    return bool(re.fullmatch(r"[^/]+/[^/]+/[0-9a-f]{16}\.json", place))


def _place(path: Path, results: Path) -> str:
    return path.relative_to(results).as_posix()


def _differs(first: Path, second: Path) -> bool:
    return first.stat().st_size != second.stat().st_size or sha256_of(first) != sha256_of(second)


def results_command(arguments: Sequence[str]) -> int:
    """Check what a pull request changes, line by line on stdout; return the exit code."""
    folders = [Path(one) for one in arguments if one != "--maintainer"]
    if len(folders) != 2 or not all(one.is_dir() and not one.is_symlink() for one in folders):
        print("needs two folders of results, BASE HEAD, maybe --maintainer", file=sys.stderr)
        return 2
    try:
        found = check_tree(*folders, maintainer="--maintainer" in arguments)
    except (OSError, RobustNCError) as error:
        print(printable(str(error)), file=sys.stderr)
        return 2
    for word, findings in (("not checked", found.unchecked), ("REFUSED", found.refused)):
        for one in findings:
            print(f"{word:<11}  {printable(str(one))}")
    print(f"{found.changed:,} files changed; {len(found.refused):,} findings refuse them")
    return 1 if found.refused else 0


if __name__ == "__main__":
    sys.exit(results_command(sys.argv[1:]))
