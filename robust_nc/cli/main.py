"""The command line: `robust-nc evaluate | verify | run | board | ...`.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 some cells failed or
are missing or the output cannot be written, 2 bad input, 130 interrupted, 143 ended by SIGTERM or
after --minutes.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import tyro
from rich.console import Console

from robust_nc.cli.board import BoardOptions, board_command
from robust_nc.engines.options import RunOptions
from robust_nc.exceptions import RobustNCError
from robust_nc.pipeline.request import Request

FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143

# A reference such as net.py:three is no emoji.
_stderr = Console(stderr=True, highlight=False, emoji=False)


def _run(options: Annotated[RunOptions, tyro.conf.arg(name="")]) -> int:
    """Train, attack, measure and record every cell of a suite; run again to go on."""
    options.check()
    if options.plan:
        from robust_nc.cli.plan import plan_command

        return plan_command(options, _stderr)
    from robust_nc.cli.run import run_command

    return run_command(options, _stderr)


def _evaluate(request: Annotated[Request, tyro.conf.arg(name="")]) -> int:
    """Judge a finished model: attack it, measure its layers, leave a record with evidence."""
    from robust_nc.cli.evaluate import evaluate_command

    return evaluate_command(request, _stderr)


def _verify(
    records: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RECORD")],
    /,
    model: str | None = None,
    audit: int | None = None,
    seed: int | None = None,
    save: bool = False,
    root: Path | None = None,
) -> int:
    """Check records: schema, digests, and that each adversarial example proves what it should.

    Args:
        records: Records, or folders of them.
        model: The model (as for evaluate): then every verdict against it is checked as well.
        audit: Attack N examples that are claimed robust again, drawn by --seed, and say how much
            the claim may overstate.
        seed: Seed of the audit (default: drawn, and told).
        save: Leave a receipt beside the record, which the board shows as its badge.
        root: Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc).
    """
    from robust_nc.cli.verify import verify_command

    return verify_command(records, model, audit, seed, save, root, _stderr)


def _challenge(
    record: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RECORD")],
    /,
    evidence: Path,
    model: str,
    out: Path | None = None,
    root: Path | None = None,
) -> int:
    """Lower someone's row: adversarial examples that verify count against the record.

    Args:
        record: The record that claims too much.
        evidence: File of adversarial examples: evidence of ours, or an .npz with ids and images.
        model: The model (as for evaluate).
        out: Where the challenge goes (default: beside the record).
        root: Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc).
    """
    from robust_nc.cli.challenge import challenge_command

    return challenge_command(record, evidence, model, out, root, _stderr)


def _compare(
    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")],
    /,
) -> int:
    """Compare two records on the same examples, or two methods over their common seeds.

    Args:
        first: A record, or a folder with the seeds of one method.
        second: The other.
    """
    from robust_nc.cli.compare import compare_command

    return compare_command(first, second, _stderr)


def _submit(
    record: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RECORD")],
    /,
    to: Path = Path("results"),
    hub: str | None = None,
    root: Path | None = None,
) -> int:
    """Make a record ready for a pull request to the leaderboard, or push it to the Hub.

    Args:
        record: The record to submit, as `evaluate` or `run` left it.
        to: The results folder of a clone of the leaderboard.
        hub: Instead: the repository OWNER/NAME of the Hugging Face Hub to push the card, the record
            and its evidence to.
        root: Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc).
    """
    from robust_nc.cli.submit import submit_command

    return submit_command(record, to, hub, root, _stderr)


def _board(options: Annotated[BoardOptions, tyro.conf.arg(name="")]) -> int:
    """Show the leaderboard of a results folder."""
    return board_command(options, _stderr)


def _data(
    action: Annotated[Literal["list", "fetch"], tyro.conf.Positional] = "list",
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None,
    /,
    root: Path | None = None,
) -> int:
    """List the data sets, or fetch one and verify it.

    Args:
        action: list or fetch.
        name: The data set to fetch.
        root: Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc).
    """
    from robust_nc.cli.data import data_command

    return data_command(action, name, root, _stderr)


def _doctor() -> int:
    """Say what this environment has, what is broken, and the remedy."""
    from robust_nc.cli.doctor import doctor_command

    return doctor_command()


def main() -> None:
    """Entry point: errors that a user can cause become one sentence and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    verbs: dict[str, Callable[..., int]] = {
        "evaluate": _evaluate,
        "verify": _verify,
        "challenge": _challenge,
        "compare": _compare,
        "submit": _submit,
        "run": _run,
        "board": _board,
        "data": _data,
        "doctor": _doctor,
    }
    try:
        code = tyro.extras.subcommand_cli_from_dict(verbs, prog="robust-nc")
        sys.stdout.flush()
    except RobustNCError as error:
        code = _say(str(error), BAD_INPUT)
    except KeyboardInterrupt as error:
        code = _say("interrupted", TERMINATED if error.args == (signal.SIGTERM,) else INTERRUPTED)
    except BrokenPipeError:  # who reads the output has seen enough, as in `robust-nc board | head`
        code = _give_up_output()
    except OSError as error:
        code = _say(f"cannot go on: {error}", _give_up_output())
    sys.exit(code)


def _say(sentence: str, code: int) -> int:
    _stderr.print(f"robust-nc: {sentence}", style="red", markup=False, soft_wrap=True)
    return code


def _give_up_output() -> int:
    """Send what stdout does not take nowhere, or the interpreter tries again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
