"""Cells done stage by stage, each stage in a folder of its own, as on machines without one disk."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from helpers_runner import tiny

from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.stages import (
    CellResult,
    Stage,
    VerdictPart,
    judge_stage,
    measure_stage,
    needs,
    train_stage,
    verdict_parts,
)
from robust_nc.pipeline.suite import Cell
from robust_nc.record.folder import evidence_path, record_path, rows_path
from robust_nc.runtime.progress import no_report

# After twenty epochs an attack breaks some images, and with this seed the best is not the last.
BASE = """
[grid]
"threat.eps" = [0.06]
"train.epochs" = [20]
"evaluation.examples" = [20]
"evaluation.sweep" = [[]]
seed = [2]
"""


def one_cell(folder: Path, grid: str = "") -> Cell:
    """Return the only cell of the tiny suite with these lines in its grid."""
    (cell,) = tiny(folder, BASE + grid).cells
    return cell


def whole(cell: Cell, out: Path) -> CellResult:
    return run_cell(cell, "tiny", out, None, report=no_report)


def do(cell: Cell, stage: Stage, out: Path, part: VerdictPart | None = None) -> None:
    """Do a stage in `out` itself."""
    if stage == "train":
        train_stage(cell, out, None, report=no_report)
    elif stage == "judge":
        assert part is not None
        judge_stage(cell, part, out, None, report=no_report)
    elif stage == "measure":
        measure_stage(cell, out, None, report=no_report)
    else:
        whole(cell, out)


def elsewhere(cell: Cell, stage: Stage, out: Path, part: VerdictPart | None = None) -> None:
    """Do a stage in a fresh folder that holds only what it needs, and bring home all files."""
    with tempfile.TemporaryDirectory() as name:
        there = Path(name)
        for path in needs(cell, stage, out, part=part):
            target = there / path.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
        do(cell, stage, there, part)
        for path in there.rglob("*"):
            if path.is_file():
                target = out / path.relative_to(there)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def in_stages(
    cell: Cell, out: Path, *, width: int = 1, backwards: bool = False
) -> list[VerdictPart]:
    """Do all stages, each elsewhere; return the parts that were judged."""
    elsewhere(cell, "train", out)
    parts = verdict_parts(cell, out, None, width=width)
    for part in parts[::-1] if backwards else parts:
        elsewhere(cell, "judge", out, part)
    elsewhere(cell, "measure", out)
    elsewhere(cell, "record", out)
    return parts


def left(cell: Cell, out: Path) -> dict[str, Any]:
    """All that a record says but when and how long, with the bytes of its files."""
    path = record_path(out, cell.model, cell.id)
    values: dict[str, Any] = json.loads(path.read_text())
    for varying in ("created", "seconds"):
        del values[varying], values["seals"][varying]
    files = evidence_path(path), rows_path(out, cell.model, cell.id)
    return values | {file.name: file.read_bytes() for file in files}
