"""An answer as a figure: every seed, the interval, and where the claim would be true."""

import textwrap
from pathlib import Path

from matplotlib.axes import Axes

from robust_nc.claims.answers import Answer
from robust_nc.io.files import atomic
from robust_nc.io.text import printable
from robust_nc.report.figures.axes import (
    COLOURS,
    GREY,
    NULL,
    DrawnFigure,
    Width,
    inches_of,
    styled,
    wrapped,
)
from robust_nc.report.figures.selection import literal

_COLOURS = {"supported": COLOURS[NULL], "contradicted": COLOURS["attacked"], "undecided": GREY}
_ROW, _REST = 0.4, 0.75  # inches of a test, and of what stands around all of them
_DPI = 110
_ROOM = 0.08  # beside the outermost mark, as a share of what is shown


def write_figure(answer: Answer, path: Path) -> None:
    """Draw an answer, as wide as a page, into a PNG."""
    with atomic(path) as file:
        draw_answer(answer).savefig(file, format="png", dpi=_DPI)


@styled
def draw_answer(answer: Answer, *, width: Width = "page") -> DrawnFigure:
    """Draw a line per test: its seeds as dots, its interval as a bar in the verdict's colour.

    The values that support the claim are shaded; the dotted line is the reference.
    """
    tests, claim = answer.tests, answer.claim
    inches = inches_of(width)
    figure = DrawnFigure(figsize=(inches, _REST + _ROW * len(tests)), layout="constrained")
    ax = figure.subplots()
    marks = [claim.reference - claim.effect, claim.reference + claim.effect]
    for row, test in enumerate(tests):
        values = [one.value for one in test.summary.values]
        ax.plot(values, [row] * len(values), "o", color=GREY, alpha=0.5, markeredgewidth=0)
        low, mean, high = test.summary.low, test.summary.mean, test.summary.high
        if low is not None and mean is not None and high is not None:
            colour = _COLOURS[test.verdict]
            ax.plot([low, high], [row + 0.3] * 2, color=colour, linewidth=3)
            ax.plot(mean, row + 0.3, "|", color=colour, markersize=10, markeredgewidth=2)
            marks += [low, high]
        marks += values
    room = _ROOM * (max(marks) - min(marks) or 1.0)
    ax.set(xlim=(min(marks) - room, max(marks) + room), ylim=(len(tests) - 0.4, -0.5))
    _shade(ax, answer)
    if len(tests) > 1:
        options = (one.quantity.removeprefix(claim.quantity.name).strip("()") for one in tests)
        ax.set_yticks(range(len(tests)), [_text(one) for one in options])
    else:
        ax.set_yticks([])
    ax.grid(visible=False, axis="y")
    less = "" if claim.against is None else ": difference of the two sides"
    ax.set_xlabel("\n".join(wrapped(f"{_text(answer.meaning)}{less}", round(17 * inches))))
    figure.title = f"{claim.id}: {answer.verdict}"
    ax.set_title(figure.title, loc="left")
    return figure


def _text(told: str) -> str:
    """What an answer says, which may be a stranger's, as a label."""
    plainly = printable(told).encode("ascii", "replace").decode()  # the font has no other letters
    return literal(textwrap.shorten(plainly, 120))


def _shade(ax: Axes, answer: Answer) -> None:
    """Shade the values that support the claim, as far as they are shown."""
    claim, (left, right) = answer.claim, ax.get_xlim()
    low, high = claim.reference - claim.effect, claim.reference + claim.effect
    asked = {"above": (high, right), "below": (left, low), "equal": (low, high)}[claim.expect]
    ax.axvspan(*asked, color=_COLOURS["supported"], alpha=0.12, linewidth=0)
    ax.axvline(claim.reference, color=GREY, linestyle=":", linewidth=1)
