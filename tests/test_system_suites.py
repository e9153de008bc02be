"""The suites of the published systems, end to end at toy size: every cell of them can be made."""

from dataclasses import replace
from pathlib import Path

import pytest

from robust_nc.config import Component, RunConfig, cell_id
from robust_nc.pipeline.cell import run_cell
from robust_nc.pipeline.suite import Cell, read_suite
from robust_nc.record import read_record
from robust_nc.record.folder import record_path

SUITES = (
    "deep-rfm",
    "fixed-heads",
    "heads-under-attack",
    "hierarchy",
    "long-tail",
    "memorization-dilation",
)
OBJECTIVES = {"pgd", "trades"}


def toy(config: RunConfig) -> RunConfig:
    """Shrink a cell: digits, one epoch, few examples, a quick verdict."""
    closed = config.train.objective.name == "deep_rfm"
    objective, backbone = config.train.objective, config.model.backbone
    if objective.name in OBJECTIVES:
        objective = replace(objective, options={**objective.options, "steps": 1})
    if closed:
        backbone = replace(
            backbone, options={**backbone.options, "layers": 2, "width": 32, "centers": 150}
        )
    return replace(
        config,
        data=replace(config.data, dataset=Component(name="digits"), train_limit=400),
        model=replace(config.model, backbone=backbone),
        train=replace(config.train, objective=objective, epochs=0 if closed else 1),
        evaluation=replace(config.evaluation, protocol="fgsm", examples=20),
        measure=replace(
            config.measure,
            train_examples=100,
            test_examples=40,
            steps=1,
            radii=(),
            agop_examples=min(config.measure.agop_examples, 5),
        ),
    )


def models(name: str) -> list[Cell]:
    """Return one cell per model of a suite, but for what differs in the objective alone."""
    found = {}
    for cell in read_suite(name).cells:
        key = (cell.config.model, cell.config.train.loss)
        found.setdefault(repr(key), cell)
        if cell.config.train.objective.name == "pgd":
            found[repr(key)] = cell
    return list(found.values())


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_runs_end_to_end(name: str, tmp_path: Path) -> None:
    said = []
    for cell in models(name):
        config = toy(cell.config)
        small = Cell(cell_id(config), cell.model, config)
        run_cell(small, name, tmp_path, None, report=lambda share, status: said.append(status))
        stored = read_record(record_path(tmp_path, small.model, small.id))
        assert {"clean", "robust", "robust_beside"} <= set(stored.record.scores)
        assert stored.rows()["value"].notna().any()
    assert said


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_published_as_the_field_asks(name: str) -> None:
    """Judged by `standard` beside the weaker protocol; five seeds, or three on a GPU."""
    (large,) = (f"{name}-{data}" for data in ("cifar10", "cifar100") if exists(f"{name}-{data}"))
    for suite, seeds in ((name, 5), (large, 3)):
        cells = read_suite(suite).cells
        assert {cell.config.evaluation.protocol for cell in cells} == {"standard"}
        assert {cell.config.evaluation.beside for cell in cells} == {"pgd_ce"}
        assert len({cell.config.seed for cell in cells}) >= seeds


def exists(name: str) -> bool:
    return (Path(__file__).parent.parent / "benchmarks" / f"{name}.toml").exists()
