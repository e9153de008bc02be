"""Making a record ready for a pull request: `<to>/<suite>/<model>/` with all that belongs to it.

What is committed stays small: evidence of more than 1,000 examples or 2 MB is cut to its first
examples. The record then names the file that is committed, and keeps the digest of the full one.
Receipts are left behind, because they are about the record as it was; challenges come along.

>>> EXAMPLES, LARGEST
(1000, 2000000)
"""

import dataclasses
from pathlib import Path

from torch import Tensor

from robust_nc.evidence.file import first_evidence, read_evidence, write_evidence
from robust_nc.exceptions import RecordError
from robust_nc.exchange.record_files import challenge_files, check_whole, evidence_file, rows_file
from robust_nc.io.files import sha256_of, write_bytes
from robust_nc.io.untrusted import file_name
from robust_nc.record.schema import EvidenceFile, Stored, read_record, sealed, write_record
from robust_nc.record.standing import standing
from robust_nc.report.board.formats import percent, points
from robust_nc.report.board.ranking import MIN_EXAMPLES

EXAMPLES, LARGEST = 1_000, 2_000_000  # of committed evidence: examples, bytes


def ready(stored: Stored, to: Path, images: Tensor | None = None) -> list[Path]:
    """Write the files of a submission below `to`; return their paths, the record's first.

    `images` are the clean originals `(N, C, H, W)` of all N examples, needed only where the
    evidence is cut (`is_cut`). Raises `RecordError` for a record that is not sealed or was changed,
    that lacks its rows or its evidence, or whose cell is there already.
    """
    check_whole(stored)
    check_names(stored)
    standing(stored)  # challenges that are none are refused here
    rows, evidence = rows_file(stored), evidence_file(stored)
    refuse_twin(stored, to)
    names = (stored.record.suite, stored.record.model)
    suite, model = (file_name(name, what=f"a name in {stored.path}") for name in names)
    folder = to / suite / model
    record, beside = folder / f"{stored.record.cell}.json", (rows, *challenge_files(stored))
    if not is_cut(stored):
        made = [_copy(path, folder) for path in (evidence, *beside)]
        # Last, so that no record is ever there without what it names.
        write_bytes(record, stored.path.read_bytes())
        return [record, *made]
    if images is None:
        raise RecordError(f"{evidence} is cut before it is committed, which needs the clean images")
    cut = _write_cut(stored, evidence, folder / evidence.name, images)
    made = [_copy(path, folder) for path in beside]
    write_record(record, sealed(dataclasses.replace(stored.record, evidence=cut)))
    return [record, folder / evidence.name, *made]


def is_cut(stored: Stored) -> bool:
    """Whether the evidence beside a record is too much to be committed."""
    evidence = evidence_file(stored)
    named = stored.record.evidence
    assert named is not None
    if named.rows is not None and sha256_of(evidence) == named.sha256:
        return False  # it was cut before
    return stored.record.data.examples > EXAMPLES or evidence.stat().st_size > LARGEST


def remarks(stored: Stored) -> list[str]:
    """Say what the submitter should know, in sentences."""
    record, told = stored.record, []
    if record.data.examples < MIN_EXAMPLES:
        told.append(
            f"{record.data.examples:,} examples: rows of fewer than {MIN_EXAMPLES:,} are not ranked"
        )
    pending = standing(stored).pending
    if pending:
        told.append(f"{pending} of the challenges beside it, which come along, nobody judged yet")
    if record.card is None:
        told.append("no card: nobody will know whose model this is (evaluate --card FILE)")
    if record.warnings:
        told.append(f"its verdict has warnings: {', '.join(one.name for one in record.warnings)}")
    return told


def refuse_twin(stored: Stored, to: Path) -> None:
    """Raise `RecordError` where a cell is there already; it says whether its score moved."""
    cell = file_name(stored.record.cell, what=f"cell of {stored.path}")
    for path in sorted(to.rglob(f"{cell}.json")):
        there, here = (_robust(one) for one in (read_record(path), stored))
        told = f"with the same robust accuracy, {percent(there)} %; there is nothing to submit"
        if there != here:
            told = (
                f"and its robust accuracy moved by {points(here - there)} points, from "
                f"{percent(there)} % to {percent(here)} %; say why in an issue before it is "
                "replaced"
            )
        raise RecordError(f"cell {cell} lies in {path} already, {told}")


def check_names(stored: Stored) -> None:
    """All files of a record are named by its cell, so that none can take another's place."""
    record = stored.record
    names = {"json": stored.path.name, "parquet": record.rows.path}
    if record.evidence is not None:
        names["evidence"] = record.evidence.name
    for ending, name in names.items():
        right = f"{record.cell}.{ending}"
        if name == f"{record.cell}.verdict.parquet":
            raise RecordError(
                f"the geometry of {stored.path} is not measured yet; go on with the same "
                "robust-nc evaluate"
            )
        if name != right:
            raise RecordError(
                f"{stored.path} has the file {name[:80]!r}, which should be named by its cell: "
                f"{right[:80]!r}"
            )


def _robust(stored: Stored) -> float:
    score = stored.record.scores.get("robust")
    if score is None:
        raise RecordError(f"{stored.path} has no robust accuracy")
    return score.value


def _write_cut(stored: Stored, source: Path, target: Path, images: Tensor) -> EvidenceFile:
    """Write as many of the first examples as may be committed; return what the record says."""
    evidence, named = read_evidence(source, images), stored.record.evidence
    assert named is not None
    rows = min(len(evidence.ids), EXAMPLES)
    while rows:
        written = write_evidence(target, first_evidence(evidence, rows), images[:rows])
        if written.bytes <= LARGEST:
            return dataclasses.replace(written, rows=rows, full=named.full or named.sha256)
        rows = min(rows - 1, int(0.95 * rows * LARGEST / written.bytes))
    target.unlink()
    raise RecordError(f"{source} cannot be cut to {LARGEST:,} bytes: one example is larger")


def _copy(path: Path, folder: Path) -> Path:
    write_bytes(folder / path.name, path.read_bytes())
    return folder / path.name
