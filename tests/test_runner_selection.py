"""Some cells of a suite, for some minutes: what is chosen, and what a run that was cut leaves."""

from pathlib import Path

import pytest
from helpers_runner import Ran, cli, records, tiny, write_suite

from robust_nc.exceptions import ConfigError
from robust_nc.pipeline.selection import select_cells
from robust_nc.pipeline.suite import Suite, read_suite

GRID = """
[grid]
"train.objective" = ["standard", { name = "pgd", steps = 2 }]
"threat.eps" = ["8/255", 0.5]
seed = [0, 1]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return read_suite(str(write_suite(tmp_path, GRID)))


@pytest.mark.parametrize(
    ("numbers", "where", "chosen"),
    [
        ((), (), list(range(8))),
        ((6, 1, 6), (), [1, 6]),
        ((), ("train.objective=pgd",), [4, 5, 6, 7]),
        ((), ("objective = pgd", "seed=1"), [5, 7]),
        ((), ("train.objective={name='pgd', steps=2}",), [4, 5, 6, 7]),
        ((), ("train.objective.steps=2", "eps=8/255"), [4, 5]),
        ((), ('train.objective="standard"',), []),
        ((0, 5), ("seed=1",), [5]),
        (
            (),
            ("threat.norm=Linf", "train.compile=false", "augment=[]", "eps=0.5"),
            [2, 3, 6, 7],
        ),
    ],
)
def test_cells_are_chosen_by_number_and_by_what_they_are(suite, numbers, where, chosen):
    if not chosen:
        with pytest.raises(ConfigError, match=r"train\.objective is pgd, standard"):
            select_cells(suite, numbers, where)
        return
    found = select_cells(suite, numbers, where)
    assert [suite.cells.index(cell) for cell in found.cells] == chosen
    assert found.name == suite.name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cells", 8], "tiny has cells 0 to 7, found number 8"),
        (["--cells", -1], "tiny has cells 0 to 7, found number -1"),
        (["--where", "train.objectiv=pgd"], "has the key 'train.objectiv' (did you mean train.obj"),
        (["--where", "steps=2"], "may be measure.steps or train.objective.steps; write the whole"),
        (["--where", "seed"], "--where takes KEY=VALUE, such as train.objective=pgd, found 'seed'"),
        (["--where", "seed=5"], "no cell of tiny has seed=5; seed is 0, 1"),
        (["--where", "train.compile=1"], "no cell of tiny has train.compile=1"),
        (["--cells", 0, 2, "--where", "seed=1"], "no cell of tiny among numbers 0 2 has seed=1"),
        (["--minutes", 0], "--minutes must be a number above 0, found 0"),
        (["--minutes", "nan"], "--minutes must be a number above 0, found nan"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_what_cannot_be_chosen_is_one_sentence(tmp_path, options, said, plan):
    path = write_suite(tmp_path, GRID)
    ran = cli("run", path, "--out", tmp_path / "out", *options, *plan)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert not (tmp_path / "out").exists()


def test_claims_need_all_cells():
    ran = cli("run", "claims", "--where", "seed=0")
    assert (ran.code, ran.out) == (2, "")
    assert "claims need all of theirs" in ran.err


def test_chosen_cells_alone_are_made_and_the_others_left(tmp_path):
    suite, out = tiny(tmp_path), tmp_path / "out"

    def run(*options: object) -> Ran:
        return cli("run", tmp_path / "tiny.toml", "--out", out, "--workers", 1, *options)

    one = run("--cells", 3)
    assert one.code == 0
    assert "tiny: 1 of 4 cells into" in one.err
    assert f"[1/1] {suite.cells[3].model} seed 0, cell 3: clean" in one.err
    assert set(records(out)) == {suite.cells[3].id}
    assert suite.cells[3].model in one.out
    two = run("--where", "model.head=etf")
    assert two.err.splitlines()[-1] == "1 cells made, 1 kept, 0 failed"
    assert set(records(out)) == {cell.id for cell in suite.cells[2:]}
    left = run("--overwrite", "only-cache", "--cells", 1, 2)
    assert left.code == 1
    assert left.err.splitlines()[-1] == (
        f"missing: {suite.cells[1].model} seed 0, cell 1 ({suite.cells[1].id})"
    )


def test_minutes_end_a_run_as_a_wish_to_stop_and_the_next_goes_on(tmp_path):
    suite, out = tiny(tmp_path), tmp_path / "out"
    options = ("--out", out, "--cells", 1, "--workers", 1, "--minutes")
    cut = cli("run", tmp_path / "tiny.toml", *options, 0.02)
    assert cut.code == 143
    assert "Traceback" not in cut.err
    assert cut.err.splitlines()[-1] == (
        "stopped as asked with 0 of 1 cells done, 1 under way (each goes on from its last save) "
        f"and 0 not begun; go on with: robust-nc run {tmp_path / 'tiny.toml'} --out {out} "
        "--cells 1 --workers 1 --minutes 0.02"
    )
    ended = cli("run", tmp_path / "tiny.toml", *options, 30)
    assert ended.code == 0
    assert set(records(out)) == {suite.cells[1].id}
