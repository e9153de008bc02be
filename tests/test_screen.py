"""What long work shows: bars on a terminal, lines elsewhere."""

import io

import pytest
from rich.console import Console

from robust_nc.runtime.progress import Event
from robust_nc.runtime.screen import Screen


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
    ("side_by_side", "last"), [(True, ["attack", "evidence"]), (False, ["evidence"])]
)
def test_a_terminal_has_a_bar_for_what_is_under_way(side_by_side, last):
    drawn = shown(EVENTS, terminal=True, side_by_side=side_by_side)
    assert "a [red]line" in drawn
    bars = [line for line in drawn.splitlines() if "0:00:0" in line][-len(last) :]
    assert [name in bar for name, bar in zip(last, bars, strict=True)] == [True] * len(last)
    assert "round [it]" in bars[-1]


def test_a_file_has_a_line_per_task_where_one_follows_another():
    assert shown(EVENTS, terminal=False, side_by_side=False) == (
        "attack: a quarter\nevidence: round [it]\na [red]line\n"
    )


def test_a_file_has_nothing_of_tasks_side_by_side():
    assert shown(EVENTS, terminal=False, side_by_side=True) == "a [red]line\n"
