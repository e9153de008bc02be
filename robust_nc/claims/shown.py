"""Answers as the leaderboard's page shows them.

>>> claims_shown(())
()
"""

import re
from collections.abc import Sequence

from robust_nc.claims.answers import Answer, Scale, Tested
from robust_nc.claims.page import number, spread
from robust_nc.claims.reading import Claim
from robust_nc.report.board.formats import count
from robust_nc.report.site.pages import Shown, ShownTest


def claims_shown(answers: Sequence[Answer]) -> tuple[Shown, ...]:
    """Return the answers as text, C2 before C10."""
    return tuple(
        Shown(
            id=answer.claim.id,
            verdict=answer.verdict,
            says=answer.claim.says,
            source=answer.claim.source,
            reason=answer.reason,
            scale=_scale(answer.scale),
            tests=tuple(_test(answer.claim, test) for test in answer.tests),
        )
        for answer in sorted(answers, key=lambda one: _natural(one.claim.id))
    )


def _natural(name: str) -> list[tuple[str, int]]:
    return [(word, int(part or 0)) for word, part in re.findall(r"([^0-9]*)([0-9]*)", name)]


def _test(claim: Claim, test: Tested) -> ShownTest:
    return ShownTest(
        quantity=test.quantity,
        mean=spread(test.summary),
        expected=_asked(claim),
        p=number(test.p),
        p_holm=number(test.p_holm),
        seeds=str(len(test.summary.values)),
        verdict=test.verdict,
    )


def _asked(claim: Claim) -> str:
    if claim.expect == "equal":
        return f"{number(claim.reference)}, within {number(claim.effect)}"
    return f"{claim.expect} {number(claim.reference)} by more than {number(claim.effect)}"


def _scale(scale: Scale) -> str:
    whole = "all" if scale.train_limit is None else f"{scale.train_limit:,}"
    return (
        f"{scale.dataset}, {whole} training images, {scale.backbone}, {scale.epochs} epochs, "
        f"{count(len(scale.seeds), len(scale.seeds), 'seed')}, {scale.ball}"
    )
