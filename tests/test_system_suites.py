"""The suites of the published systems, end to end at toy size: every cell of them can be made."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from robust_nc.config import Component, RunConfig, cell_id
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.suite import Cell, read_suite
from robust_nc.record import read_record
from robust_nc.record.folder import record_path
from robust_nc.runtime.progress import no_report

SUITES = (
    "collapse-under-attack",
    "deep-rfm",
    "fixed-heads",
    "heads-under-attack",
    "hierarchy",
    "long-tail",
    "memorization-dilation",
)


def toy(config: RunConfig) -> RunConfig:
    """Shrink a cell: digits, one epoch, few examples, a quick verdict."""
    closed = config.train.objective.name == "deep_rfm"
    objective, backbone = config.train.objective, config.model.backbone
    if objective.name == "pgd":
        objective = replace(objective, options={**objective.options, "steps": 1})
    if closed:
        backbone = replace(
            backbone, options={**backbone.options, "layers": 2, "width": 32, "centers": 100}
        )
    return replace(
        config,
        data=replace(config.data, dataset=Component(name="digits"), train_limit=400),
        model=replace(config.model, backbone=backbone),
        train=replace(config.train, objective=objective, epochs=0 if closed else 1),
        evaluation=replace(config.evaluation, protocol="fgsm", examples=20),
        measure=replace(
            config.measure,
            train_examples=60,
            test_examples=20,
            steps=1,
            radii=(),
            every=None if config.measure.every is None else 1,
            agop_examples=min(config.measure.agop_examples, 5),
        ),
    )


def models() -> Iterator[tuple[str, Cell]]:
    """Yield one cell per model of the suites that no suite before had, but for the objective."""
    seen = set()
    for name in SUITES:
        for cell in read_suite(name).cells:
            config = cell.config
            parts = config.model.backbone.name, config.model.head, config.model.neck
            key = repr((*parts, config.train.loss, config.data.imbalance, config.data.noise))
            if config.train.objective.name in {"pgd", "deep_rfm"} and key not in seen:
                seen.add(key)
                yield name, cell


@pytest.mark.parametrize(
    ("name", "cell"), [pytest.param(*each, id=f"{each[0]}-{each[1].model}") for each in models()]
)
def test_a_suite_runs_end_to_end(name: str, cell: Cell, tmp_path: Path) -> None:
    config = toy(cell.config)
    small = Cell(cell_id(config), cell.model, config)
    run_cell(small, name, tmp_path, None, report=no_report)
    stored = read_record(record_path(tmp_path, small.model, small.id))
    assert {"clean", "robust", "robust_beside"} <= set(stored.record.scores)
    assert stored.rows()["value"].notna().any()


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_published_as_the_field_asks(name: str) -> None:
    """Judged by `standard` beside the weaker protocol; five seeds, or three on a GPU."""
    package = Path(__file__).parent.parent / "benchmarks"
    large = [path.stem for path in package.glob(f"{name}-cifar*.toml")]
    assert large
    for suite, seeds in ((name, 5), *((one, 3) for one in large)):
        cells = read_suite(suite).cells
        assert {cell.config.evaluation.protocol for cell in cells} == {"standard"}
        assert {cell.config.evaluation.beside for cell in cells} == {"pgd_ce"}
        assert len({cell.config.seed for cell in cells}) >= seeds
