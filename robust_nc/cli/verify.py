"""`robust-nc verify`: one screen per record, and the state that was shown and nothing more."""

import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from robust_nc.config import plain
from robust_nc.exceptions import RecordError
from robust_nc.io.files import canonical_json, write_text
from robust_nc.io.text import printable
from robust_nc.record.folder import record_files
from robust_nc.record.schema import Stored, data_name, read_record
from robust_nc.record.signing import sign, signer_name
from robust_nc.record.standing import (
    CHECKED,
    CLAIMED,
    REPRODUCED,
    counted_receipt,
    receipt_path,
    signers_path,
    standing,
)
from robust_nc.report.board.render import folded, terminal_width
from robust_nc.runtime.progress import Event
from robust_nc.runtime.screen import Screen
from robust_nc.verification.audit import CLAIM, write_broken
from robust_nc.verification.check import RecordCheck, check_record
from robust_nc.verification.options import CheckOptions
from robust_nc.verification.originals import ball_of
from robust_nc.verification.rejudge import Repeated

# What brings a record further.
_MORE = {
    CLAIMED: "; checked: with --model, and where it has geometry with --audit N",
    CHECKED: "; reproduced: with --reproduce, and without --trusted",
    REPRODUCED: "",
}
_MOST_LINES = 12  # findings that are shown of one record


def verify_command(options: CheckOptions, stderr: Console) -> int:
    """Check records, one after another; 1 where anything is wrong with any of them."""
    options.check()
    if options.seed is None:
        options = dataclasses.replace(options, seed=int.from_bytes(os.urandom(4)))
    bad, signer = 0, None if options.sign is None else signer_name(options.sign)
    paths, width = record_paths(options.records), terminal_width()
    for path in paths:
        print(printable(str(path)))
        try:
            # The code of a model may print; stdout is for what was found.
            with contextlib.redirect_stdout(sys.stderr), Screen(stderr) as screen:
                found = check_record(
                    read_record(path),
                    options,
                    tell=screen.line,
                    show=lambda stage, share, text: screen.event(Event(stage, share, text)),
                )
        except RecordError as error:
            print(f"  INVALID {printable(str(error))}")
            bad += 1
            continue
        for line in _lines(found, options):
            # A command is to be copied whole.
            whole = "it counts with: " in line
            print("\n".join(folded(f"  {printable(line)}", None if whole else width, indent=15)))
        bad += bool(found.wrong)
        if options.sign is not None and signer is not None:
            place = receipt_path(path)
            write_text(
                place, sign(canonical_json(plain(found.receipt(signer))) + "\n", options.sign)
            )
            counts = counted_receipt(found.stored) is not None
            why = "" if counts else f"; it counts for nothing: no such key in {signers_path(path)}"
            stderr.print(f"wrote {place}{why}", markup=False, soft_wrap=True)
    if len(paths) > 1:
        print(f"{len(paths):,} records, {bad:,} with something wrong")
    return 1 if bad else 0


def record_paths(places: tuple[Path, ...]) -> list[Path]:
    """Return the records among files and folders, sorted; `RecordError` where there are none."""
    paths = []
    for place in places:
        found = record_files(place)
        if not found:
            raise RecordError(f"{place} holds no records; name a record, or a folder of them")
        paths += found
    if not paths:
        raise RecordError("name at least one record, or a folder of them")
    return paths


def _lines(found: RecordCheck, options: CheckOptions) -> Iterator[str]:
    """Say what was found of a record, line by line."""
    yield _subject(found.stored)
    sealed = "" if found.stored.record.seals else ", not sealed (of an earlier version)"
    yield f"schema       {'WRONG' if found.inconsistent else 'ok'}{sealed}"
    yield from _evidence_lines(found)
    yield from _audit_lines(found, options)
    for reason in (*found.evidence.unchecked, *found.unchecked):
        yield f"not checked  {reason}"
    for finding in found.wrong[:_MOST_LINES]:
        yield f"WRONG        {finding}"
    if len(found.wrong) > _MOST_LINES:
        yield f"WRONG        and {len(found.wrong) - _MOST_LINES} more"
    more = "" if found.wrong else _MORE[found.state]
    yield f"state        {found.state}{more}"


def _subject(stored: Stored) -> str:
    record = stored.record
    try:
        ball = str(ball_of(record.config))
    except RecordError:
        ball = "?"
    claimed = record.scores.get("robust")
    share = "" if claimed is None else f", claims {claimed.value:.2%} robust"
    return (
        f"{record.model} on {record.data.examples:,} of {data_name(record)}, {ball}, "
        f"{record.protocol}{share}"
    )


def _evidence_lines(found: RecordCheck) -> Iterator[str]:
    seen = found.evidence
    if seen.evidence is not None:
        where = "all in the ball and bounds of their originals" if seen.placed else "not placed"
        yield f"evidence     {len(seen.evidence.broken):,} adversarial images, {where}"
    if seen.same_model is not None:
        same = "the one that was judged" if seen.same_model else "ANOTHER ONE"
        yield f"model        {same}"
    if seen.clean is not None and seen.adversarials is not None:
        yield f"clean        {_counts(seen.clean)}"
        yield f"broken       {_counts(seen.adversarials)}"
    if seen.upper is not None:
        word = "is at most" if seen.proves else "would be at most"
        which = "" if seen.rows is None else f" of the first {seen.rows:,} examples"
        yield f"bound        robust accuracy{which} {word} {seen.upper:.2%}"
    if not found.inconsistent:
        with contextlib.suppress(RecordError):
            now = standing(found.stored)
            if now.pending:
                yield f"challenges   {now.pending:,} that no signed receipt says to hold"
            if now.challenged:
                yield (
                    f"challenged   {now.challenged:,} examples: {now.robust.mean():.2%} robust are "
                    "left"
                )


def _counts(repeated: Repeated) -> str:
    proven, tolerated, refuted = (
        int(part.sum()) for part in (repeated.proven, repeated.tolerated, repeated.refuted)
    )
    return f"{proven:,} proven, {tolerated:,} within tolerance, {refuted:,} refuted"


def _audit_lines(found: RecordCheck, options: CheckOptions) -> Iterator[str]:
    audit = found.audit
    if audit is not None:
        yield f"audit        {audit}"
        yield f"             then it is robust on at least {audit.lowest:.2%} (seed {audit.seed})"
        if audit.protocol != found.stored.record.protocol:
            yield f"             (the record's own protocol is {found.stored.record.protocol})"
        if len(audit.broke):
            # By the file that the user named: what a record says of itself may be a path.
            path = Path(f"{found.stored.path.stem}.audit.npz")
            write_broken(path, audit.broke, audit.points)
            words = ["robust-nc", "challenge", str(found.stored.path), "--evidence", str(path)]
            words += ["--model", str(options.model)]
            yield f"             what broke is in {path}; it counts with: {shlex.join(words)}"
    if found.geometry is not None:
        yield f"geometry     {found.geometry}"
    elif (claimed := found.stored.record.summary.get(CLAIM)) is not None:
        yield f"geometry     leap rate {claimed:.3f} on test, as claimed"
