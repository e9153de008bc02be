"""The command line: `robust-nc run | board | data | doctor`.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 some cells failed or
are missing or the output cannot be written, 2 bad input, 130 interrupted.
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

from robust_nc.exceptions import RobustNCError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

_stderr = Console(stderr=True, highlight=False)


def run(
    suite: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SUITE")],
    /,
    out: Path | None = None,
    overwrite: Literal["never", "always", "only-missing", "only-cache"] = "only-missing",
    workers: int | None = None,
    root: Path | None = None,
) -> int:
    """Train, attack, measure and record every cell of a suite; run again to go on.

    Args:
        suite: Name of a suite that comes with the package, `claims` (runs what the claims of the
            literature are decided on, and answers them), or a path that ends with .toml.
        out: Folder for records, checkpoints and logs (default: out/<suite>).
        overwrite: never: keep every cell that has a record; only-missing: also redo damaged ones;
            always: start over; only-cache: compute nothing, say what is missing.
        workers: Cells at a time (default: one per core on a CPU, one on an accelerator).
        root: Folder of data sets (default: $ROBUST_NC_DATA, else ~/.cache/robust_nc).
    """
    from robust_nc.commands.run import run_command

    return run_command(suite, out, overwrite, workers, root, _stderr)


def board(
    results: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")] = Path(
        "results"
    ),
    /,
    format: Literal["table", "csv", "latex", "markdown", "html"] = "table",
    out: Path | None = None,
    against: str | None = None,
) -> int:
    """Show the leaderboard of a results folder.

    Args:
        results: Folder with records, searched recursively.
        format: What to make of it; html writes a page with figures into --out.
        against: Show, instead of the leaderboard, every head minus this one, seed by seed, with
            paired intervals (the html page has both).
        out: For html: the folder of the page (default: RESULTS). Otherwise a file to write.
    """
    from robust_nc.commands.board import board_command

    return board_command(results, format, out, against, _stderr)


def data(
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
    from robust_nc.commands.data import data_command

    return data_command(action, name, root, _stderr)


def doctor() -> int:
    """Say what this environment has, what is broken, and the remedy."""
    from robust_nc.commands.doctor import doctor_command

    return doctor_command()


def main() -> None:
    """Entry point: errors that a user can cause become one sentence and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    verbs: dict[str, Callable[..., int]] = {
        "run": run,
        "board": board,
        "data": data,
        "doctor": doctor,
    }
    try:
        code = tyro.extras.subcommand_cli_from_dict(verbs, prog="robust-nc")
        sys.stdout.flush()
    except RobustNCError as error:
        code = _say(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        code = _say("interrupted", INTERRUPTED)
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
    raise KeyboardInterrupt
