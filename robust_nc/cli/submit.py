"""`robust-nc submit`: a record made ready for a pull request, or pushed to the Hub.

Everything is checked before anything is written or pushed.
"""

import re
import shlex
from pathlib import Path

from rich.console import Console

from robust_nc.cli.options import SubmitOptions
from robust_nc.exceptions import DataError, RecordError
from robust_nc.exchange.hub_push import push, repository
from robust_nc.exchange.record_files import check_whole, evidence_file
from robust_nc.exchange.submission import is_cut, ready, remarks
from robust_nc.io.text import one_line
from robust_nc.record.schema import Stored, read_record
from robust_nc.verification.consistency import inconsistencies
from robust_nc.verification.evidence import check_evidence
from robust_nc.verification.originals import RecordExamples, examples_of


def submit_command(options: SubmitOptions, stderr: Console) -> int:
    """Check a record and its evidence, and make them ready; say what is left to do."""
    stored, to, hub = read_record(options.record), options.to, options.hub
    check_whole(stored)
    evidence_file(stored)
    if hub is not None:
        repository(hub)  # before the checks, which take longer
    elif not to.is_dir():
        raise RecordError(
            f"there is no folder {to}; clone the leaderboard's repository, and run this in the "
            "clone or name its results folder with --to"
        )
    examples = _checked(stored, options.root, stderr, cut=hub is None and is_cut(stored))
    for remark in remarks(stored):
        stderr.print(f"note: {one_line(remark)}", markup=False, soft_wrap=True)
    if hub is not None:
        pushed = push(stored, hub)
        print(f"pushed to https://huggingface.co/{pushed.repository}: {', '.join(pushed.files)}")
        return 0
    made = ready(stored, to, None if examples is None else examples.images)
    for path in made:
        print(f"{path}  {path.stat().st_size:,} bytes")
    stderr.print(steps(stored.record.model, stored.record.cell, made), markup=False, soft_wrap=True)
    return 0


def _checked(
    stored: Stored, root: Path | None, stderr: Console, *, cut: bool
) -> RecordExamples | None:
    """Check the evidence, against the images where they are here; raise for what is wrong.

    `cut`: the evidence will be cut, which is not possible without the images.
    """
    try:
        examples = examples_of(stored.record, root)
    except DataError as error:
        if cut:
            raise
        stderr.print(f"note: not checked against the images: {error}", markup=False, soft_wrap=True)
        examples = None
    wrong = [*inconsistencies(stored), *check_evidence(stored, examples=examples, model=None).wrong]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RecordError(f"{stored.path} does not hold: {wrong[0]}{more}")
    return examples


def steps(model: str, cell: str, made: list[Path]) -> str:
    """Say what is left to do in the clone, as commands for a shell; `made` begins with the record.

    They work from the folder that the user is in, whatever its name and that of the clone.
    """
    folder = made[0].parent.resolve()
    clone = next((up for up in (folder, *folder.parents) if (up / ".git").exists()), None)
    readme = made[0].parents[2] / "README.md"
    if clone is None:
        return (
            f"ready, but {readme.parent} is in no clone of the leaderboard: copy what is new there "
            "into one, and open a pull request"
        )
    # What git takes for a branch.
    branch = re.sub(r"[^A-Za-z0-9_=-]+", "-", f"result-{model}-{cell}")
    paths = [path.resolve().relative_to(clone) for path in made]
    commands = [
        *([] if clone == Path.cwd() else [["cd", str(clone)]]),
        ["git", "switch", "-c", branch],
        ["git", "add", *map(str, paths)],
        ["git", "commit", "-m", f"Result of {model}"],
        ["git", "push", "-u", "origin", branch],
    ]
    return "\n".join(
        [
            "",
            "ready; now:",
            *(f"  {shlex.join(words)}" for words in commands),
            f"and open a pull request; {readme} says what is checked.",
        ]
    )
