"""`robust-nc compare A B`: what it says, and what it refuses."""

import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_report import challenged, flags, put, record, signed, write_grid
from rich.console import Console
from scipy import stats

from robust_nc.cli.compare import compare_command
from robust_nc.cli.options import CompareOptions
from robust_nc.exceptions import RecordError
from robust_nc.record import Record, pack_flags, read_record, unpack_flags, write_record
from robust_nc.record.schema import sealed
from robust_nc.report.board.comparing import Compared, compare
from robust_nc.report.board.table import leaderboard
from robust_nc.statistics.intervals import wilson
from robust_nc.statistics.significance import paired_shares

Said = Callable[..., str]


def two_records(folder: Path) -> tuple[Path, Path]:
    first = record(flags(600), clean=flags(900))
    second = record(flags(560, start=30), objective="trades")
    return put(folder / "a.json", first), put(folder / "b.json", second)


def two_methods(folder: Path, seeds: tuple[int, ...], others: tuple[int, ...]) -> tuple[Path, Path]:
    gains = {0: 41, 1: 35, 2: 50, 3: 44}
    for seed in seeds:
        made = record(flags(500 + 20 * seed + gains[seed]), seed=seed)
        put(folder / "a" / f"{seed}.json", made)
    for seed in others:
        made = record(flags(500 + 20 * seed), seed=seed, objective="trades")
        put(folder / "b" / f"{seed}.json", made)
    return folder / "a", folder / "b"


def robust(found: Compared):
    (one,) = (each for each in found.accuracies if each.name == "robust")
    return one


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Calls the verb, and gives its output."""

    def call(first: Path, second: Path, out: Path | None = None) -> str:
        options = CompareOptions(first, second, out)
        assert compare_command(options, Console(file=io.StringIO())) == 0
        return capsys.readouterr().out

    return call


def test_a_page_shows_the_examples_that_tell_two_models_apart(
    verdict: Any, tmp_path: Path, said: Said
) -> None:
    first, _ = verdict
    robust = unpack_flags(first.record.verdict.robust).copy()
    robust[robust.nonzero()[0][:3]] = False
    other = dataclasses.replace(first.record.verdict, robust=pack_flags(robust))
    folder = shutil.copytree(first.path.parent, tmp_path / "other")
    changed = dataclasses.replace(first.record, verdict=other, model="<b>other</b>")
    write_record(folder / first.path.name, sealed(changed))
    text = said(first.path.parent, folder, tmp_path / "page")
    lost = (unpack_flags(first.record.verdict.robust) & ~robust).nonzero()[0].tolist()
    assert f"A alone withstands number {', '.join(map(str, lost))}\n" in text
    assert "B alone withstands" not in text
    page = (tmp_path / "page" / "compare.html").read_text()
    assert "<p>3 examples: number " + ", ".join(map(str, lost)) + "</p>" in page
    assert "A is more robust" in page or "Neither is significantly" in page
    assert "&lt;b&gt;other&lt;/b&gt;" in page
    assert "<b>other" not in page


def test_figures_of_two_methods_share_their_axes(tmp_path: Path, said: Said) -> None:
    one, other = write_grid(tmp_path, objectives=("pgd", "trades"), heads=("etf",), seeds=1)
    said(one.path, other.path, tmp_path / "page")
    page = (tmp_path / "page" / "compare.html").read_text()
    assert page.count("<img") == 3
    assert all(path.stat().st_size for path in (tmp_path / "page").rglob("*.png"))


def test_two_records_are_compared_example_by_example(tmp_path: Path, said: Said) -> None:
    first, second = two_records(tmp_path)
    found = compare(first, second)
    one = robust(found)
    # A: 0..599, B: 30..589.
    assert one.counts == (560, 40, 0, 400)
    assert one.p == pytest.approx(stats.binomtest(40, 40).pvalue)
    assert one.difference == paired_shares(flags(600), flags(560, start=30))
    assert one.first == wilson(600, 1000)
    assert (found.examples, found.same_images) == (1000, True)
    assert found.accuracies[0].counts == (900, 0, 100, 0)
    lines = said(first, second).splitlines()
    assert len(lines) <= 30, "one screen"
    assert "digits, Linf 0.15, protocol pgd; the same 1,000 examples of test" in lines
    (accuracy,) = (line.split() for line in lines if line.startswith("robust %"))
    assert accuracy[2:5] == ["60.0", "[56.9,", "63.0]"]
    assert "+4.0" in accuracy
    (counts,) = (line.split() for line in lines if line.startswith("robust  "))
    assert counts == ["robust", "40", "0", "560", "400"]
    assert "A is more robust than B (p < 0.0001, level 0.05)." in lines
    assert "B is more robust than A (p < 0.0001, level 0.05)." in said(second, first)


def test_a_narrow_terminal_has_the_same_numbers(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_records(tmp_path)
    words = said(first, second).replace("[", " [").split()
    monkeypatch.setenv("COLUMNS", "72")
    narrow = said(first, second)
    paths = (str(first), str(second))
    lines = [line for line in narrow.splitlines() if not any(path in line for path in paths)]
    assert max(map(len, lines)) <= 72
    assert sorted(narrow.replace("[", " [").split()) == sorted(words)


def test_challenges_count(tmp_path: Path, said: Said, signing_key: Path) -> None:
    first, second = two_records(tmp_path)
    challenged(first, rows=range(100))
    signed(read_record(first), signing_key)
    assert robust(compare(first, second)).first.value == 0.5
    text = said(first, second)
    assert "challenges took 100 examples" in text
    assert "B is more robust than A" in text


def test_methods_are_compared_seed_by_seed(tmp_path: Path, said: Said, signing_key: Path) -> None:
    first, second = two_methods(tmp_path, (0, 1, 2, 3), (1, 2, 0))
    one = robust(compare(first, second))
    oracle = stats.ttest_1samp([0.041, 0.035, 0.050], 0)
    interval = oracle.confidence_interval(0.95)
    assert one.p == pytest.approx(oracle.pvalue)
    assert (one.difference.low, one.difference.high) == pytest.approx((interval.low, interval.high))
    assert one.test == "paired t over 3 seeds"
    text = said(first, second)
    (line,) = (line.split() for line in text.splitlines() if line.startswith("robust %, 2"))
    assert line[3:] == ["59.0", "54.0", "+5.0"]
    assert "A is more robust than B" in text
    for path in tmp_path.rglob("*.json"):
        signed(read_record(path), signing_key)
    frame = leaderboard(tmp_path)  # and the board agrees
    assert frame[["objective", "rank"]].values.tolist() == [["pgd", 1], ["trades", 2]]


def test_few_common_seeds_are_compared_by_every_pair_of_models(tmp_path: Path) -> None:
    first, second = two_methods(tmp_path, (0, 1), (1, 2, 3))
    one = robust(compare(first, second))
    assert one.test == "largest exact McNemar p of all 2 x 3 pairs of models"
    difference = robust(compare(*two_methods(tmp_path / "x", (0, 1), (2, 3)))).difference
    assert difference.value == pytest.approx((541 + 555 - 540 - 560) / 2000)
    assert np.isnan(difference.low), "without a common seed there is no interval"
    # Seed 1 of A (555) lies above seed 2 of B (540), and below its seed 3 (560).
    assert one.p == 1
    assert (one.difference.n, one.difference.kind) == (1, "none")
    single = robust(compare(first, second / "1.json"))
    # 541 and 555 against 520, nested: 21 and 35 of one kind.
    assert single.p == pytest.approx(stats.binomtest(21, 21).pvalue)


def shorter(long: Record, n: int) -> Record:
    return record(flags(n, n), fingerprint="a" * 64, config=long.config)


def test_the_first_images_of_an_official_set_are_common(tmp_path: Path, said: Said) -> None:
    long = record(flags(600))
    short = shorter(long, 500)
    first, second = put(tmp_path / "a.json", long), put(tmp_path / "b.json", short)
    found = compare(first, second)
    assert (found.examples, found.same_images) == (500, False)
    assert robust(found).counts == (500, 0, 0, 0)
    assert "which no fingerprint can check" in said(first, second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"which": "every third of test"}, r"the images \('the first 1000"),
        ({"which": "the first 400 of test in the official order"}, r"the images \('the first 1000"),
        ({"dataset": "npz"}, "the data set"),
        ({"split": "train"}, "the split"),
    ],
)
def test_other_images_are_refused(tmp_path: Path, change: dict[str, str], words: str) -> None:
    long = record(flags(600))
    first = put(tmp_path / "a.json", long)
    short = shorter(long, 500)
    data = dataclasses.replace(short.data, **change)
    second = put(tmp_path / "b.json", dataclasses.replace(short, data=data))
    with pytest.raises(RecordError, match=f"they differ in {words}"):
        compare(first, second)


def test_what_was_judged_otherwise_is_refused_in_one_sentence(tmp_path: Path) -> None:
    first, _ = two_records(tmp_path)
    made = record(flags(600))
    threat = {**made.config["threat"], "eps": 0.1}
    other = record(flags(600), protocol="standard")
    other = dataclasses.replace(other, config={**other.config, "threat": threat})
    with pytest.raises(RecordError) as raised:
        compare(first, put(tmp_path / "c.json", other))
    message = str(raised.value)
    assert "the ball (Linf 0.15 and Linf 0.1), the protocol (pgd and standard)" in message
    assert "\n" not in message
    same_size = record(flags(600), fingerprint="b" * 64)
    with pytest.raises(RecordError, match="fingerprints ffffffffffff and bbbbbbbbbbbb"):
        compare(first, put(tmp_path / "d.json", same_size))
    first, second = two_methods(tmp_path / "more", (0,), (0,))
    with pytest.raises(RecordError, match="holds 2 methods"):
        compare(tmp_path / "more", first)
    with pytest.raises(RecordError, match="no results folder"):
        compare(tmp_path / "none", second)


def test_models_of_others_are_those_of_one_method_where_a_folder_says_so(tmp_path: Path) -> None:
    """They share no order of the data, whatever seed they were attacked with: nothing is paired."""

    def judged(reference: str, seed: int, robust: int) -> Record:
        """A record of a model that came finished: its configuration names file and weights."""
        made = record(flags(robust), seed=seed, state=reference)
        model = {"reference": reference, "state": reference}
        config = {"model": model, "threat": made.config["threat"], "seed": seed}
        return dataclasses.replace(made, config=config, model=reference)

    for seed, gain in enumerate((40, 45, 50)):
        for side, extra in (("a", gain), ("b", 0)):
            made = judged(f"{side}{seed}.py:net", seed, 500 + 20 * seed + extra)
            put(tmp_path / side / f"{seed}.json", made)
    one = robust(compare(tmp_path / "a", tmp_path / "b"))
    assert one.test == "largest exact McNemar p of all 3 x 3 pairs of models"
    assert one.difference.value == pytest.approx(0.045)
    put(tmp_path / "a" / "again.json", judged("x.py:net", 0, 500))
    more = robust(compare(tmp_path / "a", tmp_path / "b"))
    assert more.test == "largest exact McNemar p of all 4 x 3 pairs of models"


def test_names_are_printed_and_never_obeyed_and_a_record_is_as_good_as_itself(
    tmp_path: Path, said: Said
) -> None:
    nasty = dataclasses.replace(record(flags(600)), model="\x1b[31mred\nnew [b]x")
    path = put(tmp_path / "a.json", nasty)
    text = said(path, path)
    assert "\x1b" not in text
    assert "?[31mred new [b]x" in text
    assert "Neither is significantly more robust (p = 1, level 0.05)." in text
