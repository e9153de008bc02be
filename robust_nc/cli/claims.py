"""`robust-nc run claims`: the suites that claims name, and the answers."""

from collections.abc import Callable
from pathlib import Path

from robust_nc.claims.answers import answer_claims, missing_cells, write_answer
from robust_nc.claims.page import answers_page, answers_table
from robust_nc.claims.reading import ANSWERS, Claims
from robust_nc.io.files import write_text
from robust_nc.pipeline.suite import Suite


def claims_command(
    claims: Claims, out: Path, run: Callable[[Suite, Path], int], say: Callable[[str], None]
) -> int:
    """Run every suite into its folder below `out`, answer the claims, and return the exit code.

    `run` runs a suite and returns its exit code. Where a cell that a claim needs is missing after
    it, nothing is answered.
    """
    codes = [run(suite, out / suite.name) for suite in claims.suites()]
    missing = missing_cells(claims, out)
    if missing:
        say(f"no claim is answered: {len(missing)} cells that they need have no whole record:")
        for name in missing:
            say(f"  {name}")
        return 1
    answers = answer_claims(claims, out)
    for answer in answers:
        write_answer(out / ANSWERS, answer)
    page = out / ANSWERS / "claims.md"
    write_text(page, answers_page(answers, description=claims.description))
    print(answers_table(answers))
    say(f"{len(answers)} claims answered in {page}")
    return max(codes, default=0)
