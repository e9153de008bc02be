"""Answers as text: one table for the terminal, and a page with a section and a figure per claim.

Every number is that of the answer, in four digits.

>>> answers_page(())
'# Claims and answers\\n\\nThere are no claims.\\n'
"""

from collections.abc import Iterable, Sequence

from robust_nc.claims.answers import Answer, Beside, Scale, Summary, Tested
from robust_nc.config import plain
from robust_nc.io.text import escape_markdown
from robust_nc.report.board.formats import count_text, number
from robust_nc.report.board.gather import part_label
from robust_nc.report.board.render import MISSING, Section, render

HEADERS = (
    *("claim", "verdict", "quantity", "mean [interval]", "expected", "p", "p (Holm)", "seeds"),
    "would decide",
)
_LEFT = 5  # so many columns are words

_FIGURES = """\
In the figures a dot is a seed, the bar the interval over seeds with its mean, and what is shaded
supports the claim: a bar wholly inside supports it, one wholly outside contradicts it, any other
leaves it undecided, as does a premise that fails. The dotted line is the reference."""
_RULE = """\
How a claim is decided: its file fixes one quantity, the direction, the smallest effect that matters
and the premise before the run. A claim is *supported* where the Student t interval over seeds lies
wholly beyond that effect on the expected side, *contradicted* where it lies wholly short of it, and
*undecided* where it holds the effect; then the table says how many seeds of this mean and spread
would decide. p is two-sided and is that of a mean at the claimed effect; Holm's method adjusts it
for all {family} tests of the file, and an interval has the level at which that method judges its
test (95 % or more). A claim that two quantities are *equal* is supported where the 90 % interval,
which is not adjusted (nor is its p: the column says so), lies within the margin, and contradicted
only where the adjusted one lies wholly outside it; of a mean within the margin, p is the larger of
two one-sided tests. Each variant
of a claim is a test of its own, and all must agree. A test that cannot be decided counts with p = 1
among the others. Intervals of what stands beside a claim are 95 %, without adjustment."""


def answers_table(answers: Sequence[Answer]) -> str:
    """Write the answers as a table in plain text, a line per test."""
    numbers = tuple(k >= _LEFT for k in range(len(HEADERS)))
    return render(Section(HEADERS, _rows(answers), numbers), "table")


def answers_page(answers: Sequence[Answer], *, description: str = "", folder: str = "") -> str:
    """Write the answers as a Markdown page.

    `folder` is where the files of the answers lie as seen from the page ("" or ending with "/").
    """
    blocks = ["# Claims and answers", *([description] if description else [])]
    if not answers:
        return "\n\n".join([*blocks, "There are no claims."]) + "\n"
    said = [(f"[{one.claim.id}]({_anchor(one)})", one.claim.says, one.verdict) for one in answers]
    lines = [f"| {key} | {escape_markdown(says)} | {verdict} |" for key, says, verdict in said]
    blocks += ["\n".join(["| claim | says | answer |", "| --- | --- | --- |", *lines]), _FIGURES]
    for answer in answers:
        blocks += _section(answer, folder)
    blocks += ["## All numbers", _markdown(HEADERS, _rows(answers), _LEFT)]
    blocks.append(_RULE.format(family=answers[0].family))
    return "\n\n".join(blocks) + "\n"


def _anchor(answer: Answer) -> str:
    """Where the section of an answer begins, as Markdown's heading anchors are made."""
    return f"#{answer.claim.id.lower().replace('.', '')}-{answer.verdict}"


def _spread(summary: Summary) -> str:
    """Write a mean with its interval and what that is.

    >>> values = {"values": (), "missing": (), "mean": 0.5}
    >>> _spread(Summary(**values, low=0.25, high=0.75, level=0.9875))
    '0.5 [0.25, 0.75] 98.75 %'
    >>> _spread(Summary(**values, low=0.25, high=0.75, level=None))
    '0.5 (0.25 to 0.75)'
    """
    if summary.mean is None:
        return MISSING
    low, high = number(summary.low), number(summary.high)
    if summary.level is None:
        return f"{number(summary.mean)} ({low} to {high})"
    return f"{number(summary.mean)} [{low}, {high}] {100 * summary.level:.4g} %"


def _rows(answers: Sequence[Answer]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for answer in answers:
        several = len(answer.tests) > 1
        for k, test in enumerate(answer.tests):
            verdict = answer.verdict if k == 0 else ""
            rows.append(
                (
                    answer.claim.id if k == 0 else "",
                    f"{verdict} ({test.verdict})".strip() if several else verdict,
                    test.quantity,
                    _spread(test.summary),
                    _expected(answer),
                    number(test.p),
                    _adjusted(test),
                    str(len(test.summary.values)),
                    MISSING if test.enough is None else str(test.enough),
                )
            )
    return rows


def _adjusted(test: Tested) -> str:
    bare = test.p is not None and test.p_holm is None
    return "not adjusted" if bare else number(test.p_holm)


def _expected(answer: Answer) -> str:
    claim = answer.claim
    if claim.expect == "equal":
        return f"within {number(claim.effect)} of {number(claim.reference)}"
    sign = 1 if claim.expect == "above" else -1
    return f"{claim.expect} {number(claim.reference + sign * claim.effect)}"


def _section(answer: Answer, folder: str) -> list[str]:
    claim = answer.claim
    codes = ", ".join(sorted({f"`{one.get('code', '')}`" for one in answer.versions}))
    return [
        f"## {escape_markdown(claim.id)}: {answer.verdict}",
        f"> {escape_markdown(claim.says)}\n>\n> {escape_markdown(claim.source)}",
        f"![{escape_markdown(claim.id)}]({folder}{claim.id}.png)",
        _words(answer),
        *([f"Changed: {escape_markdown(claim.changed)}"] if claim.changed else []),
        _scale(answer.scale),
        "<details><summary>Numbers</summary>",
        _asked(answer),
        *(_test_words(answer, test) for test in answer.tests),
        *([_premise(answer)] if claim.premise else []),
        _values(answer),
        *([_beside(answer.beside)] if answer.beside else []),
        f"Evidence: [{claim.id}.json]({folder}{claim.id}.json) with every value and the digests of "
        f"{len(answer.records)} records; claim `{answer.claim_digest[:16]}`, code {codes}.",
        "</details>",
    ]


def _words(answer: Answer) -> str:
    """Say the answer to who reads no tables."""
    tests, n = answer.tests, len(answer.tests[0].summary.values)
    about = answer.meaning[:1].upper() + answer.meaning[1:]
    less = "" if answer.claim.against is None else ", difference of the two sides"
    found = " and ".join(_spread(test.summary) for test in tests)
    enough = max((test.enough or 0 for test in tests), default=0)
    more = f" {enough} seeds of this mean and spread would decide." if enough else ""
    return (
        f"**{answer.verdict.capitalize()}**: {answer.reason}. {about}{less}: {found} over "
        f"{count_text(n, n, 'seed')}; the claim asks for {_expected(answer)}.{more}"
    )


def _asked(answer: Answer) -> str:
    claim = answer.claim
    to = " to" if claim.expect == "equal" else ""
    minus = "" if claim.against is None else f", less that of {_selected(claim.against)}"
    effect = (
        f"the margin is {number(claim.effect)}"
        if claim.expect == "equal"
        else f"the smallest effect that matters is {number(claim.effect)}"
    )
    return (
        f"Asked: `{part_label(plain(claim.quantity))}` ({answer.meaning}) of "
        f"{_selected(claim.of)}{minus}. "
        f"Expected {claim.expect}{to} {number(claim.reference)}; {effect}."
    )


def _selected(wanted: dict[str, object]) -> str:
    return ", ".join(f"`{key} = {value!r}`" for key, value in wanted.items()) or "every cell"


def _test_words(answer: Answer, test: Tested) -> str:
    summary, n = test.summary, len(test.summary.values)
    about = f"`{test.quantity}` over {count_text(n, n, 'seed')}: {_spread(summary)}"
    if test.p is not None:
        claim = answer.claim
        far = summary.mean is None or abs(summary.mean - claim.reference) >= claim.effect
        kind = "p" if far or claim.expect != "equal" else "larger of two one-sided p"
        adjusted = _adjusted(test)
        about += f"; {kind} {number(test.p)}, {'adjusted ' * adjusted[:1].isdigit()}{adjusted}"
    if test.enough is not None:
        about += f"; {test.enough} seeds of this mean and spread would decide"
    if len(answer.tests) > 1:
        about += f"; {test.verdict}: {test.reason}"
    gone = [
        f"\n- no value of {one.side}, seed {one.seed}: {escape_markdown(one.reason)}"
        for one in summary.missing
    ]
    return f"{about}.{''.join(gone)}{_notes(answer, test)}"


def _notes(answer: Answer, test: Tested) -> str:
    """Write what the rows note, each with the cells that do, as an item of a list."""
    cells = {
        text: {(one.side, one.seed) for one in test.notes if one.note == text}
        for text in sorted({one.note for one in test.notes})
    }
    if not cells:
        return ""
    told = (
        f"{escape_markdown(text)} in {len(at)} of {len(answer.records)} cells"
        for text, at in cells.items()
    )
    return f"\n- notes of the rows: {'; '.join(told)}"


def _premise(answer: Answer) -> str:
    lines = []
    for name, bounds in answer.claim.premise.items():
        cells = [one for one in answer.premise if one.quantity == name]
        known = [one.value for one in cells if one.value is not None]
        held = sum(one.holds for one in cells)
        asked, seen = [], []
        for end, word, extreme in ((bounds.minimum, "least", min), (bounds.maximum, "most", max)):
            if end is not None:
                asked.append(f"at {word} {number(end)}")
                seen.append(f"{word} {number(extreme(known)) if known else MISSING}")
        side = "" if bounds.side == "both" else f" of `{bounds.side}`"
        lines.append(
            f"Premise: `{name}`{side} {' and '.join(asked)} holds in {held} of {len(cells)} cells "
            f"({', '.join(seen)})."
        )
    return "\n".join(lines)


def _scale(scale: Scale) -> str:
    whole = "all" if scale.train_limit is None else f"{scale.train_limit:,}"
    seeds = ", ".join(map(str, scale.seeds))
    against = "" if scale.against is None else f" against {escape_markdown(scale.against)}"
    return (
        f"Measured on {escape_markdown(scale.dataset)}: {whole} training images, of which "
        f"{100 * scale.validation:g} % held out to choose weights; geometry on "
        f"{scale.train_measured:,} of train and {scale.test_measured:,} of test, {scale.ball}; "
        f"{escape_markdown(scale.backbone)}, {escape_markdown(scale.of)}{against}, "
        f"{scale.epochs} epochs, seeds {seeds}."
    )


def _values(answer: Answer) -> str:
    """Write the values of every seed; of two sides, both and their difference."""
    paired = answer.claim.against is not None
    headers = ("quantity", "seed", *(("of", "against") if paired else ()), "value")
    rows = [
        (
            test.quantity,
            str(one.seed),
            *((number(one.of), number(one.against)) if paired else ()),
            number(one.value),
        )
        for test in answer.tests
        for one in test.summary.values
    ]
    return _markdown(headers, rows, 1)


def _beside(told: Sequence[Beside]) -> str:
    rows = []
    for one in told:
        gone = {missing.reason for missing in one.summary.missing}
        note = f"; not in {len(one.summary.missing)} cells: {min(gone)}" if gone else ""
        count = str(len(one.summary.values))
        rows.append((one.quantity, one.side, f"{one.meaning}{note}", _spread(one.summary), count))
    headers = ("beside", "side", "what it is", "mean [interval]", "seeds")
    return _markdown(headers, rows, 3)


def _markdown(headers: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    rules = ["---" if k < words else "---:" for k in range(len(headers))]
    lines = [headers, rules, *([escape_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
