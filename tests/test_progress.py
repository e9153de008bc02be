"""What long work says of itself while it runs, and how it is shown."""

import io
import itertools

import pytest
import torch
from helpers_attacks import APGD_ONLY, BALL, SHORT, examples, own
from rich.console import Console

from robust_nc import evaluate, profile
from robust_nc.config import MeasureConfig
from robust_nc.runtime.progress import Event, PassCounter, Progress
from robust_nc.runtime.screen import Screen


class Clock:
    """A clock that goes on by itself, so that everything is reported."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 50.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1.0)
    monkeypatch.setattr("robust_nc.runtime.progress.time.monotonic", clock)
    return clock


def watched(count: int = 20, **options: object) -> tuple[list[Progress], object]:
    model, images, labels = examples(count)
    said: list[Progress] = []
    options = {"protocol": SHORT, "batch_size": 4} | options
    outcome = evaluate(model, images, labels, BALL, report=said.append, **options)
    return said, outcome


def test_progress_goes_up_to_the_end(fast_clock: Clock) -> None:
    said, outcome = watched()
    assert len(said) > 50
    for before, after in itertools.pairwise(said):
        assert (after.turn, after.done) >= (before.turn, before.done)
        assert after.share >= before.share
        assert after.passes >= before.passes
        assert after.seconds > before.seconds
        assert after.robust <= before.robust
        assert 0 <= after.done <= after.total <= after.examples == 20
    first, last = said[0], said[-1]
    assert first.robust == int(outcome.clean_correct.sum()), "at most: nothing is broken yet"
    assert (last.turn, last.turns, last.attack) == (4, 4, "square")
    assert last.done == last.total
    assert last.share == 1
    assert last.robust == int(outcome.robust.sum())
    assert last.seconds_left == 0
    assert {progress.attack for progress in said} == {"apgd-ce", "apgd-t", "fab-t", "square"}
    # What the attacks asked; the clean images and the scores are not told.
    spent = int(outcome.forward_passes.sum() + outcome.backward_passes.sum())
    assert 0.9 * spent < last.passes <= spent


def test_an_attack_without_a_cost_leaves_the_time_open(fast_clock: Clock) -> None:
    def still(model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return model(images).sum() * 0 + images

    plan = own(still, "still")
    said, outcome = watched(protocol=plan._replace(attacks=(*APGD_ONLY.attacks, *plan.attacks)))
    assert all(progress.seconds_left is None for progress in said)
    assert "left" not in str(said[0])
    assert said[-1].attack == "still"
    assert said[-1].share == 1
    before = [progress.passes for progress in said if progress.attack == "apgd-t"][-1]
    assert said[-1].passes == before + int(outcome.robust.sum()), "its passes are told too"


def test_nothing_robust_and_no_examples_end_at_once(fast_clock: Clock) -> None:
    model, images, _ = examples(4)
    wrong = (model(images).argmax(1) + 1) % 5
    for count in (4, 0):
        said: list[Progress] = []
        evaluate(model, images[:count], wrong[:count], BALL, protocol=SHORT, report=said.append)
        assert said[-1].share == 1
        assert said[-1].robust == 0
        assert said[-1].examples == count
        assert "robust at most 0.0%" in str(said[-1])


def test_a_resumed_evaluation_says_what_still_stands(fast_clock: Clock, tmp_path) -> None:
    log = tmp_path / "log.jsonl"
    _, whole = watched(log=log)
    said, _ = watched(log=log)
    assert {progress.robust for progress in said} == {int(whole.robust.sum())}
    assert said[-1].share == 1
    assert said[-1].passes == 0


def test_reports_come_at_most_twice_a_second(fast_clock: Clock) -> None:
    fast_clock.step = 0.0
    said, _ = watched()
    assert len(said) == 1 + 4, "the first pass, and the end of each turn"


def test_a_report_that_raises_ends_the_evaluation() -> None:
    model, images, labels = examples(4)

    def refuse(progress: Progress) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        evaluate(model, images, labels, BALL, protocol=SHORT, report=refuse)
    assert all(not module._forward_hooks for module in model.modules())


def test_it_reads_well() -> None:
    told = "attack 2 of 4 (fab-t): 5 of 50, robust at most 30.0%, 250 passes/s, 4 min left"
    assert str(Progress("fab-t", 2, 4, 5, 50, 30, 100, 500.0, 2.0, 240.0)) == told
    empty = Progress("", 1, 1, 0, 0, 0, 0, 0.0, 0.0, None)
    assert str(empty) == "attack 1 of 1 (): 0 of 0, robust at most 0.0%, 0 passes/s"
    assert empty.share == 1


def test_the_time_left_is_that_of_an_evaluation_in_which_nothing_breaks(fast_clock: Clock) -> None:
    fast_clock.step = 0.0
    pace = PassCounter(None)
    pace.plan([100, 10])
    assert pace.seconds_left() is None, "no speed is known yet"
    pace.turn("first", 8, 8, 10)
    fast_clock.now += 4.0
    pace.tick(400)  # half of the first turn: 100 passes a second
    assert pace.seconds_left() == pytest.approx((400 + 8 * 10) / 100)
    pace.done(8, 3, 10)
    assert pace.seconds_left() == pytest.approx(3 * 10 / 100)
    pace.turn("second", 3, 3, 10)
    fast_clock.now += 0.1
    pace.tick(10)
    assert pace.seconds_left() == pytest.approx(20 * (4.1 / 410))
    pace.done(3, 2, 10)
    assert pace.seconds_left() == 0
    assert torch.isfinite(torch.tensor(pace.seconds_left()))


def test_counts_move_while_a_batch_is_under_way(fast_clock: Clock) -> None:
    fast_clock.step = 0.0
    said: list[Progress] = []
    pace = PassCounter(said.append)
    pace.plan([100, None])
    pace.turn("apgd-t", 19, 19, 20)
    for _ in range(4):
        fast_clock.now += 1.0
        pace.tick(19 * 20)
    shares = [progress.share for progress in said]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert "(apgd-t): 0 of 19 (80% of the passes), robust" in str(said[-1])
    pace.done(19, 10, 20)
    pace.say()
    assert said[-1].share == 0.5
    assert "19 of 19, robust" in str(said[-1])
    pace.turn("of-others", 10, 10, 20)
    fast_clock.now += 1.0
    pace.tick(50)
    assert said[-1].share == 0.5, "nobody knows what this attack costs"


def test_the_geometry_tells_how_far_a_batch_is(fast_clock: Clock) -> None:
    model, images, labels = examples(20)
    said: list[tuple[float, str]] = []
    fast_clock.step = 1.0
    settings = MeasureConfig(steps=5, radii=(), targets=(), trajectories=0)
    profile(
        model, [(images, labels)], BALL, measure=settings, report=lambda *told: said.append(told)
    )
    shares = [share for share, text in said if text.endswith("train: attack")]
    assert len(shares) == 2 * (5 + 1) + 2 + 1, "each pass forward, and the end of the batch"
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.1
    assert shares[-2:] == [1.0, 1.0]
    assert all(not module._forward_hooks for module in model.modules())


def shown(events: list[Event], *, terminal: bool, side_by_side: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with Screen(console, side_by_side=side_by_side) as screen:
        for event in events:
            screen.event(event)
        screen.line("a [red]line")
    return out.getvalue()


EVENTS = [
    Event("attack", 0.25, "a quarter"),
    Event("attack", 0.5, "half"),
    Event("evidence", 0.0, "round [it]"),
]


@pytest.mark.parametrize(
    ("side_by_side", "last", "lines"),
    [
        (True, ["attack", "evidence"], ""),
        (False, ["evidence"], "attack: a quarter\nevidence: round [it]\n"),
    ],
)
def test_a_terminal_has_a_bar_for_what_is_under_way_and_a_file_lines(side_by_side, last, lines):
    drawn = shown(EVENTS, terminal=True, side_by_side=side_by_side)
    assert "a [red]line" in drawn
    bars = [line for line in drawn.splitlines() if "0:00:0" in line][-len(last) :]
    assert [name in bar for name, bar in zip(last, bars, strict=True)] == [True] * len(last)
    assert "round [it]" in bars[-1]
    assert shown(EVENTS, terminal=False, side_by_side=side_by_side) == f"{lines}a [red]line\n"
